"""Studies that a report makes itself, on runs of the tiny domain; and what it says where it cannot."""

from __future__ import annotations

import shlex
import shutil
import sys
import types
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from report_runs import make_study, write_run
from tinydomain.helpers import run
from tinydomain.study import study as tiny_study
from tinydomain.train import CONFIG

from frozenllm.core.analysis.study import read_study
from frozenllm.core.cli import main
from frozenllm.core.report import write_report
from frozenllm.core.report.reproduce import command
from frozenllm.core.report.runs import find_runs
from frozenllm.core.training import compose_config
from frozenllm.core.training.rows import read_config


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Host and random block, one epoch each; not to be changed."""
    folder = tmp_path_factory.mktemp("trained") / "runs"
    for kind in ("none", "random"):
        run(folder, f"llm={kind}", f"name={kind}/seed0", "schedule.epochs=1", "schedule.warmup_epochs=0.5")
    return folder


@pytest.fixture
def runs(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "runs"))


def test_missing_studies_are_made_once(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    page = tmp_path / "page.html"
    assert main(["report", str(runs), "-o", str(page), "--limit", "5", "--samples", "2"]) == 0
    printed = capsys.readouterr()
    assert "[1/2] study of none" in printed.out
    assert "[2/2] study of random, about" in printed.out
    assert printed.err == ""
    made = read_study(runs / "tiny" / "random" / "seed0")
    expected = tiny_study(runs / "tiny" / "random" / "seed0", limit=5, samples=2)
    assert made is not None
    assert made.findings == expected.findings
    assert [sample.title for sample in made.samples] == ["points 0", "points 1"]
    text = page.read_text()
    assert "Where the tokens of points are active" in text
    assert "Three tokens of six matter." in text
    assert "Over 5 samples." in text
    assert f"{expected.findings[1].value:.3f}" in text
    assert main(["report", str(runs), "-o", str(page)]) == 0
    assert "study of" not in capsys.readouterr().out
    assert main(["report", str(runs / "tiny" / "none"), "-o", str(page), "--study", "again", "--limit", "3"]) == 0
    assert "[1/1] study of none" in capsys.readouterr().out
    again = read_study(runs / "tiny" / "none" / "seed0")
    assert again is not None
    assert again.findings[0].samples == 3


def test_a_run_that_was_trained_on_is_studied_again(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    tiny_study(runs / "tiny" / "none" / "seed0", limit=2).save(runs / "tiny" / "none" / "seed0")
    write_report([runs / "tiny" / "none"], tmp_path / "page.html")
    assert "study of" not in capsys.readouterr().out
    checkpoint = runs / "tiny" / "none" / "seed0" / "checkpoints" / "last.pt"
    torch.save(torch.load(checkpoint, weights_only=True), checkpoint)
    write_report([runs / "tiny" / "none"], tmp_path / "page.html")
    assert "study of none" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("mistake", "sentence"),
    [
        (ValueError("The images of /data are gone: mount them."), "The images of /data are gone: mount them."),
        (ImportError("needs av2: pip install av2"), "needs av2"),
        (ZeroDivisionError("division\nby zero"), r"could not be made \(ZeroDivisionError: division\)"),
    ],
)
def test_what_fails_costs_a_sentence(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mistake: Exception, sentence: str
) -> None:
    def fail(*args: Any, **kwargs: Any) -> None:
        raise mistake

    monkeypatch.setattr("tinydomain.study.study", fail)
    with pytest.warns(UserWarning, match=sentence):
        text = write_report([runs / "tiny" / "none"], tmp_path / "page.html").read_text()
    assert "The study could not be made" in text
    assert "<h2>Costs</h2>" in text


def test_a_domain_without_a_study(tmp_path: Path) -> None:
    write_run(tmp_path / "a" / "run", 80.0, config={"imports": ["json.tool"]})
    write_run(tmp_path / "b" / "run", 80.0, config={"imports": ["gone.train"]})
    with pytest.warns(UserWarning, match="has no study that could be made here"):
        text = write_report([tmp_path / "a", tmp_path / "b"], tmp_path / "page.html").read_text()
    assert "json has no study that could be made here." in text
    assert "gone has no study that could be made here." in text
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert "Not studied: " in write_report([tmp_path / "a"], tmp_path / "b.html", study="never").read_text()


def test_of_a_sweep_one_layer_is_studied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    studied = []

    def study(folder: Path, **options: Any) -> Any:
        studied.append((folder.parent.name, options))
        return make_study(0)

    module = types.ModuleType("sweptdomain.study")
    module.study = study  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "sweptdomain", types.ModuleType("sweptdomain"))
    monkeypatch.setitem(sys.modules, "sweptdomain.study", module)
    module.__spec__ = types.SimpleNamespace()  # type: ignore[assignment]
    for layer in (0, 1, 2):
        for seed in (0, 1):
            imports = {"imports": ["sweptdomain.train"]}
            write_run(tmp_path / f"runs/layer{layer}/seed{seed}", 80.0, "pretrained", seed, layer, config=imports)
    write_report([tmp_path / "runs"], tmp_path / "page.html", limit=7, samples=3)
    assert studied == [("layer2", {"limit": 7, "samples": 3})]


def test_the_command_composes_the_same_config(trained: Path, tmp_path: Path) -> None:
    runs, _ = find_runs([trained])
    for entry in runs:
        line = command(entry)
        assert line is not None
        python, flag, module, *overrides = shlex.split(line)
        assert (python, flag, module) == ("python", "-m", "tinydomain.train")
        assert "schedule.epochs=1" in overrides
        composed = run(tmp_path, *overrides, f"runs={tmp_path}", "runtime.console=false")
        own, again = read_config(entry.folder), read_config(Path(composed.run_dir))
        assert {**again, "runs": own["runs"]} == own
        assert compose_config(CONFIG, overrides).name == entry.config["name"]
        assert composed.metrics == entry.summary["metrics"]
    odd = write_run(tmp_path / "odd", 80.0)
    assert command(find_runs([odd])[0][0]) is None
