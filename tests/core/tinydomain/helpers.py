"""Running the tiny domain, in this process or in one of its own."""

import json
import sys
from pathlib import Path
from typing import Any

import torch
from training_tools import trained

from frozenllm.core.training import RunResult
from tinydomain.train import CONFIG


def run(folder: Path, *overrides: str) -> RunResult:
    """Train in this process, see `training_tools.trained`."""
    return trained(CONFIG, f"runs={folder}", "runtime.plots=false", *overrides)


def command(folder: Path, *overrides: str) -> list[str]:
    """The command line that `run` stands for."""
    return [sys.executable, "-m", "tinydomain.train", f"runs={folder}", *overrides]


def read(path: Path) -> dict[str, Any]:
    """A checkpoint, read the safe way."""
    return torch.load(path, weights_only=True)


def history(run_dir: str | Path) -> list[dict[str, Any]]:
    """Lines of metrics.jsonl without what the clock wrote."""
    lines = [json.loads(line) for line in (Path(run_dir) / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if not k.endswith("_seconds")} for line in lines]


def assert_same(a: Any, b: Any, where: str = "") -> None:
    """Equal bit for bit, through dicts and lists."""
    assert type(a) is type(b), f"{where}: {type(a)} against {type(b)}"
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b), where
    elif isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for key in a:
            assert_same(a[key], b[key], f"{where}/{key}")
    elif isinstance(a, list | tuple):
        assert len(a) == len(b), where
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_same(x, y, f"{where}/{i}")
    else:
        assert a == b, where
