"""Toy recipes of all domains at tiny widths, with nothing that draws random numbers per process.

Started by torchrun, it trains each with DDP and with FSDP: ``-m scale FOLDER``, with data roots as JSON in FOLDER.
"""

from __future__ import annotations

import json
import sys
from functools import cache
from importlib import import_module
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from frozenllm.core.training import compose_config, train

BATCH, STEPS = 8, 3
SPEC = "{hidden_size:24,num_heads:2,num_kv_heads:2,head_dim:12,intermediate_size:32}"
COMMON = [
    "llm=random", f"+llm.spec={SPEC}",
    "schedule.epochs=1", "schedule.warmup_epochs=0", f"runtime.stop_after={STEPS}",
    # Where the exact gradient is zero (biases of keys, of layers before a BatchNorm), it is rounding noise, and Adam's
    # steps are the noise's sign: this much in the denominator leaves it as small as it is.
    "optim.eps=1e-3",
    "runtime.console=false", "runtime.plots=false", "runtime.threads=1",
]  # fmt: skip
DOMAINS: dict[str, list[str]] = {
    "vision2d": ["model.embed_dim=16", "model.depth=2", "model.drop_path_rate=0"],
    "video": [
        "data.num_frames=2", "model.num_frames=2", "model.hidden_size=16", "model.num_hidden_layers=2",
        "model.intermediate_size=32", "model.drop_path_rate=0",
    ],
    # The patch encoder has BatchNorm: a process of its own would normalise by its half of the batch.
    "pointcloud": [
        "model.embed_dim=12", "model.depth=2", "model.encoder_dim=16", "model.encoder_widths=[8,12,16]",
        "model.head_dropout=0", "task.batch_transform=null", "runtime.sync_bn=true",
    ],
    "motion": ["model.dim=16", "model.width=8", "model.hidden=16"],
    "vqa": ["model.width=16", "model.heads=2", "model.layers=1"],
}  # fmt: skip


def run(domain: str, folder: Path, name: str, *overrides: str) -> Path:
    """Train; the run folder."""
    own = OmegaConf.from_dotlist([f"runs={folder / domain}", f"name={name}", *overrides])
    return Path(train(OmegaConf.merge(_composed(domain, folder), own)).run_dir)


@cache
def _composed(domain: str, folder: Path) -> DictConfig:
    """What a domain's runs share, composed once: Hydra takes longer than the steps."""
    data = json.loads((folder / "data.json").read_text())[domain]
    return compose_config(f"frozenllm.{domain}.conf", [*COMMON, *DOMAINS[domain], *data])


def main(folder: Path) -> None:
    """All domains, both strategies, half the batch in each process."""
    for domain in DOMAINS:
        import_module(f"frozenllm.{domain}.train")
        for strategy in ("ddp", "fsdp"):
            run(domain, folder, strategy, f"runtime.strategy={strategy}", f"data.batch_size={BATCH // 2}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
