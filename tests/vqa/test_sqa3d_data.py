"""SQA3D's questions, samples and batches, and what happens when something is wrong."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from frozenllm.core.training import UNREADABLE, BrokenSample, compose_config
from frozenllm.vqa.scenes.arrays import read_scene
from frozenllm.vqa.scenes.data import scene_batch, sqa3d
from frozenllm.vqa.scenes.dataset import MEAN_COLOR, UNKNOWN
from frozenllm.vqa.scenes.files import answers_of, question_type, sqa3d_questions
from frozenllm.vqa.scenes.pose import own_frame

QUESTIONS = "sqa_task/balanced/v1_balanced_questions_{}_scannetv2.json"
ANNOTATIONS = "sqa_task/balanced/v1_balanced_sqa_annotations_{}_scannetv2.json"


def edit(root: Path, tmp_path: Path, name: str, change: Any) -> str:
    """A copy of the questions with one file changed; the scenes are the same."""
    copy = tmp_path / "copy"
    shutil.copytree(root / "sqa_task", copy / "sqa_task", dirs_exist_ok=True)
    if not (copy / "scannet_data").exists():
        (copy / "scannet_data").symlink_to(root / "scannet_data")
    path = copy / name
    content = change(json.loads(path.read_text()))
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return str(copy)


def test_question_types() -> None:
    by_hand = {
        "What is behind me?": "what", "Is the door open?": "is", "How many chairs are there?": "how",
        "Can I see the window": "can", "Which way is the bed?": "which", "which": "which", "Where am I?": "others",
        "What's on my left?": "others", "  is it?": "is", "": "others", "Isn't it?": "others", "What?": "what",
    }  # fmt: skip
    assert {text: question_type(text) for text in by_hand} == by_hand


def test_questions_by_hand(tmp_path: Path) -> None:
    """Read by key, whatever the order of the keys."""
    folder = tmp_path / "balanced"
    folder.mkdir()
    head = {"scene_id": "scene0380_00", "question_id": 220602000000}
    asked = {**head, "situation": "I face a window.", "alternative_situation": ["A", "B"], "question": "What color?"}
    rotation = {"_w": 0.995, "_x": 0, "_y": 0, "_z": 0.0998}
    told = {
        **head,
        "answers": [{"answer": "brown"}],
        "position": {"z": 0, "x": -0.97, "y": -1.24},
        "rotation": rotation,
    }
    (folder / Path(QUESTIONS.format("val")).name).write_text(json.dumps({"questions": [asked]}))
    (folder / Path(ANNOTATIONS.format("val")).name).write_text(json.dumps({"annotations": [told]}))
    (tmp_path / "answer_dict.json").write_text(json.dumps([{"two": 1, "brown": 0}, {"0": "brown", "1": "two"}]))
    (question,) = sqa3d_questions(str(tmp_path), "val")
    assert question.pose == (-0.97, -1.24, 0, 0, 0, 0.0998, 0.995)
    assert (question.situation, question.alternatives, question.answer) == ("I face a window.", ("A", "B"), "brown")
    assert answers_of(str(tmp_path)) == ("brown", "two")


def test_scanqa_format_says_the_same(rooms_root: Path, tmp_path: Path) -> None:
    """As SQA3D's converter writes it: one list, with the pose as seven numbers."""
    published = sqa3d_questions(str(rooms_root), "val")
    entries = [
        {
            "answers": [q.answer], "object_ids": [], "object_names": [], "question": q.question,
            "situation": q.situation, "question_id": q.question_id, "scene_id": q.scene_id, "position": list(q.pose),
        }
        for q in published
    ]  # fmt: skip
    (tmp_path / "qa").mkdir()
    (tmp_path / "qa/SQA_balanced_val.json").write_text(json.dumps(entries))
    (tmp_path / "qa/answer_counter.json").write_text(json.dumps(["yes", "no", "yes", "bed"]))
    read = sqa3d_questions(str(tmp_path), "val", format="scanqa")
    assert [(q.question_id, q.pose, q.answer) for q in read] == [(q.question_id, q.pose, q.answer) for q in published]
    assert answers_of(str(tmp_path), format="scanqa") == ("bed", "no", "yes")


