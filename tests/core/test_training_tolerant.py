"""Broken samples: the policy, what is counted and logged, and what the metrics make of stand-ins."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest
import torch
from tinydomain.helpers import run
from tinydomain.train import CONFIG
from torch.utils.data import DataLoader

from frozenllm.core.training import (
    DATASETS,
    UNREADABLE,
    Accuracy,
    BrokenSample,
    CrossEntropy,
    TolerantDataset,
    compose_config,
    evaluate,
    run_cli,
)
from frozenllm.core.training.journal import Journal


class Numbers(TolerantDataset):
    """0, 1, 2, ... of which some are broken."""

    def __init__(self, size: int, broken: set[int], **options: object) -> None:
        super().__init__(size, **options)
        self.broken = broken

    def read(self, index: int) -> tuple[int, int]:
        if index in self.broken:
            raise BrokenSample(f"number {index} is broken.")
        if index == 99:
            raise RuntimeError("a mistake in the program")
        return index, index

    def placeholder(self, index: int) -> tuple[int, int]:
        return -5, UNREADABLE


@pytest.mark.parametrize("workers", [0, 2])
def test_training_takes_the_next_readable_sample(workers: int) -> None:
    data = Numbers(6, {2, 3, 5}, train=True, on_error="skip")
    for _ in range(2):
        values = torch.cat([x for x, _ in DataLoader(data, batch_size=2, num_workers=workers)]).tolist()
        assert values == [0, 1, 4, 4, 4, 0]
    assert data.num_unreadable == 3


def test_evaluation_has_stand_ins_that_are_counted_and_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    data = Numbers(4, {1}, on_error="skip")
    for _ in range(2):
        assert [data[i] for i in range(4)] == [(0, 0), (-5, UNREADABLE), (2, 2), (3, 3)]
    assert data.num_unreadable == 1
    assert [record.getMessage() for record in caplog.records] == ["Skipped a sample: number 1 is broken."]


def test_it_can_be_looped_over() -> None:
    assert [x for x, _ in Numbers(3, {1}, train=True, on_error="skip")] == [0, 2, 2]


def test_raising_is_the_default_and_other_errors_are_not_the_policys() -> None:
    with pytest.raises(BrokenSample, match=r"number 1 is broken; repair or remove it, or set on_error to skip\.$"):
        Numbers(4, {1}, train=True)[1]
    with pytest.raises(BrokenSample, match=r"3 samples in a row cannot be read; the last one: number 0 is broken"):
        Numbers(3, {0, 1, 2}, train=True, on_error="skip")[1]
    with pytest.raises(RuntimeError, match="mistake"):
        Numbers(100, set(), on_error="skip")[99]
    with pytest.raises(ValueError, match="on_error must be raise or skip, not 'ignore'"):
        Numbers(3, set(), on_error="ignore")


@pytest.mark.parametrize("kind", [Accuracy, CrossEntropy])
def test_metrics_leave_stand_ins_out(kind: type) -> None:
    scores, targets = torch.randn(6, 3), [0, UNREADABLE, 2, 1, UNREADABLE, 0]
    samples = [{"scores": s, "target": t} for s, t in zip(scores, targets, strict=True)]
    metric, reference = kind(), kind()
    for part in (samples[:2], samples[2:4], samples[4:5], samples[5:]):
        metric.process(None, part)
    reference.process(None, [sample for sample in samples if sample["target"] != UNREADABLE])
    expected = reference.evaluate(4)
    (name,) = expected
    assert metric.evaluate(6) == {**expected, f"{name.partition('/')[0]}/unreadable": 2.0}
    metric.process(None, samples[1:2])
    with pytest.raises(ValueError, match="Not one sample of the evaluated data could be read"):
        metric.evaluate(1)


class Broken(TolerantDataset):
    """Nothing but broken samples."""

    def __init__(self, size: int, **options: object) -> None:
        super().__init__(size)

    def read(self, index: int) -> tuple[int, int]:
        raise BrokenSample("sample.bin is empty.")


DATASETS.register_module("Broken", module=Broken)


@pytest.mark.parametrize("workers", [0, 1])
def test_the_command_line_names_the_broken_sample(
    tmp_path: Path, capfd: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    """The sentence comes alone, also through torch's loader."""
    monkeypatch.setattr(sys, "argv", ["train"])
    threads = torch.get_num_threads()
    with pytest.raises(SystemExit) as exit_info:
        run_cli(
            CONFIG,
            [
                f"runs={tmp_path}",
                "runtime.console=false",
                "runtime.plots=false",
                f"runtime.workers={workers}",
                "data.train.type=Broken",
            ],
        )
    torch.set_num_threads(threads)
    assert exit_info.value.code == 1
    expected = "sample.bin is empty; repair or remove it, or set on_error to skip."
    assert capfd.readouterr().err.strip() == f"error: Sample 26 of the training data: {expected}"


