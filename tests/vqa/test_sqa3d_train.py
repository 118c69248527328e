"""Training on toy rooms, as users call it: steps, resuming, evaluation, stand-ins, the toy table."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from training_tools import block_weights, quick_toys

from frozenllm.core.training import HOST_AND_LAYER, compose_config, evaluate, train
from frozenllm.vqa import train as tool
from frozenllm.vqa.runs import load_run
from frozenllm.vqa.scenes.files import sqa3d_questions
from frozenllm.vqa.scenes.model import SituatedQA

TYPES = {f"sqa3d/{kind}" for kind in ("what", "is", "how", "can", "which", "others")}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, rooms_root: Path, tiny_rooms: list[str]) -> list[str]:
    """The paper's recipe at tiny sizes: clipping by value, drops of the rate, augmentation."""
    runs = tmp_path_factory.mktemp("runs")
    recipe = ["recipe=sqa3d_llama", "llm=bundled", "model=sqa3d_toy", f"data.root={rooms_root}", *tiny_rooms]
    return [*recipe, "schedule.epochs=2", "schedule.milestones=[1]", f"runs={runs}", "name=it"]


def test_trains_resumes_and_evaluates(run: list[str], rooms_root: Path, tmp_path: Path) -> None:
    first = train(compose_config(tool.CONFIG, [*run, "runtime.stop_after=4"]))
    assert (first.iterations, first.finished, first.frozen) == (4, False, 791_040)
    again = train(compose_config(tool.CONFIG, [*run, "resume=true"]))
    assert again.finished
    whole = train(compose_config(tool.CONFIG, [*run, "name=whole"]))
    assert {"sqa3d/em@1", "sqa3d/em@10"} <= set(again.metrics)
    assert TYPES & set(again.metrics)
    assert again.test["sqa3d/em@10"] >= again.test["sqa3d/em@1"]
    states = [
        torch.load(Path(r.run_dir) / "checkpoints" / "last.pt", weights_only=True)["state_dict"] for r in (again, whole)
    ]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[1])
    assert not block_weights(states[0])
    assert evaluate(compose_config(tool.CONFIG, run))["sqa3d/em@1"] == again.metrics["sqa3d/em@1"]
    lines = [json.loads(line) for line in (Path(again.run_dir) / "metrics.jsonl").read_text().splitlines()]
    logged = {key for line in lines if line["kind"] == "train" for key in line}
    assert {"answer_loss", "pose_loss", "vote_loss", "center_loss", "objectness_loss", "semantic_loss"} <= logged
    model, cfg = load_run(again.run_dir)
    assert isinstance(model, SituatedQA)
    assert (model.llm is not None, cfg.model.type) == (True, "sqa3d")
    moved = [*run, f"data.answers.path={again.run_dir}/checkpoints/last.pt"]
    assert evaluate(compose_config(tool.CONFIG, moved))["sqa3d/em@1"] == again.metrics["sqa3d/em@1"]
    (tmp_path / "other.json").write_text(json.dumps([*model.answers.names[:-1], "zebra"]))
    with pytest.raises(ValueError, match=r"another answer vocabulary .* data\.answers\.path"):
        evaluate(compose_config(tool.CONFIG, [*run, f"data.answers.path={tmp_path}/other.json"]))


def test_scenes_that_are_missing_are_counted(run: list[str], rooms_root: Path, tmp_path: Path) -> None:
    copy = tmp_path / "rooms"
    shutil.copytree(rooms_root, copy)
    first = sqa3d_questions(str(copy), "val")[0]
    (copy / "scannet_data" / f"{first.scene_id}_vert.npy").unlink()
    broken = [*run, f"data.root={copy}", "name=broken", "model.blind=both", "llm=none", "data.test=null"]
    with pytest.raises(ValueError, match=r"lacks 1 of the 4 scenes .* data\.on_error=skip"):
        train(compose_config(tool.CONFIG, broken))
    result = train(compose_config(tool.CONFIG, [*broken, "data.on_error=skip", "runtime.stop_after=2"]))
    figures = evaluate(
        compose_config(tool.CONFIG, [*broken, "data.on_error=skip", f"checkpoint={result.run_dir}/checkpoints/last.pt"])
    )
    assert figures["sqa3d/unreadable"] >= 1


def test_answers_outside_the_vocabulary_are_wrong(run: list[str], tmp_path: Path) -> None:
    (tmp_path / "few.json").write_text('["yes"]')
    few = [*run, f"data.answers.path={tmp_path}/few.json", "name=few", "model.blind=both", "llm=none", "data.test=null"]
    result = train(compose_config(tool.CONFIG, few))
    assert 0 < result.metrics["sqa3d/em@1"] == result.metrics["sqa3d/em@10"] < 50  # whatever "yes" answers
    assert result.metrics["sqa3d/what"] == 0.0


def test_toy_prints_all_arms(
    rooms_root: Path, tiny_rooms: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:  # fmt: skip
    seen = quick_toys(monkeypatch, tmp_path, f"data.root={rooms_root}", *tiny_rooms, "schedule.epochs=1")
    tool.main(["task=sqa3d"])
    printed = capsys.readouterr().out
    assert all(arm in printed for arm in seen["arms"])
    assert HOST_AND_LAYER.keys() < seen["arms"].keys()
    assert tool.TOYS["sqa3d"].note in printed
