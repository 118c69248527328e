"""A run that is killed again and again leaves what an undisturbed one leaves; at volume: `benchmarks/faults.py`."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest
import torch
from tinydomain.helpers import run

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
QUIET = ["runtime.console=false", "runtime.plots=false"]


@pytest.fixture
def faults(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The benchmark's script, as a module."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import faults

    return faults


def test_killed_at_random_and_in_the_writing_of_checkpoints(faults: ModuleType, tmp_path: Path) -> None:
    everything = ["+task.batch_transform.type=Mix", "optim.ema={decay:0.9,evaluate:ema}", "data.train.slow=0.003"]
    everything += ["runtime.checkpoint.every_iters=2", "data.test={type: Points, size: 24, seed: 5}"]
    outcome = faults.torture("tiny", "tinydomain.train", [*everything, *QUIET], kills=2, runs=tmp_path)
    assert outcome.differences == []
    assert outcome.kills == 2
    assert outcome.writing > 0
    assert outcome.iterations == 36


def test_the_comparison_sees_a_single_bit(faults: ModuleType, tmp_path: Path) -> None:
    run(tmp_path, "name=a", "schedule.epochs=2")
    left = faults.left(tmp_path / "tiny" / "a")
    assert list(faults.differences(left, faults.left(tmp_path / "tiny" / "a"), "a")) == []
    other = faults.left(tmp_path / "tiny" / "a")
    other["last"]["state_dict"]["model.head.bias"].view(torch.int32)[0] ^= 1
    other["history"].append(other["history"][-1])
    other["summary"]["best"]["value"] += 1.0
    assert sorted(text.split(":")[0] for text in faults.differences(left, other, "a")) == [
        "a/history", "a/last/state_dict/model.head.bias", "a/summary/best/value"
    ]  # fmt: skip


def test_the_table(faults: ModuleType) -> None:
    outcomes = [faults.Outcome("a", 5, 2, 1, 30), faults.Outcome("b", 7, 3, 2, 20, ["b/killed1/last"])]
    assert faults.table(outcomes).splitlines()[2:] == [
        "| a | 30 | 5 | 2 | 1 | 0 |", "| b | 20 | 7 | 3 | 2 | 1 |", "| all | 50 | 12 | 5 | 3 | 1 |"
    ]  # fmt: skip