TEST_SET = "data.test={type: Points, size: 40, seed: 5}"


def test_the_test_set_is_evaluated_after_the_last_epoch(tmp_path: Path) -> None:
    part = run(tmp_path, "name=a", TEST_SET, "runtime.stop_after=3")
    assert part.test == {}
    result = run(tmp_path, "name=a", TEST_SET, "resume=true")
    whole = run(tmp_path, "name=b", TEST_SET)
    assert result.test == whole.test
    assert result.test.keys() == {"accuracy/top1"}
    assert json.loads((tmp_path / "tiny/a/summary.json").read_text())["test"] == result.test
    common = [f"runs={tmp_path}", "name=b", "runtime.console=false", "runtime.plots=false", "runtime.threads=1"]
    again = evaluate(compose_config(CONFIG, [*common, TEST_SET, "split=test"]))
    assert again == whole.test
    with pytest.raises(ValueError, match=r"split=test needs data\.test"):
        evaluate(compose_config(CONFIG, [*common, "split=test"]))
    with pytest.raises(ValueError, match="split must be val or test, not 'train'"):
        evaluate(compose_config(CONFIG, [*common, "split=train"]))


def test_the_test_set_with_the_best_average(tmp_path: Path) -> None:
    """Where averages are evaluated, those of the best checkpoint are tested: what evaluating that file gives."""
    averaged = ["schedule.warmup_epochs=0", TEST_SET, "schedule.epochs=2", "optim.ema={decay:0.5,evaluate:ema}"]
    averaged += ["metrics_test=[{type: CrossEntropy}]", "best=accuracy/top1", "best_mode=min", "test_checkpoint=best"]
    result = run(tmp_path, "name=a", *averaged)
    assert result.best["epoch"] == 1
    file = Path(result.run_dir) / "checkpoints" / "best.pt"
    common = [f"runs={tmp_path}", "name=a", "runtime.console=false", "runtime.plots=false", "runtime.threads=1"]
    alone = evaluate(compose_config(CONFIG, [*common, *averaged, "split=test", f"checkpoint={file}"]))
    assert alone == result.test


def test_the_test_set_with_the_best_weights(tmp_path: Path) -> None:
    """A learning rate that destroys the model after the first epoch: the best weights are an earlier epoch's."""
    spoil = ["schedule.warmup_epochs=0", "optim.lr=0.01", TEST_SET, "schedule.epochs=2"]
    metrics = "metrics_test=[{type: CrossEntropy}]"
    best = run(tmp_path, "name=best", *spoil, metrics, "best=accuracy/top1", "best_mode=min", "test_checkpoint=best")
    first = run(tmp_path, "name=first", *spoil, metrics, "test_checkpoint=last")
    assert best.test.keys() == {"cross_entropy/mean"}
    assert best.best["epoch"] == 1
    assert best.test != first.test
    with pytest.raises(ValueError, match="The data set for test is empty"):
        run(tmp_path, "name=c", "data.test={type: Points, size: 0}")
    assert not (tmp_path / "tiny" / "c" / "metrics.jsonl").exists()  # before the first step
    with pytest.raises(ValueError, match="test_checkpoint must be last or best"):
        run(tmp_path, "name=c", TEST_SET, "test_checkpoint=first")


def test_long_evaluations_say_how_far_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build = Journal.__init__
    monkeypatch.setattr(Journal, "__init__", lambda self, **options: build(self, **options, val_line_every_seconds=0.0))
    folder = Path(
        run(
            tmp_path, "name=a", TEST_SET, "schedule.epochs=1", "schedule.warmup_epochs=0", "data.val_batch_size=8"
        ).run_dir
    )
    log = (folder / "train.log").read_text()
    assert re.search(r"  val  1/\d+  left [\d:]+\n", log)
    assert re.search(r"  test  4/5  left [\d:]+\n", log)
    assert "test  5/5" not in log
