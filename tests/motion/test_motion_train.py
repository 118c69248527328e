"""The training tool and submissions, as users call them, on toy data in the formats of both benchmarks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from recipes import SMALL_BLOCK
from tinydomain.helpers import assert_same, history, read
from training_tools import block_weights, call_tool

from frozenllm.core.training import HOST_AND_LAYER, compose_config, evaluate, train
from frozenllm.motion import constant_velocity, submit
from frozenllm.motion import train as tool
from frozenllm.motion.data import argoverse2, collate_scenes
from frozenllm.motion.models import VectorNet
from frozenllm.motion.submission import read_argoverse1
from frozenllm.motion.task import MotionTask
from frozenllm.motion.trained import load_trained

TINY = {
    "vectornet": ["model.dim=16", "model.width=8", "model.hidden=16"],
    "mmtransformer": ["model.dim=16", "model.hidden=24", "model.width=8", "model.layers=1", "model.position_dim=8"],
}
SHORT = ["data.batch_size=4", "schedule.epochs=2", "data.radius=40", "runtime.console=false", "runtime.workers=0"]
SHORT += ["runtime.device=cpu", "runtime.threads=1", "runtime.checkpoint.keep=5", "runtime.precision=fp32"]
RECIPES = ["argoverse1_vectornet", "argoverse2_mmtransformer_llama"]


def overrides(recipe: str, root: Path, runs: Path) -> list[str]:
    """A recipe at tiny sizes, with a small random block in a large language model's place."""
    block = SMALL_BLOCK if recipe.endswith("_llama") else []
    return [f"recipe={recipe}", f"data.root={root}", f"runs={runs}", *TINY[recipe.split("_")[1]], *SHORT, *block]


@pytest.fixture(scope="module", params=RECIPES)
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[list[str], Path]:
    """A recipe, trained without interruption: 6 steps in 2 epochs."""
    root = request.getfixturevalue("toy1" if "argoverse1" in request.param else "toy2")
    settings = overrides(request.param, root, tmp_path_factory.mktemp("runs"))
    result = train(compose_config(tool.CONFIG, [*settings, "name=whole"]))
    assert result.finished
    assert result.iterations == 6
    return settings, Path(result.run_dir)


def test_recipe_trains_resumes_and_evaluates(run: tuple[list[str], Path]) -> None:
    settings, folder = run
    parts = [*settings, "name=parts"]
    first = train(compose_config(tool.CONFIG, [*parts, "runtime.stop_after=4"]))
    assert (first.iterations, first.finished) == (4, False)
    second = train(compose_config(tool.CONFIG, [*parts, "resume=true"]))
    assert (second.iterations, second.finished) == (6, True)
    whole, resumed = (read(path / "checkpoints" / "last.pt") for path in (folder, Path(second.run_dir)))
    assert_same(whole["state_dict"], resumed["state_dict"])
    assert_same(whole["optimizer"], resumed["optimizer"])
    assert [line for line in history(folder) if line["kind"] == "val"] == [
        line for line in history(second.run_dir) if line["kind"] == "val"
    ]
    figures = evaluate(compose_config(tool.CONFIG, [*settings, "name=whole"]))
    assert figures == json.loads((folder / "summary.json").read_text())["metrics"]
    assert {"motion/minADE1", "motion/minFDE6", "motion/MR6", "motion/brier-minFDE6"} <= set(figures)
    assert not block_weights(whole["state_dict"])


def test_recipe_writes_a_valid_submission(run: tuple[list[str], Path], tmp_path: Path) -> None:
    """Read back as the benchmarks do, and compared with the model's own output in the city's frame."""
    settings, folder = run
    trained = load_trained(folder)
    path, figures = submit.submit(trained, out=tmp_path / "file", progress=False)
    assert figures == {}
    av1 = "argoverse1" in settings[0]
    split = "test_obs" if av1 else "test"
    found = _read_argoverse1(path) if av1 else _read_argoverse2(path)
    data: Any = trained.dataset(split)
    assert len(found) == len(data) == 3
    for sample in data:
        with torch.no_grad():
            output = trained.task.model(**collate_scenes([sample])["inputs"])
        chances = output["logits"][0].softmax(dim=0).double().numpy()
        x, y = output["trajectories"][0].double().numpy().transpose(2, 0, 1)
        cos, sin = np.cos(float(sample["heading"])), np.sin(float(sample["heading"]))
        city = np.stack([cos * x - sin * y, sin * x + cos * y], axis=-1) + sample["origin"].numpy()
        key = int(sample["scenario"]) if av1 else (sample["scenario"], sample["track"])
        written_chances, written = found[key]
        order = np.argsort(-chances, kind="stable")
        np.testing.assert_allclose(written, city[order], atol=1e-3)
        np.testing.assert_allclose(written_chances, chances[order], atol=1e-5)
        assert written_chances.sum() == pytest.approx(1.0)
    _, figures = submit.submit(trained, split="val", out=tmp_path / "val", progress=False)
    assert figures == pytest.approx(json.loads((folder / "summary.json").read_text())["metrics"], rel=1e-4)


