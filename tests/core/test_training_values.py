"""Typing mistakes on the command line: one sentence that names the key, and nothing left behind."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from tinydomain.helpers import run
from tinydomain.train import CONFIG

from frozenllm.core.training import compose_config, run_cli
from frozenllm.core.training.loop import TrainLoop
from frozenllm.core.training.values import check_values

MISTAKES = {
    "optim.lr=fast": "optim.lr must be a number, not 'fast'",
    "optim.lr=-1": "optim.lr must be positive, not -1",
    "optim.weight_decay=-1": "optim.weight_decay must be a number from 0, not -1",
    "optim.type=Adamm": "torch.optim has no optimizer 'Adamm': check optim.type",
    "optim.betas=[2,3]": "optim: AdamW cannot be made from these options: Invalid beta parameter",
    "optim.accumulate=0": "optim.accumulate must be a whole number from 1",
    "optim.clip_grad=tight": "optim.clip_grad must be a number from 0 or a group of keys or null",
    "optim.ema=0.99": "optim.ema must be a group of keys or null",
    "data=foo": "data must be a group of keys, not 'foo'",
    "data.batch_size=-1": "data.batch_size must be a whole number from 1, not -1",
    "data.batch_size=1.5": "data.batch_size must be a whole number from 1, not 1.5",
    "data.train=null": "data.train must be a group of keys, type among them",
    "schedule.epochs=0": "schedule.epochs must be a whole number from 1, not 0",
    "schedule.warmup_epochs=9": r"The warm-up \(9 epochs\) must be shorter",
    "runtime.workers=two": "runtime.workers must be a number, not 'two'",
    "runtime.seed=-1": "runtime.seed must be a whole number from 0 to 4294967295",
    "runtime.log_interval=0": "runtime.log_interval must be a whole number from 1",
    "runtime.stop_after=0": "runtime.stop_after must be a whole number from 1 or null",
    "runtime.console=maybe": "runtime.console must be true or false",
    "llm.layers=3": r"llm.layers must be a list such as \[3\], not 3",
    "llm.trainable=maybe": "llm.trainable must be true or false",
    "model.dropout=much": "model.dropout must be a number, not 'much'",  # a domain's own key
    "model.dropout=2": r"The model cannot be built from these options \(dropout probability has to be between",
    "+task.label_smoothing=1.5": "task.label_smoothing must be a number from 0 to below 1",
    "metrics=[]": "metrics must be a list of metrics, each with a type",
    "metrics=[{type: Accuracy, topk: [1], k: 1}]": "Accuracy got an unexpected keyword argument 'k': check the keys",
    "best=accuracy/top3": "best=accuracy/top3 is none of the metrics: accuracy/top1; best=null picks none",
    "data.train.type=Pionts": "Pionts is not in the frozenllm::dataset registry: check the type",
    "+data.train.limit=-3": "data.train.limit must be a whole number from 1 or null, not -3",
    "llm.path=": "llm.path must be text that is not empty or null, not ''",
    "llm.source=5": "llm.source must be text that is not empty or null, not 5",
    "optim.betas=[0.9]": "optim: AdamW cannot be made from these options",
    "schedule.delay=999": r"schedule.delay \(999\) must not be more than schedule.epochs=",
    "runtime.worker_start=forkk": "runtime.worker_start must be fork or spawn",
    "name=../../up": "name must be a folder's name",
    "name=": "name must be a folder's name",
    "resume=maybe": "resume must be true or false",
    "checkpoint=/nope.pt": "There is no checkpoint at /nope.pt",
    "recipe": "'recipe' says nothing: write key=value",
    "name=Größe": "name=Größe cannot be read: put such a value in two kinds of quotes, 'name=\"Größe\"'",
}


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("typed", MISTAKES)
def test_one_sentence_and_nothing_left(typed: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    runs = tmp_path / "new" / "runs"
    with pytest.raises(SystemExit) as exited:
        run_cli(CONFIG, [f"runs={runs}", "runtime.console=false", typed])
    assert exited.value.code == 1
    (line,) = capsys.readouterr().err.strip().splitlines()
    with pytest.raises(ValueError, match=MISTAKES[typed]):
        raise ValueError(line)
    assert not list(tmp_path.iterdir())


def test_usual_values_pass(tmp_path: Path) -> None:
    for overrides in (
        ["optim.clip_grad=0", "name=a/b", "schedule.warmup_epochs=0.5", "optim.lr=1"],
        ["optim.clip_grad={value:1.0}", "name=7", "runtime.compile={mode:default}", "llm.layers=null"],
        ['name="Größe"', "data.test=null", "optim.ema={decay:0.9,evaluate:raw}", "runtime.wandb={project:x}"],
    ):
        check_values(compose_config(CONFIG, overrides))
    assert run(tmp_path, "name=7", "runtime.stop_after=1").run_dir == str(tmp_path / "tiny" / "7")


def test_mistakes_leave_other_things_in_the_folder_alone(tmp_path: Path) -> None:
    folder = tmp_path / "tiny" / "a"
    (folder / "checkpoints").mkdir(parents=True)
    mine = (folder / "notes.txt", folder / "config.yaml", folder / "checkpoints" / "kept.pt")
    for path in mine[:1] + mine[2:]:
        path.write_text("mine")
    with pytest.raises(ValueError, match="one update takes 500"):
        run(tmp_path, "name=a", "data.batch_size=500")
    assert sorted(path for path in folder.rglob("*") if path.is_file()) == sorted(mine[:1] + mine[2:])


def test_mistakes_do_not_replace_a_run(tmp_path: Path) -> None:
    run(tmp_path, "name=a", "runtime.stop_after=1")
    for typed in ("optim.weight_decay=lots", "checkpoint=/nope.pt", "schedule.epochs=0"):
        with pytest.raises(ValueError, match=r"must be|no checkpoint"):
            run(tmp_path, "name=a", "overwrite=true", typed)
    assert (tmp_path / "tiny" / "a" / "checkpoints" / "iter_00000001.pt").is_file()


def _contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_mistakes_found_while_building_do_not_replace_a_run(tmp_path: Path) -> None:
    """What shows only with data and model at hand; also where the checkpoint to start from is the old run's own."""
    folder = Path(run(tmp_path, "name=a", "runtime.stop_after=2").run_dir)
    before = _contents(folder)
    own = folder / "checkpoints" / "iter_00000002.pt"
    for typed, message in (
        ("data.batch_size=500", "one update takes 500"),
        ("data.test={type: Points, size: 0}", "for test is empty"),
        (f"checkpoint={own}", "checkpoint"),
    ):
        with pytest.raises(ValueError, match=message):
            run(tmp_path, "name=a", "overwrite=true", typed)
        assert _contents(folder) == before


