"""A run that is killed again and again leaves what an undisturbed one leaves; at volume: `benchmarks/faults.py`."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import signal
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from tinydomain.helpers import run

from frozenllm.core.training import checkpoint as files

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
QUIET = ["runtime.console=false", "runtime.plots=false"]


@pytest.fixture
def faults(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The benchmark's script, as a module."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import faults

    return faults


def test_killed_at_random_and_about_the_writing_of_checkpoints(faults: ModuleType, tmp_path: Path) -> None:
    everything = ["+task.batch_transform.type=Mix", "optim.ema={decay:0.9,evaluate:ema}", "data.train.slow=0.003"]
    everything += ["runtime.checkpoint.every_iters=2", "data.test={type: Points, size: 24, seed: 5}"]
    outcome = faults.torture("tiny", "tinydomain.train", [*everything, *QUIET], kills=2, runs=tmp_path)
    assert outcome.differences == []
    assert outcome.kills == 2
    assert outcome.iterations == 36


@pytest.mark.parametrize("where", ["half written", "not yet renamed", "not yet linked"])
def test_killed_inside_the_writing_of_a_checkpoint(where: str, tmp_path: Path, faults: ModuleType) -> None:
    """At a chosen moment of the second checkpoint; then resumed."""
    saving = ["optim.ema={decay:0.9,evaluate:ema}", "runtime.checkpoint.every_iters=5", *QUIET]
    run(tmp_path, "name=whole", *saving)
    context = multiprocessing.get_context("fork")
    child = context.Process(target=_die, args=(where, tmp_path, saving))
    child.start()
    child.join()
    assert child.exitcode == -signal.SIGKILL
    assert faults.in_writing(tmp_path / "tiny" / "a" / "checkpoints") == (where != "not yet linked")
    assert run(tmp_path, "name=a", "resume=true", *saving).finished
    left = [faults.left(tmp_path / "tiny" / name) for name in ("a", "whole")]
    assert list(faults.differences(*left, where)) == []


def _die(where: str, runs: Path, saving: list[str]) -> None:
    """Train, and be killed in the second checkpoint."""
    function = {"half written": "save", "not yet renamed": "place", "not yet linked": "link_checkpoint"}[where]
    module, count = torch if function == "save" else files, itertools.count(1)
    plain = getattr(module, function)

    def killed(*args: Any) -> None:
        if next(count) < (4 if function == "link_checkpoint" else 2):  # the first checkpoint has last.pt and best.pt
            return plain(*args)
        if function == "save":
            args[1].write(b"half of it")
            args[1].flush()
        os.kill(os.getpid(), signal.SIGKILL)

    setattr(module, function, killed)
    run(runs, "name=a", *saving)


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
