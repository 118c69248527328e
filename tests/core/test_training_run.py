"""What a run leaves, what makes it fail, and what it says then."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image
from processes import call
from tinydomain.helpers import command, history, read, run
from tinydomain.train import CONFIG, Host

from frozenllm.core import conf
from frozenllm.core.training import FrozenBlockChanged, build_model, compare, compose_config, run_cli, table
from frozenllm.core.training.guard import fingerprint


def cli(capsys: pytest.CaptureFixture, *argv: str) -> str:
    """Run the command line in this process; the one line that it prints as an error."""
    threads = torch.get_num_threads()
    with pytest.raises(SystemExit) as exit_info:
        run_cli(CONFIG, ["runtime.console=false", *argv])
    torch.set_num_threads(threads)
    assert exit_info.value.code == 1
    printed = capsys.readouterr().err
    assert "Traceback" not in printed
    lines = [line for line in printed.splitlines() if line.strip()]
    assert len(lines) == 1, printed
    return lines[0]


def test_run_folder(tmp_path: Path) -> None:
    metrics = "metrics=[{type:Accuracy,topk:[1,2]},{type:CrossEntropy}]"
    result = run(tmp_path, "name=a", metrics, "runtime.val_interval=2", "runtime.plots=true")
    folder = tmp_path / "tiny" / "a"
    assert result.run_dir == str(folder)
    lines = history(folder)
    train = [line for line in lines if line["kind"] == "train"]
    validations = [line for line in lines if line["kind"] == "val"]
    assert [line["iter"] for line in train] == [5, 10, 12, 15, 20, 24, 25, 30, 35, 36]
    assert [line["iter"] for line in validations] == [24, 36]  # every other epoch, and the last
    assert validations[-1]["accuracy/top2"] >= validations[-1]["accuracy/top1"] > 60  # chance is 25
    assert train[-1]["loss"] < train[0]["loss"]
    for name in ("train_loss", "train_lr", "val_accuracy_top1", "val_cross_entropy_mean"):
        assert Image.open(folder / "plots" / f"{name}.png").size == (600, 400)
    assert yaml.safe_load((folder / "config.yaml").read_text())["model"]["dim"] == 16
    environment = json.loads((folder / "environment.json").read_text())
    assert environment["packages"]["torch"] == torch.__version__.split("+")[0]
    assert "frozenllm-core" in environment["packages"]
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["metrics"]["accuracy/top1"] == validations[-1]["accuracy/top1"]
    model = Host(llm={"kind": "random", "spec": compose_config(CONFIG).llm.spec})
    assert summary["trainable"] == sum(p.numel() for p in model.parameters())
    assert summary["frozen"] == model.llm.block.num_parameters()
    log = (folder / "train.log").read_text()
    assert re.search(r"epoch 3/3  iter 36/36  loss [\d.]+  lr [\d.e-]+  \d+ ms/step  left 0:00:00", log)
    assert len(log.splitlines()) == 1 + len(lines)  # nothing of mmengine's own
    # No folder with the time in its name, nothing of Hydra's.
    assert {p.name for p in folder.iterdir()} == {
        "checkpoints", "config.yaml", "environment.json", "metrics.jsonl", "plots", "summary.json", "train.log"
    }  # fmt: skip


def test_existing_run_is_neither_overwritten_nor_resumed_unasked(tmp_path: Path) -> None:
    first = run(tmp_path, "name=a", "runtime.stop_after=2")
    (tmp_path / "tiny" / "a" / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"tiny/a holds a run already: .* resume=true, .* overwrite=true"):
        run(tmp_path, "name=a")
    with pytest.raises(ValueError, match="exclude each other"):
        run(tmp_path, "name=a", "resume=true", "overwrite=true")
    again = run(tmp_path, "name=a", "runtime.stop_after=1", "overwrite=true")
    assert (first.iterations, again.iterations) == (2, 1)
    assert [p.name for p in sorted((tmp_path / "tiny" / "a" / "checkpoints").glob("iter*"))] == ["iter_00000001.pt"]
    assert (tmp_path / "tiny" / "a" / "notes.txt").read_text() == "mine"


def test_resume_with_nothing_to_resume_starts(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert run(tmp_path, "name=a", "resume=true", "runtime.stop_after=1").iterations == 1
    assert "nothing to resume" in capsys.readouterr().out


def test_frozen_guard_fails_a_run_that_changed_one_value(tmp_path: Path) -> None:
    with pytest.raises(FrozenBlockChanged, match=r"changed during training.*llm\.block\.layers\.0"):
        run(tmp_path, "model.type=Tampering")
    assert not (tmp_path / "tiny" / "random" / "summary.json").exists()
    assert not list((tmp_path / "tiny" / "random" / "checkpoints").iterdir())
    # Where the block is trained, it may change.
    trained = run(tmp_path, "llm=random_trained", "schedule.epochs=2")
    assert trained.frozen == 0
    assert trained.trainable > 4000


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.uint8])
def test_fingerprint_sees_every_byte_and_their_order(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    tensor = torch.randint(0, 200, (7, 11), generator=generator).to(dtype)
    original = fingerprint(tensor)
    assert fingerprint(tensor.clone()) == original
    data = tensor.view(-1).view(torch.uint8)
    for i in range(len(data)):
        data[i] ^= 1
        assert fingerprint(tensor) != original
        data[i] ^= 1
    assert fingerprint(tensor.flip(0)) != original
    assert fingerprint(tensor.T) != original
    assert fingerprint(tensor[1:]) == fingerprint(tensor[1:].clone())  # a view that starts anywhere


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_precision_switch(precision: str, tmp_path: Path) -> None:
    result = run(tmp_path, f"runtime.precision={precision}", "optim.clip_grad=1")
    assert result.metrics["accuracy/top1"] > 60
    assert all("grad_norm" in line for line in history(result.run_dir) if line["kind"] == "train")
    state = read(Path(result.run_dir) / "checkpoints" / "last.pt")["state_dict"]
    assert {v.dtype for k, v in state.items() if not k.endswith("_extra_state")} == {torch.float32}
    cfg = compose_config(CONFIG, [f"runtime.precision={precision}"])
    assert build_model(cfg).llm.block.dtype == {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]


def test_fp16_needs_a_gpu(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="fp16 needs a GPU"):
        run(tmp_path, "runtime.precision=fp16")


def test_accumulation_equals_a_larger_batch(tmp_path: Path) -> None:
    exact = ["data.train.augment=false", "model.dropout=0", "optim=sgd", "optim.lr=0.1"]
    exact += ["schedule=constant", "schedule.epochs=1", "schedule.warmup_epochs=0"]
    a = run(tmp_path, *exact, "name=a", "data.batch_size=4", "optim.accumulate=4")
    b = run(tmp_path, *exact, "name=b", "data.batch_size=16")
    assert (a.iterations, b.iterations) == (24, 6)
    one, two = (read(Path(r.run_dir) / "checkpoints" / "last.pt")["state_dict"] for r in (a, b))
    for name, value in one.items():
        torch.testing.assert_close(value, two[name], rtol=1e-5, atol=1e-6)


def test_bad_settings_are_one_sentence(capsys: pytest.CaptureFixture, tmp_path: Path) -> None:
    runs = f"runs={tmp_path}"
    unknown = cli(capsys, runs, "llm=gpt5")
    assert "There is no llm=gpt5; choose one of: bundled, finetuned, llama2_7b" in unknown
    assert "_shared" not in unknown
    assert "There is no config key 'optim.speed'" in cli(capsys, runs, "optim.speed=3")
    assert "There is no config key 'speed'" in cli(capsys, runs, "speed=3")
    assert "Nope is not in the frozenllm::model registry" in cli(capsys, runs, "model.type=Nope")
    assert "Unknown llm option(s) colour" in cli(capsys, runs, "+llm.colour=red")
    assert "data.batch_size 500" in cli(capsys, runs, "data.batch_size=500")
    assert "runtime.strategy must be one of" in cli(capsys, runs, "runtime.strategy=magic")
    assert "optim.ema.evaluate must be raw or ema" in cli(capsys, runs, "optim.ema={decay:0.9,evaluate:both}")
    assert "best=accuracy/top5 is none of the metrics: accuracy/top1" in cli(capsys, runs, "best=accuracy/top5")
    assert "The value of data.train is missing" in cli(capsys, runs, "data.train=???", "name=x")
    assert "There is no checkpoint at" in cli(capsys, runs, "eval_only=true", "name=never")


def test_unwritable_run_folder_is_one_sentence(capsys: pytest.CaptureFixture, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    message = cli(capsys, f"runs={tmp_path / 'file'}")
    assert re.search(r"The run folder .*file/tiny/random cannot be written \(Not a directory\): choose", message)
    if os.geteuid():  # the superuser may write anywhere
        locked = tmp_path / "locked"
        locked.mkdir(mode=0o500)
        assert "cannot be written (Permission denied)" in cli(capsys, f"runs={locked}")


def test_trackers(capsys: pytest.CaptureFixture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *a: None)
    for tracker in ("tensorboard", "wandb"):
        message = cli(capsys, f"runs={tmp_path}", f"runtime.{tracker}=true")
        assert f"runtime.{tracker}=true needs {tracker}: pip install 'frozenllm-core[{tracker}]'" in message


def test_multirun_gives_every_job_a_folder(tmp_path: Path) -> None:
    threads = torch.get_num_threads()
    common = [f"runs={tmp_path}", "name=sweep", "runtime.console=false", "runtime.plots=false", "runtime.stop_after=1"]
    run_cli(CONFIG, ["-m", *common, "llm.seed=3,4"])
    torch.set_num_threads(threads)
    folders = sorted((tmp_path / "tiny" / "sweep").iterdir())
    assert len(folders) == 2
    for folder, seed in zip(folders, (3, 4), strict=True):
        assert folder.name == f"llm.seed={seed}"
        assert yaml.safe_load((folder / "config.yaml").read_text())["llm"]["seed"] == seed


def test_module_runs_from_any_folder(tmp_path: Path) -> None:
    done = call(command(tmp_path / "runs", "runtime.stop_after=2", "runtime.log_interval=1"), tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("ms/step  left") == 2
    assert len(done.stdout.splitlines()) == 3
    assert done.stderr == ""
    assert [p.name for p in tmp_path.iterdir()] == ["runs"]


def test_compare_arms(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    overrides = [f"runs={tmp_path}", "runtime.console=false", "runtime.plots=false", "schedule.epochs=2"]
    arms = {"host alone": ["llm=none", "~llm.spec"], "+ random block": []}
    results = compare(CONFIG, arms, seeds=(0, 1), overrides=overrides)
    assert [result.arm for result in results] == list(arms)
    assert results[0].frozen == 0 < results[1].frozen
    values = results[1].values("accuracy/top1")
    assert results[1].mean("accuracy/top1") == sum(values) / 2
    assert results[1].spread("accuracy/top1") == pytest.approx(abs(values[0] - values[1]) / 2**0.5)
    text = table(results, "accuracy/top1")
    assert [line.split("  ")[0] for line in text.splitlines()[2:]] == ["host alone", "+ random block"]
    assert "1.00 x" in text
    assert (tmp_path / "tiny" / "random-block" / "seed1" / "summary.json").exists()
    compare(CONFIG, {"+ random block": []}, overrides=overrides)  # replaces its own earlier runs


def test_importing_core_brings_neither_engine_nor_hydra() -> None:
    code = "import sys, frozenllm.core; print([m for m in ('mmengine', 'hydra', 'omegaconf') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "[]", done.stderr


def test_missing_extra_is_named() -> None:
    code = "import sys; sys.modules['mmengine'] = None; import frozenllm.core.training"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    last = done.stderr.strip().splitlines()[-1]
    assert last.endswith("Training needs mmengine, which is not installed: pip install 'frozenllm-core[train]'.")


def test_every_shared_config_composes() -> None:
    root = Path(conf.__file__).parent
    for group in ("llm", "optim", "schedule", "runtime"):
        names = [p.stem for p in (root / group).glob("*.yaml") if not p.stem.startswith("_")]
        assert names
        for name in names:
            overrides = [f"{group}={name}"]
            cfg = compose_config(CONFIG, overrides)
            assert cfg[group]
            if group == "llm":
                assert cfg.llm.name == name


@pytest.mark.parametrize("key", ["metrics", "metrics_test"])
def test_an_unknown_metric_is_named_before_training(
    tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    monkeypatch.setattr(sys, "argv", ["train"])
    test_set = "data.test={type: Points, size: 40}"
    line = cli(capsys, f"runs={tmp_path}", "name=a", test_set, f"{key}=[{{type: Acurracy}}]")
    assert re.match(r"error: Acurracy is not in .*registry: check the type, and the config's imports\.$", line)
    assert not (tmp_path / "tiny" / "a" / "metrics.jsonl").exists()
