"""What the tests of every domain's recipes and ablations share."""

from __future__ import annotations

import re
from importlib import resources

import torch
from hydra import compose, initialize_config_module
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser

from frozenllm.core import BlockRecord, BlockSpec, LLMBlock

SMALL_SPEC = {"hidden_size": 32, "num_heads": 2, "num_kv_heads": 2, "head_dim": 16, "intermediate_size": 48}
SPEC = "{hidden_size: 32, num_heads: 2, num_kv_heads: 2, head_dim: 16, intermediate_size: 48}"
"""`SMALL_SPEC` as an override."""
LLAMA_7B = (
    "{hidden_size: 4096, num_heads: 32, num_kv_heads: 32, head_dim: 128, intermediate_size: 11008, norm_eps: 1e-6}"
)
SMALL_BLOCK = [f"+llm.spec={SPEC}", "llm.kind=random", "llm.dtype=null"]
"""A small block in the large one's place: the recipe's other choices stay."""


def names(config: str, group: str) -> list[str]:
    """Choices of a config group, without the shared parts.

    Args:
        config: Package with the config files.
        group: Its folder.
    """
    files = (file.name for file in (resources.files(config) / group).iterdir())
    return sorted(name.removesuffix(".yaml") for name in files if name.endswith(".yaml") and not name.startswith("_"))


def sweep(config: str, ablation: str, *overrides: str) -> list[list[str]]:
    """The overrides of every job of an ablation, as Hydra's sweeper splits them."""
    with initialize_config_module(config, version_base="1.3"):
        cfg = compose("config", overrides=[f"ablation={ablation}"], return_hydra_config=True)
    assert str(cfg.hydra.mode) == "RunMode.MULTIRUN"
    params = [f"{key}={value}" for key, value in cfg.hydra.sweeper.params.items()]
    parsed = OverridesParser.create().parse_overrides([*params, f"ablation={ablation}", *overrides])
    return BasicSweeper.split_arguments(parsed, None)[0]


def toy_line(config: str, ablation: str) -> list[str]:
    """The overrides that an ablation's file names for the toy data."""
    text = (resources.files(config) / "ablation" / f"{ablation}.yaml").read_text()
    found = re.search(r"^# Toy data: (.+)$", text, flags=re.MULTILINE)
    assert found, f"{ablation}.yaml has no line for the toy data"
    return found[1].split(" ")


def block_without_weights(spec: BlockSpec, *args: object, **kwargs: object) -> LLMBlock:
    """In the place of `frozenllm.core.build.random_block`: a block of any size, on the meta device."""
    tensors = {name: torch.empty(shape, device="meta") for name, shape in spec.tensor_shapes().items()}
    record = BlockRecord(source="test", revision=None, layers=(31,), dtype="float32", sha256="0" * 64)
    return LLMBlock([spec], [tensors], {}, record, device="meta")
