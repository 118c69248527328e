"""Models of finished runs, read back from their checkpoints."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
import torch
from tinydomain.helpers import run
from tinydomain.train import CONFIG

from frozenllm.core.training import (
    compose_config,
    errors_in_a_sentence,
    evaluate,
    folder_of_run,
    is_run,
    read_run,
)

EMA = "optim.ema={decay: 0.5, evaluate: ema}"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that keeps a moving average and is evaluated with it."""
    root = tmp_path_factory.mktemp("saved")
    return Path(run(root, "name=a", EMA, "schedule.epochs=2").run_dir)


def test_the_weights_are_those_that_the_run_was_evaluated_with(folder: Path) -> None:
    path = folder / "checkpoints" / "last.pt"
    content = torch.load(path, weights_only=True)
    for weights, used in (("auto", "ema"), ("ema", "ema"), ("raw", "raw")):
        saved = read_run(folder, weights)
        assert (saved.path, saved.weights) == (path, used)
        model = saved.build()
        assert not model.training
        for name, parameter in model.named_parameters():
            expected = content["ema" if used == "ema" else "state_dict"][f"model.{name}"]
            assert torch.equal(parameter, expected), name
    assert not torch.equal(content["ema"]["model.head.weight"], content["state_dict"]["model.head.weight"])
    inputs = torch.randn(2, 6, 8)
    assert torch.isfinite(read_run(path).build()(inputs)).all()


def test_an_average_of_which_only_the_decay_is_given(tmp_path: Path) -> None:
    common = [f"runs={tmp_path}", "name=b", "optim.ema={decay: 0.5}", "runtime.console=false"]
    result = run(tmp_path, *common[1:3], "schedule.epochs=2")
    assert read_run(result.run_dir).weights == "raw"
    assert evaluate(compose_config(CONFIG, [*common, "runtime.plots=false"])) == result.metrics


def test_the_average_of_tied_weights_is_under_all_their_names(tmp_path: Path) -> None:
    run_dir = run(tmp_path, "name=c", EMA, "schedule.epochs=2", "model.type=Tied").run_dir
    content = torch.load(Path(run_dir) / "checkpoints" / "last.pt", weights_only=True)
    tied = "blocks.0.0.weight"
    assert not torch.equal(content["ema"][f"model.{tied}"], content["state_dict"][f"model.{tied}"])
    assert torch.equal(read_run(run_dir).build().get_parameter(tied), content["ema"][f"model.{tied}"])
    resumed = run(tmp_path, "name=c", EMA, "schedule.epochs=2", "model.type=Tied", "resume=true")
    assert resumed.finished


def test_what_is_wrong_is_said_in_one_sentence(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"is not the folder of a run: it has no checkpoints/last\.pt\.$"):
        read_run(tmp_path)
    with pytest.raises(ValueError, match="There is no checkpoint at"):
        read_run(tmp_path / "none.pt")
    with pytest.raises(ValueError, match="weights must be one of auto, raw, ema, not 'mean'"):
        read_run(folder, "mean")
    plain = run(tmp_path, "name=b", "runtime.stop_after=1").run_dir
    assert read_run(plain).weights == "raw"
    with pytest.raises(ValueError, match="holds no moving average: use weights=raw"):
        read_run(plain, "ema")


def test_a_run_is_its_folder_or_one_of_its_checkpoints(folder: Path, tmp_path: Path) -> None:
    path = folder / "checkpoints" / "last.pt"
    assert folder_of_run(folder) == folder_of_run(path) == read_run(path).folder == folder
    assert folder_of_run(tmp_path / "moved.pt") == tmp_path
    assert is_run(folder)
    assert is_run(path)
    torch.save({"model": {"weight": torch.zeros(2)}}, tmp_path / "official.pth")
    assert not is_run(tmp_path / "official.pth")
    (tmp_path / "torn.pt").write_bytes(path.read_bytes()[:200])
    for name, words in (("torn.pt", "is damaged"), ("none.pt", "There is no checkpoint at")):
        with pytest.raises(ValueError, match=words):
            is_run(tmp_path / name)


def test_another_kind_of_run_is_named(folder: Path) -> None:
    saved = read_run(folder)
    kind = saved.cfg.model.type
    assert saved.expect("small runs", "other", kind) is saved
    with pytest.raises(ValueError, match=rf"last\.pt is of a run of the model '{kind}', not of films\.$"):
        saved.expect("films", "other")


def test_users_mistakes_end_in_a_sentence_and_ours_in_a_traceback(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"^error: There is no checkpoint at"), errors_in_a_sentence():
        read_run(tmp_path / "none.pt")
    with pytest.raises(SystemExit, match=r"^error: .*none: No such file or directory\.$"), errors_in_a_sentence():
        (tmp_path / "none").read_text()
    with pytest.raises(SystemExit, match=r"^error: The disk: No space left on device\.$"), errors_in_a_sentence():
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    with pytest.raises(ZeroDivisionError), errors_in_a_sentence():
        _ = 1 / 0
    with pytest.raises(SystemExit, match=r"^stopped: the same command goes on"), errors_in_a_sentence(goes_on=True):
        raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt), errors_in_a_sentence():
        raise KeyboardInterrupt


def test_a_config_is_changed_before_the_model_is_built(folder: Path) -> None:
    saved = read_run(folder).change(["data.batch_size=3", "runtime.precision=bf16"])
    assert (saved.cfg.data.batch_size, saved.cfg.runtime.precision) == (3, "bf16")
    for wrong in ("data.batch_sise=3", "data", "data=3"):
        with pytest.raises(ValueError, match=f"^{wrong} does not change the run's config: write key=value"):
            saved.change([wrong])
