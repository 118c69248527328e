"""Run folders made by hand, for the tests of reports."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from PIL import Image

from frozenllm.core.analysis.study import Finding, Frame, Mark, Sample, Study, grid_marks
from frozenllm.core.record import BlockRecord
from frozenllm.core.training.checkpoint import FORMAT, RECORD_KEY, write_checkpoint

METRIC = "accuracy/top1"
EPOCHS = 3


def write_run(folder: Path, value: float, kind: str = "none", seed: int = 0, layer: int = 5, **changes: Any) -> Path:
    """A finished run: config, figures of every epoch, summary, environment, and a checkpoint with the block's record.

    Args:
        folder: Its folder.
        value: Its last validation; the loss goes from 2 to 1.
        kind: ``llm.kind``.
        seed: Its seed.
        layer: Of the block.
        changes: ``config`` and ``summary``: entries to change.
    """
    config = {
        "name": folder.name, "recipe": "tiny", "imports": ["nodomain.train"], "best": METRIC, "best_mode": "max",
        "llm": {"name": kind, "kind": kind, "layers": [layer]}, "runtime": {"seed": seed},
        "data": {"train": {"type": "Points"}, "val": {"type": "Points"}, "batch_size": 8}, "model": {"type": "Host"},
        **changes.get("config", {}),
    }  # fmt: skip
    summary = {
        "run_dir": str(folder), "seed": seed, "metrics": {config["best"]: value}, "test": {}, "trainable": 1234,
        "best": {"metric": config["best"], "value": value + 1, "epoch": 2, "iter": 20}, "epochs": EPOCHS,
        "frozen": 0 if kind == "none" else 5678, "iterations": 30, "step_seconds": 0.01 if kind == "none" else 0.013,
        "flops": 2.5e9, "dense_flops": 4e9, "latency": 0.02, "seconds": 9.0, "finished": True,
        **changes.get("summary", {}),
    }  # fmt: skip
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    (folder / "summary.json").write_text(json.dumps(summary))
    lines = []
    for epoch in range(1, EPOCHS + 1):
        lines += [{"kind": "train", "epoch": epoch, "iter": 10 * epoch, "loss": 2 - (epoch - 1) / (EPOCHS - 1)}]
        lines += [{"kind": "val", "epoch": epoch, "iter": 10 * epoch, config["best"]: value - EPOCHS + epoch}]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    environment = {
        "python": "3.11.1", "platform": "Linux", "processor": "x86_64", "threads": 1, "gpus": [],
        "packages": {"torch": "2.12.1"}, "command": ["train.py", "llm=" + kind],
    }  # fmt: skip
    (folder / "environment.json").write_text(json.dumps(environment))
    state = {"model.head.weight": torch.zeros(2, 2)}
    if kind not in ("none", "mlp"):
        record = BlockRecord("org/model", "abc123", (layer,), "float16", f"{layer:064x}")
        state[f"model.llm.block.{RECORD_KEY}"] = record.to_tensor()
    write_checkpoint({"format": FORMAT, "meta": {}, "state_dict": state}, folder / "checkpoints" / "last.pt")
    return folder


def picture(seed: int, size: tuple[int, int] = (32, 24)) -> Image.Image:
    """Noise of a colour of its own."""
    noise = np.random.default_rng(seed).integers(0, 80, (size[1], size[0], 3))
    return Image.fromarray((noise + [[[40 * (seed % 4), 90, 160]]]).clip(0, 255).astype(np.uint8))


def make_study(seed: int, taps: tuple[str, ...] = ("host", "adapter_out"), answer: str = "") -> Study:
    """A picture of 12 tokens, a clip of 3 frames, points and lines; activations that only the seed determines."""
    drawn = np.random.default_rng(seed)

    def activations(count: int) -> dict[str, list[float]]:
        return {f"{kind} at {tap}": _spread(drawn, count) for kind in ("magnitude", "frequency") for tap in taps}

    places = np.random.default_rng(7).random((9, 2)) * 0.8
    points = [Mark("point", (float(x), float(y)), i) for i, (x, y) in enumerate(places)]
    lines = [Mark("line", (float(x), float(y), float(x) + 0.1, float(y), float(x) + 0.1, float(y) + 0.2), i)
             for i, (x, y) in enumerate(places)]  # fmt: skip
    clip = [Frame(picture(20 + i), grid_marks(2, 2, 4 * i), f"frame {i}") for i in range(3)]
    samples = [
        Sample(f"picture{answer}", [Frame(picture(1), grid_marks(3, 4))], activations(12), [i < 4 for i in range(12)]),
        Sample(f"clip{answer}", clip, activations(12), [i % 2 == 0 for i in range(12)]),
        Sample(f"points{answer}", [Frame(picture(3), points)], activations(9)),
        Sample(f"lines{answer}", [Frame(picture(4), lines)], activations(9), [i > 6 for i in range(9)]),
    ]
    findings = [
        Finding("IoU, honest threshold", 40.0 + seed, tap, "magnitude", 38.0, 43.0, 25.0, "%", 64) for tap in taps
    ]
    return Study("What is active", "nodomain", findings, samples, ["A token is a tile."], {"By depth": picture(9)})


def _spread(drawn: np.random.Generator, count: int) -> list[float]:
    values = drawn.random(count)
    return ((values - values.min()) / (values.max() - values.min())).tolist()


def three_arms(folder: Path, studies: bool = True) -> Path:
    """Host, frozen block and random block with two seeds each; the first seed of each is studied."""
    values = {"host": ("none", 80.0, 82.0), "frozen": ("pretrained", 90.0, 91.0), "random": ("random", 85.0, 89.0)}
    for place, (name, (kind, *per_seed)) in enumerate(values.items()):
        for seed, value in enumerate(per_seed):
            run = write_run(folder / name / f"seed{seed}", value, kind, seed)
            if studies and seed == 0:
                taps = ("host",) if kind == "none" else ("host", "adapter_out")
                make_study(place, taps, f", read by {name}").save(run)
    return folder