def test_what_shows_at_the_first_batch_is_a_sentence_and_replaces_no_run(tmp_path: Path) -> None:
    """What torch says of it, and which groups to look at."""
    folder = Path(run(tmp_path, "name=a", "runtime.stop_after=2").run_dir)
    before = _contents(folder)
    typed = ("model.norm=batch", "data.batch_size=1")
    sentence = (
        r"cannot take the first batch \(Expected more than 1 value per channel.*config groups model, data and task"
    )
    for name in ("a", "b"):
        with pytest.raises(ValueError, match=sentence):
            run(tmp_path, f"name={name}", "overwrite=true", *typed)
    assert _contents(folder) == before
    assert not folder.with_name("b").exists()


def test_a_run_is_replaced_at_the_first_step_of_the_new_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A start that dies before it, as by SIGKILL, leaves the old run to be resumed."""
    folder = Path(run(tmp_path, "name=a", "runtime.stop_after=6").run_dir)
    before = _contents(folder)
    with monkeypatch.context() as patch:
        patch.setattr(TrainLoop, "run", lambda self: os._exit(9))
        child = multiprocessing.get_context("fork").Process(target=run, args=(tmp_path, "name=a", "overwrite=true"))
        child.start()
        child.join()
    assert child.exitcode == 9
    assert (folder / ".overwritten").is_dir()
    assert run(tmp_path, "name=a", "resume=true", "runtime.stop_after=2").iterations == 6 + 2
    assert not list(folder.glob(".overwritten*"))
    after = _contents(folder)
    assert after["checkpoints/iter_00000006.pt"] == before["checkpoints/iter_00000006.pt"]
    assert after["metrics.jsonl"].startswith(before["metrics.jsonl"])
    assert run(tmp_path, "name=a", "overwrite=true", "runtime.stop_after=1").iterations == 1
    assert "checkpoints/iter_00000006.pt" not in _contents(folder)
    assert not list(folder.glob(".overwritten*"))


def test_a_failed_evaluation_makes_no_folder(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "file.pt").write_text("hello")
    with pytest.raises(SystemExit):
        run_cli(CONFIG, [f"runs={tmp_path / 'runs'}", "eval_only=true", f"checkpoint={tmp_path / 'file.pt'}"])
    assert "cannot be read as a checkpoint" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["file.pt"]