def first(key: str, **changes: Any) -> Any:
    def change(content: dict[str, Any]) -> dict[str, Any]:
        content[key][0] = {**content[key][0], **changes}
        return content

    return change


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        (QUESTIONS.format("val"), lambda content: {}, "no entries under 'questions'"),
        (QUESTIONS.format("val"), lambda content: "{", "not JSON"),
        (QUESTIONS.format("val"), first("questions", question_id=1), None),
        (ANNOTATIONS.format("val"), first("annotations", position={"x": 1}), "'y' is missing"),
        (ANNOTATIONS.format("val"), first("annotations", answers=[]), "cannot be read"),
        (ANNOTATIONS.format("val"), first("annotations", rotation=dict.fromkeys(("_x", "_y", "_z", "_w"), 0)), "pose"),
        ("sqa_task/answer_dict.json", lambda content: {"yes": 0}, "no answer dictionary"),
        ("sqa_task/answer_dict.json", lambda content: [{"yes": 0, "no": 2}, {}], "not 0 to 1"),
    ],
)
def test_damaged_files_are_named(
    rooms_root: Path, tmp_path: Path, name: str, change: Any, message: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    root = edit(rooms_root, tmp_path, name, change)
    if message is None:  # a question without annotation is left out
        whole = sqa3d_questions(str(rooms_root), "val")
        assert len(sqa3d_questions(root, "val")) == len(whole) - 1
        assert "Left out 1 questions" in caplog.text
        return
    with pytest.raises(ValueError, match=message) as caught:
        sqa3d(root, "val")
    assert Path(name).name in str(caught.value)


def test_mistyped_paths_and_options(rooms_root: Path, tmp_path: Path) -> None:
    root = str(rooms_root)
    for options, message in [
        ({"root": None, "split": "val"}, "give data.root="),
        ({"root": f"{root}x", "split": "val"}, "does not exist"),
        ({"root": str(tmp_path), "split": "val"}, "is data.root the right folder"),
        ({"root": root, "split": "valid"}, "split must be train or val or test"),
        ({"root": root, "split": "val", "format": "coco"}, "format must be sqa3d or scanqa"),
        ({"root": root, "split": "val", "format": "scanqa"}, "SQA_val.json cannot be read"),
        ({"root": root, "split": "val", "scenes": f"{tmp_path}/no"}, "make it with python -m"),
        ({"root": root, "split": "val", "scenes": str(tmp_path)}, "lacks 4 of the 4 scenes"),
        ({"root": root, "split": "val", "scenes": str(tmp_path), "on_error": "skip"}, "lacks 4 of the 4 scenes"),
        ({"root": root, "split": "val", "num_points": 0}, "num_points must be positive"),
        ({"root": root, "split": "val", "situations": "none"}, "situations must be"),
        ({"root": root, "split": "val", "augment": {"turn": 3}}, "data.augment has no option 'turn'"),
        ({"root": root, "split": "val", "answers": ["never"]}, "belongs to other data"),
    ]:
        with pytest.raises(ValueError, match=message):
            sqa3d(**options)


def test_a_sample(rooms_root: Path) -> None:
    data = sqa3d(str(rooms_root), "train", num_points=300, train=True)
    np.random.seed(3)
    sample = data[5]
    question, _ = data.questions[5]
    scene = read_scene(rooms_root / "scannet_data", question.scene_id)
    points, targets = sample["inputs"]["points"], sample["targets"]
    assert points.shape == (300, 7)
    assert points.dtype == targets["pose"].dtype == targets["boxes"].dtype == torch.float32
    assert targets["semantic"].dtype == targets["instance"].dtype == targets["classes"].dtype == torch.int64
    # Every point is a vertex of the scene, with its colour, and its labels agree with the boxes.
    colors = points[:, 3:6].double().numpy() * 256 + MEAN_COLOR
    vertices = {tuple(row) for row in scene.points.round(3).tolist()}
    assert {
        tuple(row) for row in np.hstack([points[:, :3].numpy(), colors.round()]).astype("f4").round(3).tolist()
    } <= (vertices)
    np.testing.assert_allclose(points[:, 6], points[:, 2] - np.percentile(scene.points[:, 2], 0.99), atol=1e-6)
    on = targets["instance"] >= 0
    assert on.any()
    assert (targets["classes"][targets["instance"][on]] == targets["semantic"][on]).all()
    centre, size = targets["boxes"][targets["instance"][on]].split(3, dim=1)
    assert ((points[on, :3] - centre).abs() <= size / 2 + 1e-4).all()
    assert (targets["semantic"][~on] == -1).all()  # walls and floor
    assert data.index[sample["answer"]] == targets["answer"]
    assert sample["question_type"] == question_type(sample["inputs"]["question"])


def test_switches_of_points(rooms_root: Path) -> None:
    for color, height, channels in ((False, False, 3), (True, False, 6), (False, True, 4)):
        data = sqa3d(str(rooms_root), "val", num_points=20, use_color=color, use_height=height)
        assert data[0]["inputs"]["points"].shape == (20, channels)
        assert data.channels == channels
    assert len(sqa3d(str(rooms_root), "val", num_points=5000)[0]["inputs"]["points"]) == 5000  # more than there are


def test_augmented_samples_keep_points_boxes_and_pose_together(rooms_root: Path) -> None:
    plain, moved = (
        sqa3d(str(rooms_root), "train", num_points=64, augment=augment)
        for augment in (None, {"flip": False, "degrees": 20, "metres": 2})
    )
    for index in range(3):
        np.random.seed(index)
        one = plain[index]
        np.random.seed(index)  # the points are drawn first
        other = moved[index]
        frames = [own_frame(s["inputs"]["points"][:, :3].numpy(), s["targets"]["pose"].numpy()) for s in (one, other)]
        np.testing.assert_allclose(*frames, atol=1e-4)
        assert (one["inputs"]["points"][:, :3] - other["inputs"]["points"][:, :3]).abs().max() > 0.1
        assert torch.equal(one["inputs"]["points"][:, 3:], other["inputs"]["points"][:, 3:])
    assert sqa3d(str(rooms_root), "train", augment=True).augment.degrees == 5
    assert sqa3d(str(rooms_root), "train", augment=False).augment is None


def test_situations_in_other_words(rooms_root: Path) -> None:
    main, everything, drawn = (
        sqa3d(str(rooms_root), "train", num_points=8, situations=kind, limit=4) for kind in ("main", "all", "random")
    )
    assert len(everything) == 3 * len(main) == 12
    question, _ = main.questions[0]
    texts = {question.situation, *question.alternatives}
    assert {everything[i]["inputs"]["situation"] for i in range(3)} == texts
    assert {drawn[0]["inputs"]["situation"] for _ in range(60)} == texts
    assert {main[0]["inputs"]["situation"] for _ in range(5)} == {question.situation}


def test_answers_outside_the_dictionary(rooms_root: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Not trained on; in evaluation asked all the same, with a target that no model can hit."""
    caplog.set_level(logging.INFO, "frozenllm")
    root, answers = str(rooms_root), ["yes", "no"]
    train = sqa3d(root, "train", answers=answers, num_points=8, train=True)
    assert {question.answer for question, _ in train.questions} == {"yes", "no"}
    assert "Left out" in caplog.text
    val = sqa3d(root, "val", answers=answers, num_points=8)
    assert len(val) == len(sqa3d_questions(root, "val"))
    targets = {val[i]["answer"]: val[i]["targets"]["answer"] for i in range(len(val))}
    assert targets["yes"] == 0
    assert set(targets.values()) == {0, 1, UNKNOWN}


def test_unknown_and_broken_scenes(rooms_root: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = edit(rooms_root, tmp_path, QUESTIONS.format("val"), first("questions", scene_id="scene9999_00"))
    with pytest.raises(ValueError, match=r"lacks 1 of the 5 scenes .* scene9999_00 .*data.on_error=skip"):
        sqa3d(root, "val", num_points=8)
    val = sqa3d(root, "val", num_points=8, on_error="skip")
    sample = val[0]
    assert sample["targets"]["answer"] == UNREADABLE
    assert val.num_unreadable == 1
    assert "scene9999_00" in caplog.text
    batch = scene_batch([sample, val[1]])
    assert batch["inputs"]["points"].shape == (2, 8, 7)
    assert batch["targets"]["answer"].tolist() == [UNREADABLE, val[1]["targets"]["answer"]]
    # A damaged file is found when it is read.
    scenes = tmp_path / "scenes"
    shutil.copytree(rooms_root / "scannet_data", scenes)
    wanted = sqa3d_questions(str(rooms_root), "train")[0].scene_id
    (scenes / f"{wanted}_vert.npy").write_bytes(b"nothing")
    train = sqa3d(str(rooms_root), "train", scenes=str(scenes), num_points=8, train=True)
    with pytest.raises(BrokenSample, match=f"{wanted}_vert.npy cannot be read .*set on_error to skip"):
        train[0]
    train = sqa3d(str(rooms_root), "train", scenes=str(scenes), num_points=8, train=True, on_error="skip")
    assert train[0]["scene_id"] != wanted  # the next readable one takes its place


def test_batches(rooms_root: Path) -> None:
    data = sqa3d(str(rooms_root), "train", num_points=16)
    samples = [data[i] for i in (0, 30, 60)]
    batch = scene_batch(samples)
    assert batch["inputs"]["points"].shape == (3, 16, 7)
    assert batch["inputs"]["question"] == [sample["inputs"]["question"] for sample in samples]
    assert {key: batch["targets"][key].shape for key in ("answer", "pose", "semantic", "instance")} == {
        "answer": (3,), "pose": (3, 7), "semantic": (3, 16), "instance": (3, 16),
    }  # fmt: skip
    assert [boxes.shape for boxes in batch["targets"]["boxes"]] == [s["targets"]["boxes"].shape for s in samples]
    assert batch["question_id"] == [sample["question_id"] for sample in samples]


def test_configs_build_their_data(rooms_root: Path) -> None:
    """Every key of the config is one that the data set takes."""
    cfg = compose_config("frozenllm.vqa.conf", ["data=toy_rooms", f"data.root={rooms_root}", "llm=none"])
    for part in ("train", "val"):
        options = dict(cfg.data[part])
        assert options.pop("type") == "sqa3d"
        data = sqa3d(**options)
        assert data.train == (part == "train")
        assert data[0]["inputs"]["points"].shape == (512, 7)
    cfg = compose_config("frozenllm.vqa.conf", ["data=sqa3d", f"data.root={rooms_root}", "llm=none"])
    data = sqa3d(**{key: value for key, value in cfg.data.train.items() if key != "type"})
    assert (data.num_points, data.augment.degrees, data.augment.flip) == (40_000, 5, True)
