"""Samples, workers and losses that fail: named in one sentence, with the checkpoint to go on from."""

from __future__ import annotations

import gc
import json
import logging
import multiprocessing
import re
import time
from pathlib import Path

import pytest
import torch
from tinydomain.helpers import assert_same, history, read, run
from tinydomain.train import CONFIG

from frozenllm.core.training import BrokenSample, compose_config, evaluate, run_cli
from frozenllm.core.training.data import EpochSampler, SeededDataset
from frozenllm.core.training.faults import RunStopped

IMPORTS = "imports=[tinydomain.train,tinydomain.faults]"
SAVING = "runtime.checkpoint.every_iters=2"


def failing(how: str, part: str = "train", at: int = 50, **options: object) -> list[str]:
    """Overrides: data of which one sample fails."""
    settings = {"type": "Failing", "at": at, "how": how, **options}
    return [IMPORTS, SAVING, *(f"++data.{part}.{key}={value}" for key, value in settings.items())]


def comes_in(index: int) -> int:
    """The iteration of the first epoch, counted from 1, that a sample of `failing` belongs to."""
    order = [key[1] for key in EpochSampler(range(96), batch_size=8, drop_last=True).keys(0)]
    return order.index(index) // 8 + 1


def numbered(folder: Path, name: str = "a") -> list[Path]:
    return sorted((folder / "tiny" / name / "checkpoints").glob("iter_*.pt"))


def test_a_worker_that_dies_is_named_with_its_sample(tmp_path: Path) -> None:
    with pytest.raises(RunStopped) as error:
        run(tmp_path, "name=a", "runtime.workers=2", *failing("dies"))
    last = numbered(tmp_path)[-1]
    assert re.fullmatch(
        r"A worker that reads data died \(process \d+ was ended by SIGKILL\) while it read sample 50 of the "
        r"training data \(points/050\.bin\), for lack of memory perhaps \(then fewer runtime\.workers help\): training "
        rf"stopped, and the last good checkpoint is {last}; continue with resume=true\.",
        str(error.value),
    )
    # Mended, the run goes on.
    result = run(tmp_path, "name=a", "resume=true", "schedule.epochs=2", *failing("broken", on_error="skip"))
    assert result.finished


def test_a_worker_that_dies_in_an_evaluation_is_named(tmp_path: Path) -> None:
    run(tmp_path, "name=a", "schedule.epochs=2")
    dying = ["runtime.workers=1", "runtime.console=false", *failing("dies", part="val", at=3)]
    cfg = compose_config(CONFIG, [f"runs={tmp_path}", "name=a", *dying])
    with pytest.raises(RunStopped, match=r"while it read sample 3 of the validation data .*: the evaluation stopped;"):
        evaluate(cfg)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_sample_that_hangs_is_named(workers: int, tmp_path: Path) -> None:
    began = time.monotonic()
    timing = [f"runtime.workers={workers}", "runtime.sample_timeout=0.4"]
    with pytest.raises(BrokenSample) as error:
        run(tmp_path, "name=a", *timing, *failing("hangs"))
    assert (
        "Sample 50 of the training data (points/050.bin): reading took longer than runtime.sample_timeout=0.4 s; "
        "repair or remove it, or set on_error to skip."
    ) in str(error.value)
    assert time.monotonic() - began < 20


