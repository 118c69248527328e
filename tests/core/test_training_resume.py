"""A run that was killed and resumed ends with the same bits as one that was not."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
import torch
from processes import call
from tinydomain.helpers import assert_same, command, history, read, run

# Dropout, augmentation from three generators, random batch transform, moving average, warm-up: all that draws, counts.
COMMON = [
    "model.type=Dying",
    "+task.batch_transform.type=Mix",
    "optim.ema={decay:0.9,evaluate:ema}",
    "optim.clip_grad=1.0",
    "runtime.checkpoint.every_iters=5",
]
CASES = {
    # Where it dies (in epoch 2 of 3, of 12 iterations each) and from where it goes on.
    "in_process_accumulating": (["optim.accumulate=2", "model.norm=batch", "data.repeats=3"], 20, 16),
    "two_workers": (["runtime.workers=2"], 23, 20),
}


@pytest.mark.parametrize("case", CASES)
def test_killed_and_resumed_equals_uninterrupted(case: str, tmp_path: Path) -> None:
    overrides, dies_at, resumes_at = CASES[case]
    overrides = [*COMMON, *overrides]
    killed = call(command(tmp_path, *overrides, "name=killed"), tmp_path, DIE_AT=str(dies_at))
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    folder = tmp_path / "tiny" / "killed"
    assert read(folder / "checkpoints" / "last.pt")["meta"]["iter"] == resumes_at
    assert not (folder / "summary.json").exists()

    resumed = run(tmp_path, *overrides, "name=killed", "resume=true")
    # Workers change nothing: the run without interruption has none.
    whole = run(tmp_path, *overrides, "name=whole", "runtime.workers=0")

    assert resumed.finished
    assert resumed.iterations == whole.iterations == 36
    assert resumed.metrics == whole.metrics
    assert history(resumed.run_dir) == history(whole.run_dir)
    ends = [read(Path(result.run_dir) / "checkpoints" / "last.pt") for result in (resumed, whole)]
    for end in ends:
        del end["meta"]["config"]
    assert_same(*ends)
    assert len(ends[0]["optimizer"]["state"]) > 5
    assert not any(torch.equal(value, ends[0]["state_dict"][name]) for name, value in ends[0]["ema"].items())


def test_stop_after_and_resume_equals_uninterrupted(tmp_path: Path) -> None:
    part = run(tmp_path, "name=parts", "runtime.stop_after=4")
    assert (part.finished, part.iterations, part.metrics) == (False, 4, {})
    part = run(tmp_path, "name=parts", "resume=true", "runtime.stop_after=8")  # the end of an epoch
    assert (part.finished, part.iterations, part.epochs) == (False, 12, 1)
    assert "accuracy/top1" in part.metrics
    parts = run(tmp_path, "name=parts", "resume=true")
    whole = run(tmp_path, "name=whole")
    ends = [read(Path(result.run_dir) / "checkpoints" / "last.pt") for result in (parts, whole)]
    assert_same(ends[0]["state_dict"], ends[1]["state_dict"])
    assert_same(ends[0]["optimizer"], ends[1]["optimizer"])
    assert parts.best == whole.best
    # A finished run that is resumed trains no further and still knows its figures.
    again = run(tmp_path, "name=parts", "resume=true")
    assert (again.finished, again.iterations, again.metrics) == (True, 36, parts.metrics)


def test_resume_with_another_batch_or_seed_is_refused(tmp_path: Path) -> None:
    run(tmp_path, "name=a", "runtime.stop_after=2")
    with pytest.raises(ValueError, match="batch_size=8, this run has 4"):
        run(tmp_path, "name=a", "resume=true", "data.batch_size=4")
    with pytest.raises(ValueError, match=r"runtime\.seed=0, this run has 5"):
        run(tmp_path, "name=a", "resume=true", "runtime.seed=5")
    with pytest.raises(ValueError, match=r"has no moving average.*optim.ema=null"):
        run(tmp_path, "name=a", "resume=true", "optim.ema={decay:0.9,evaluate:raw}")


def test_damaged_checkpoint_is_one_sentence(tmp_path: Path) -> None:
    part = run(tmp_path, "name=a", "runtime.stop_after=2")
    newest = Path(part.run_dir) / "checkpoints" / "iter_00000002.pt"
    newest.write_bytes(newest.read_bytes()[:1000])
    with pytest.raises(ValueError, match=r"iter_00000002.pt cannot be read as a checkpoint"):
        run(tmp_path, "name=a", "resume=true")
