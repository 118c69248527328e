"""Asking a trained run about a scene, and looking at its objects."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

from frozenllm.core.training import compose_config, train
from frozenllm.vqa.answerer import Answerer
from frozenllm.vqa.scenes import ask, look
from frozenllm.vqa.scenes.answerer import HOST, LAYER, SceneAnswerer
from frozenllm.vqa.scenes.files import sqa3d_questions
from frozenllm.vqa.train import CONFIG

SITUATION, QUESTION = "I am facing the red wall.", "What is in front of me?"


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, rooms_root: Path, tiny_rooms: list[str]) -> dict[str, str]:
    """Run folders of two steps: with the frozen layer, and one that sees no scene."""
    folder = tmp_path_factory.mktemp("runs")
    shared = ["recipe=toy_sqa3d", f"data.root={rooms_root}", *tiny_rooms, f"runs={folder}", "runtime.stop_after=2"]
    arms = {"layer": ["llm=bundled"], "blind": ["llm=none", "model.blind=both"]}
    return {name: train(compose_config(CONFIG, [*shared, *arm, f"name={name}"])).run_dir for name, arm in arms.items()}


@pytest.fixture(scope="module")
def scene(rooms_root: Path) -> str:
    return sqa3d_questions(str(rooms_root), "val")[0].scene_id


def test_command_prints_answers(runs: dict[str, str], scene: str, capsys: pytest.CaptureFixture[str]) -> None:
    given = [runs["layer"], "--scene", scene, "--situation", SITUATION, "--question", QUESTION, "--top", "3"]
    ask.main(given)
    lines = capsys.readouterr().out.splitlines()
    best = SceneAnswerer(runs["layer"]).ask(scene, SITUATION, QUESTION, top=3)
    assert [line.split("  ")[0].strip() for line in lines] == [answer.text for answer in best]
    shown = [float(line.split()[-2]) for line in lines]
    assert shown == sorted(shown, reverse=True)


def test_views(runs: dict[str, str], scene: str) -> None:
    answerer = SceneAnswerer(f"{runs['layer']}/checkpoints/last.pt")
    view = answerer.view(scene, SITUATION, QUESTION)
    with torch.no_grad():
        out = answerer.model(answerer.points(view.scene)[None], [SITUATION], [QUESTION])
    tokens = out["tokens"][0, out["mask"][0]]
    assert list(view.maps) == [HOST, LAYER]
    assert view.boxes.shape == (len(tokens), 6)
    distance = (tokens - tokens.mean(0)).norm(dim=1)
    wanted = (distance - distance.min()) / (distance.max() - distance.min())
    torch.testing.assert_close(view.maps[HOST], wanted, rtol=1e-3, atol=1e-4)
    assert view.answers == answerer.ask(scene, SITUATION, QUESTION, top=3)
    best = torch.sigmoid(out["answers"][0]).max()
    assert view.answers[0].probability == pytest.approx(float(best), rel=1e-4)
    assert view.pose.shape == (7,)


def test_pictures(runs: dict[str, str], scene: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("plotly", reason="the extra [html] of frozenllm-pointcloud is not installed")
    look.main([runs["layer"], "--count", "2", "--out", str(tmp_path)])
    printed = capsys.readouterr().out
    assert all(f"wrote {tmp_path / name}" in printed for name in ("look.png", "look.html"))
    with Image.open(tmp_path / "look.png") as opened:
        assert opened.width > 700
    page = (tmp_path / "look.html").read_text()
    assert page.count('"type":"scatter3d"') >= 2 * 2 * 4
    assert "person, as predicted" in page
    assert 'src="http' not in page
    look.main(
        [runs["layer"], "--scene", scene, "--situation", SITUATION, "--question", QUESTION, "--out", str(tmp_path)]
    )
    assert QUESTION in (tmp_path / "look.html").read_text()


@pytest.mark.parametrize(("change", "words"), [
    ({"--scene": "scene9999_00"}, "scene9999_00_vert.npy does not exist"), ({"--situation": " "}, "situation is empty"),
    ({"--question": ""}, "question is empty"), ({"--top": "0"}, "must be positive"),
    ({"--scenes": "/no/such"}, "/no/such does not exist"), ({"run": "/no/such"}, "no checkpoint at|not the folder"),
])  # fmt: skip
def test_wrong_input_gives_one_sentence(runs: dict[str, str], scene: str, change: dict[str, str], words: str) -> None:
    given = {"--scene": scene, "--situation": SITUATION, "--question": QUESTION, **change}
    run = given.pop("run", runs["layer"])
    with pytest.raises(SystemExit, match=f"error: .*({words})") as caught:
        ask.main([run, *(part for pair in given.items() for part in pair)])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("arm", "options", "words"), [
    ("layer", ["--scene", "x"], "needs --scene, --situation and --question"),
    ("layer", ["--count", "0"], "must be 1 or more"), ("layer", ["--split", "dev"], "split must be"),
    ("blind", [], "sees no scene"),
])  # fmt: skip
def test_nothing_to_look_at(runs: dict[str, str], arm: str, options: list[str], words: str, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=f"error: .*{words}"):
        look.main([runs[arm], *options, "--out", str(tmp_path)])


def test_a_blind_run_answers(runs: dict[str, str], scene: str) -> None:
    answerer = SceneAnswerer(runs["blind"])
    assert answerer.ask(scene, SITUATION, QUESTION) == answerer.ask(scene, "I sit.", QUESTION)


def test_runs_of_another_kind_are_told_apart(runs: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="not of question answering"):
        Answerer(runs["layer"])