def test_a_sample_that_hangs_is_skipped_where_broken_ones_are(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    result = run(tmp_path, "name=a", "runtime.sample_timeout=0.3", "schedule.epochs=2",
                 *failing("hangs", on_error="skip"))  # fmt: skip
    assert result.finished
    assert [r.getMessage() for r in caplog.records if "Skipped" in r.getMessage()] == [
        "Skipped a sample: reading took longer than runtime.sample_timeout=0.3 s."
    ]


def test_a_worker_that_cannot_be_interrupted_is_ended(tmp_path: Path) -> None:
    began = time.monotonic()
    with pytest.raises(RunStopped) as error:
        run(tmp_path, "name=a", "runtime.workers=2", "runtime.sample_timeout=0.3", *failing("hangs_for_good"))
    assert str(error.value).startswith(
        "Reading sample 50 of the training data (points/050.bin) took longer than runtime.sample_timeout=0.3 s, and "
        "did not let go: training stopped, and the last good checkpoint is "
    )
    assert time.monotonic() - began < 20


def test_no_time_limit_and_a_wrong_one() -> None:
    assert SeededDataset([(1, 2)], seed=0, role="val", timeout=None)[0, 0, 0] == {"inputs": 1, "targets": 2}
    with pytest.raises(ValueError, match=r"runtime.sample_timeout must be a positive number of seconds or null, not 0"):
        SeededDataset([(1, 2)], seed=0, role="val", timeout=0)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_mistake_in_the_program_keeps_its_type_and_its_sample_is_logged(
    workers: int, tmp_path: Path, capfd: pytest.CaptureFixture
) -> None:
    handler = logging.StreamHandler()  # pytest's own does not reach out of a worker
    logging.getLogger("frozenllm").addHandler(handler)
    with pytest.raises(KeyError, match="a mistake in the program"):
        run(tmp_path, "name=a", f"runtime.workers={workers}", *failing("mistake"))
    logging.getLogger("frozenllm").removeHandler(handler)
    assert "Reading sample 50 of the training data (points/050.bin) failed." in capfd.readouterr().err


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_loss_that_is_nan_stops_with_step_samples_and_checkpoint(accumulate: int, tmp_path: Path) -> None:
    step = comes_in(50)
    assert step > 2
    with pytest.raises(RunStopped) as error:
        run(tmp_path, "name=a", f"optim.accumulate={accumulate}", *failing("nan"))
    good = numbered(tmp_path)[-1]
    text = str(error.value)
    assert text.startswith(f"The loss is nan in iteration {step} (epoch 1), with the samples ")
    samples = re.findall(r"(\d+) \(points/(\d+)\.bin\)", text)
    assert len(samples) == 8
    assert all(int(index) == int(file) for index, file in samples)
    assert "50" in [index for index, _ in samples]
    assert f"training stopped, and the last good checkpoint is {good}; lower optim.lr" in text
    assert read(good)["meta"]["iter"] == (step - 1) // 2 * 2
    assert all(torch.isfinite(v).all() for v in read(good)["state_dict"].values() if v.is_floating_point())


def test_a_gradient_that_is_nan_does_not_reach_a_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(RunStopped, match=r"The weights are not finite any more by iteration 8 .* were not saved: .*"
                       r"iter_00000006\.pt; lower"):  # fmt: skip
        # The loss of the same iteration is finite, that of the next one is not: the checkpoint comes between them.
        run(tmp_path, "name=a", IMPORTS, SAVING, "model.type=BadGradient", "+model.at=8")
    assert [p.name for p in numbered(tmp_path)] == ["iter_00000004.pt", "iter_00000006.pt"]


def test_the_sentence_is_all_that_a_user_sees(tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    quiet = [f"runs={tmp_path}", "runtime.console=false", "runtime.plots=false"]
    threads = torch.get_num_threads()
    with pytest.raises(SystemExit) as stopped:
        run_cli(CONFIG, [*quiet, "name=a", "runtime.workers=1", *failing("dies")])
    torch.set_num_threads(threads)
    assert stopped.value.code == 1
    lines = capfd.readouterr().err.strip().splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith("error: A worker that reads data died (process ")


def test_runs_with_workers_leave_none_behind_and_say_nothing(tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    """Workers of a later run that find an earlier run's loader in their memory would complain about its processes."""
    gc.collect()
    gc.disable()  # or the earlier loader might be found in time
    try:
        for name in ("a", "b"):
            run(tmp_path, f"name={name}", "runtime.workers=1", "schedule.epochs=2", *failing("collects", size=64))
            assert not multiprocessing.active_children()
    finally:
        gc.enable()
    assert capfd.readouterr().err == ""


def test_resuming_gives_the_last_checkpoint_the_names_it_lacks(tmp_path: Path) -> None:
    """Killed after a checkpoint was written, and before it became last.pt and best.pt."""
    whole = run(tmp_path, "name=whole")
    part = run(tmp_path, "name=a", "runtime.stop_after=24")
    folder = Path(part.run_dir) / "checkpoints"
    newest = numbered(tmp_path)[-1]
    best = read(newest)["best"]
    for name in ("last.pt", "best.pt"):
        (folder / name).unlink()
    (folder / ".last.pt.123.tmp").write_bytes(b"half")
    (folder.parent / ".config.yaml.123.tmp").write_text("half")
    result = run(tmp_path, "name=a", "resume=true")
    assert (folder / "best.pt").exists() == (best["iter"] == 24 or result.best["iter"] > 24)
    assert not [p for p in folder.parent.rglob(".*")]
    assert result.best == whole.best
    if (folder / "best.pt").exists():
        assert_same(
            read(folder / "best.pt")["state_dict"], read(Path(whole.run_dir) / "checkpoints/best.pt")["state_dict"]
        )


def test_a_finished_run_that_is_resumed_tests_again_without_a_second_line(tmp_path: Path) -> None:
    test = "data.test={type: Points, size: 24, seed: 5}"
    first = run(tmp_path, "name=a", "schedule.epochs=2", test)
    lines = history(first.run_dir)
    assert [line["kind"] for line in lines][-2:] == ["val", "test"]
    again = run(tmp_path, "name=a", "schedule.epochs=2", test, "resume=true")
    assert again.test == first.test
    assert history(first.run_dir) == lines
    summary = json.loads((Path(first.run_dir) / "summary.json").read_text())
    assert summary["step_seconds"] == again.step_seconds == first.step_seconds, "no step was made to be timed"
