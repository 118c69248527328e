"""One table over all domains: the host, the official formulation of the frozen layer, and this project's.

    python benchmarks/domains.py --json runs/bench/domains.json --markdown runs/bench/domains.md    # minutes
    python benchmarks/domains.py --tiny                                                             # does it run?

Hosts have the paper's sizes, the block LLaMA-7B's; weights and inputs are made up (speed does not depend on them). A
step is forward and backward. "Official" computes every token through the block, as the official code does (dense), and
keeps the block in its checkpoints; "ours" takes the exact shortcuts. The arms take turns, and times are given relative
to the host within one turn. Memory is the peak above what model and inputs take, each arm in a process of its own. Data
is what the domain's toy set gives through its real reader and transforms, in one process.
"""

from __future__ import annotations

import argparse
import io
import multiprocessing
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from common import LLAMA_7B, TINY_BLOCK, peak_bytes, ratio, take_turns, write_figures
from torch import Tensor, nn

ARMS = ("host", "official", "ours")
READ = 1.0  # seconds of reading samples

Step = Callable[[], Tensor]


@dataclass(frozen=True)
class Case:
    """A host with inputs.

    Attributes:
        name: In the table.
        package: Whose configs name the toy data.
        build: From ``tiny`` and the config group ``llm`` to the model and a function that gives its outputs' loss.
    """

    name: str
    package: str
    build: Callable[[bool, Any], tuple[nn.Module, Step]]


def vision2d(tiny: bool, llm: Any) -> tuple[nn.Module, Step]:
    from frozenllm.vision2d.train import build_vit

    sizes = {"img_size": 32, "embed_dim": 24, "num_heads": 2, "depth": 2} if tiny else {}
    model = build_vit("vit_small_patch16_224_frozenllm", llm=llm, **sizes)
    images = torch.randn(2 if tiny else 8, 3, 32 if tiny else 224, 32 if tiny else 224)
    return model, lambda: model(images).square().mean()


def video(tiny: bool, llm: Any) -> tuple[nn.Module, Step]:
    from frozenllm.video.train import build_videomae

    sizes = {"image_size": 32, "hidden_size": 24, "num_attention_heads": 2, "num_hidden_layers": 2} if tiny else {}
    sizes |= {"intermediate_size": 48, "num_frames": 4} if tiny else {}
    model = build_videomae(num_classes=174, llm=llm, **sizes)
    clips = torch.randn(1, 4 if tiny else 16, 3, 32 if tiny else 224, 32 if tiny else 224)
    return model, lambda: model(clips).square().mean()


def pointcloud(tiny: bool, llm: Any) -> tuple[nn.Module, Step]:
    from frozenllm.pointcloud import PointBERT

    model = PointBERT(num_groups=8 if tiny else 64, llm=llm)
    clouds = torch.randn(2 if tiny else 8, 128 if tiny else 1024, 3)
    return model, lambda: model(clouds).square().mean()


def motion(host: str) -> Callable[[bool, Any], tuple[nn.Module, Step]]:
    def build(tiny: bool, llm: Any) -> tuple[nn.Module, Step]:
        from frozenllm.motion.models import MMTransformer, VectorNet
        from frozenllm.motion.task import MotionTask
        from frozenllm.motion.testing import random_inputs

        model = {"VectorNet": VectorNet, "mmTransformer": MMTransformer}[host](30, llm=llm)
        task, batch = MotionTask(model), 2 if tiny else 32
        inputs = random_inputs(batch, *((4, 6) if tiny else (20, 80)), full=True)
        targets = {"future": torch.randn(batch, 30, 2).cumsum(1), "valid": torch.ones(batch, 30, dtype=torch.bool)}
        return task, lambda: torch.stack(list(task(inputs, targets, mode="loss").values())).sum()

    return build