def _read_argoverse1(path: Path) -> dict[Any, tuple[np.ndarray, np.ndarray]]:
    return dict(read_argoverse1(path))


def _read_argoverse2(path: Path) -> dict[Any, tuple[np.ndarray, np.ndarray]]:
    from av2.datasets.motion_forecasting.eval.submission import ChallengeSubmission

    predictions = ChallengeSubmission.from_parquet(path).predictions
    return {(name, track): (p, t) for name, (p, tracks) in predictions.items() for track, t in tracks.items()}


@pytest.fixture(scope="module")
def by_tool(tmp_path_factory: pytest.TempPathFactory, toy2: Path) -> Path:
    """Four steps on the toy data with the bundled block, from the command line."""
    folder = tmp_path_factory.mktemp("tool")
    options = ["recipe=traffic", f"data.root={toy2}", "data.toy={train: 12, val: 6, test: 3, seed: 0}", "name=it"]
    done = call_tool("motion", *options, *TINY["vectornet"], *SHORT, "runtime.stop_after=4", cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder / "runs" / "traffic" / "it"


def test_tool_and_submission_from_the_command_line(by_tool: Path, capsys: pytest.CaptureFixture) -> None:
    summary = json.loads((by_tool / "summary.json").read_text())
    assert (summary["iterations"], summary["frozen"]) == (4, 791_040)
    submit.main([str(by_tool), "data.max_lanes=20"])
    assert f"wrote {by_tool / 'submission.parquet'}" in capsys.readouterr().out
    assert len(_read_argoverse2(by_tool / "submission.parquet")) == 3


@pytest.mark.parametrize(("arguments", "words"), [
    (["data.fou=1"], "does not change the run's config"),
    (["--split", "nothing"], "splits"),
    (["data.radius=-1"], "radius must be a positive number"),
    (["data.root=["], "cannot be read as key=value"),
    (["data[=1"], "does not change the run's config"),
    (["data=argoverse1"], "does not change the run's config"),
])  # fmt: skip
def test_what_is_wrong_is_said_in_one_sentence(by_tool: Path, arguments: list[str], words: str) -> None:
    with pytest.raises(SystemExit) as stopped:
        submit.main([str(by_tool), *arguments])
    assert str(stopped.value).startswith("error: ")
    assert words in str(stopped.value)
    assert "\n" not in str(stopped.value)


def test_a_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"is not the folder of a run: it has no checkpoints/last\.pt"):
        submit.main([str(tmp_path)])


def test_toy_prints_both_arms_beside_constant_velocity(
    tmp_path: Path, toy2: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    sizes = ["data.toy={train: 12, val: 6, test: 3, seed: 0}", *TINY["vectornet"], *SHORT]
    sizes += ["schedule.epochs=1", "schedule.warmup_epochs=0"]
    monkeypatch.setattr(tool, "TOY", [*tool.TOY, *sizes])
    tool.main([])
    printed = capsys.readouterr().out
    cfg = compose_config(tool.CONFIG, tool.TOY)
    wanted = constant_velocity.evaluate(argoverse2(toy2, "val", radius=cfg.data.radius))
    row = next(line for line in printed.splitlines() if line.startswith("constant velocity"))
    assert f"{wanted['minFDE6']:.2f}" in row
    assert f"{wanted['minADE1']:.2f}" in row
    rows = {arm: line.split() for arm in HOST_AND_LAYER for line in printed.splitlines() if line.startswith(arm)}
    summary = json.loads((tmp_path / "runs" / "toy" / "traffic" / "host-alone" / "seed0" / "summary.json").read_text())
    assert f"{summary['metrics']['motion/minFDE6']:.2f}" in rows["host alone"]
    assert f"{summary['trainable']:,}" in rows["host alone"]
    assert "791,040" in rows["+ frozen bundled block"]


@pytest.mark.parametrize("llm", [None, "bundled"], ids=["host", "layer"])
def test_a_host_learns_what_constant_velocity_cannot_know(llm: str | None, toy2: Path) -> None:
    """Overfitted to a dozen scenarios it is far nearer, with its best mode and with its likeliest."""
    torch.manual_seed(0)
    data = argoverse2(toy2, "train", radius=40.0)
    batch = collate_scenes([data[i] for i in range(len(data))])
    task = MotionTask(VectorNet(60, 6, dim=32, width=16, subgraph_layers=2, hidden=64, llm=llm))
    optimizer = torch.optim.AdamW(task.parameters(), lr=2e-3)
    for _ in range(120):
        optimizer.zero_grad()
        sum(task(batch["inputs"], batch["targets"], mode="loss").values()).backward()
        optimizer.step()
    metric = tool.MotionMetric()
    with torch.no_grad():
        metric.process(None, task(**batch, mode="predict"))
    found, baseline = metric.compute_metrics(metric.results), constant_velocity.evaluate(data)
    assert found["minFDE6"] < 0.4 * baseline["minFDE6"]
    assert found["minADE6"] < 0.4 * baseline["minADE6"]
    assert found["minFDE1"] < 0.8 * baseline["minFDE1"]