def vqa(tiny: bool, llm: Any) -> tuple[nn.Module, Step]:
    from frozenllm.vqa.meter import build_vqa

    small = {"hidden_size": 24, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = {"vocab_size": 50265, "max_position_embeddings": 514, "type_vocab_size": 1, "pad_token_id": 1}
    image, fusion = {"patch_size": 32}, {}
    if tiny:
        image, text = {**small, "image_size": 32, "patch_size": 16}, {**text, **small, "vocab_size": 100}
        fusion = {"width": 24, "heads": 2, "layers": 1}
    model = build_vqa(answers=3129, llm=llm, image_encoder=image, text_encoder=text, **fusion)
    batch, side = (2, 32) if tiny else (4, 224)
    pixels, words = torch.randn(batch, 3, side, side), torch.randint(3, 90, (batch, 18))
    mask = torch.ones_like(words, dtype=torch.bool)
    return model, lambda: model(pixels, words, mask).square().mean()


CASES = {
    "vision2d": Case("ViT-S/16, 224 px, 8 images", "frozenllm.vision2d", vision2d),
    "video": Case("VideoMAE ViT-S, 1 clip of 16 frames", "frozenllm.video", video),
    "pointcloud": Case("Point-BERT, 8 clouds of 1024 points", "frozenllm.pointcloud", pointcloud),
    "vectornet": Case("VectorNet, 32 scenes of 100 polylines", "frozenllm.motion", motion("VectorNet")),
    "mmtransformer": Case("mmTransformer, 32 scenes of 100 polylines", "frozenllm.motion", motion("mmTransformer")),
    "vqa": Case("METER, CLIP B/32 and RoBERTa, 4 questions", "frozenllm.vqa", vqa),
}


def make(case: str, arm: str, tiny: bool) -> tuple[nn.Module, Step]:
    """The model of an arm in training mode, and its forward pass up to a loss."""
    torch.manual_seed(0)
    block = {"kind": "random", "spec": TINY_BLOCK if tiny else LLAMA_7B, "seed": 0}
    llm = {"host": None, "official": {**block, "exact": "dense"}, "ours": block}[arm]
    model, loss = CASES[case].build(tiny, llm)
    return model.train(), loss


def step(model: nn.Module, loss: Step) -> None:
    """Forward and backward."""
    model.zero_grad()
    loss().backward()


def memory(case: str, arm: str, tiny: bool, threads: int) -> dict[str, int]:
    """Bytes of one step at its peak above model and inputs, and of a checkpoint; in a process of its own."""
    torch.set_num_threads(threads)
    model, loss = make(case, arm, tiny)
    peak = peak_bytes(partial(step, model, loss))
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    blocks = sum(b.nbytes for name, b in model.named_buffers() if name not in model.state_dict() and "block" in name)
    return {"peak": peak, "checkpoint": file.tell() + (blocks if arm == "official" else 0)}


def samples_per_second(package: str) -> float:
    """What one process reads of the toy training data."""
    import importlib

    from frozenllm.core.training import DATASETS, compose_config

    importlib.import_module(f"{package}.train")
    data = DATASETS.build(dict(compose_config(f"{package}.conf", []).data.train))
    data[0]  # opens files
    start, count = time.perf_counter(), 0
    while time.perf_counter() - start < READ:
        data[count % len(data)]
        count += 1
    return count / (time.perf_counter() - start)


def measure(case: str, turns: int, tiny: bool) -> dict[str, Any]:
    """One row."""
    spawn = multiprocessing.get_context("spawn")
    sizes = {}
    for arm in ARMS:
        with spawn.Pool(1) as pool:
            sizes[arm] = pool.apply(memory, (case, arm, tiny, torch.get_num_threads()))
    seconds = take_turns({arm: partial(step, *make(case, arm, tiny)) for arm in ARMS}, turns)
    relative = {arm: ratio(seconds[arm], seconds["host"]) for arm in ARMS}
    return {
        "host": CASES[case].name,
        "seconds": seconds,
        "relative": relative,
        "peak_bytes": {arm: sizes[arm]["peak"] for arm in ARMS},
        "checkpoint_bytes": {arm: sizes[arm]["checkpoint"] for arm in ARMS},
        "samples_per_second": samples_per_second(CASES[case].package),
    }


def markdown(rows: list[dict[str, Any]]) -> str:
    """The table; peak and checkpoint are those of host / official / ours."""
    heads = ["host", "its step", "official", "ours", "peak, MiB", "checkpoint, MiB", "samples/s"]
    lines = [f"| {' | '.join(heads)} |", f"|{'---|' * len(heads)}"]
    for row in rows:
        mib = {key: [f"{row[key][arm] / 2**20:.0f}" for arm in ARMS] for key in ("peak_bytes", "checkpoint_bytes")}
        cells = [
            row["host"],
            f"{statistics.median(row['seconds']['host']):.3f} s",
            *(f"{row['relative'][arm]:.2f} x" for arm in ARMS[1:]),
            *(" / ".join(mib[key]) for key in ("peak_bytes", "checkpoint_bytes")),
            f"{row['samples_per_second']:.0f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=list(CASES), choices=list(CASES), help="some of the rows")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--tiny", action="store_true", help="tiny sizes: only to see that it runs")
    parser.add_argument("--json", type=Path, help="write the figures there")
    parser.add_argument("--markdown", type=Path, help="write the table there")
    options = parser.parse_args()
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, CPU, float32", flush=True)
    rows = []
    for case in options.only:
        rows.append(measure(case, 1 if options.tiny else options.turns, options.tiny))
        print(markdown(rows[-1:]) if len(rows) == 1 else markdown(rows[-1:]).splitlines()[-1], flush=True)
    write_figures(options.json, rows, tiny=options.tiny)
    if options.markdown:
        options.markdown.parent.mkdir(parents=True, exist_ok=True)
        options.markdown.write_text(markdown(rows) + "\n")


if __name__ == "__main__":
    main()
