"""The information-filtering study of question answering: what is asked about, figures by definition, files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from studies import TAPS, gone, one, short_runs

from frozenllm.core.analysis import magnitude
from frozenllm.core.analysis.scores import Scores
from frozenllm.core.analysis.study import Study, read_study
from frozenllm.core.study import HOST, WEIGHTS, read_studied, validation_data
from frozenllm.vqa import study as vqa_study
from frozenllm.vqa.runs import ready
from frozenllm.vqa.toy import write_vqa
from frozenllm.vqa.toy.questions import candidates
from frozenllm.vqa.toy.scenes import CELL, Thing
from frozenllm.vqa.toy.truth import TRUTH, asked
from frozenllm.vqa.train import CONFIG

SCENE = (Thing(0, 0, "red", "circle"), Thing(0, 2, "red", "square"), Thing(2, 1, "blue", "triangle"))


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_vqa(tmp_path_factory.mktemp("study") / "vqa", train=40, val=12, test=2)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, root: Path, tiny: list[str]) -> dict[str, Path]:
    """Two runs of four steps."""
    wanted = ["recipe=toy_vqa", *tiny, f"data.root={root}", "data.batch_size=8"]
    return short_runs(CONFIG, [*wanted, f"runs={tmp_path_factory.mktemp('runs')}"])


@pytest.fixture(scope="module")
def found(runs: dict[str, Path]) -> dict[str, Study]:
    return {arm: vqa_study.study(run, samples=3) for arm, run in runs.items()}


@pytest.mark.parametrize(
    ("question", "things"),
    [
        ("What shape is the blue thing?", [2]),
        ("How many red things are there?", [0, 1]),
        ("How many circles are there?", [0]),
        ("Is there a red square?", [1]),
        ("Is there a blue square?", []),
        ("What color is the thing at the top left?", [0]),
        ("Is the circle left of the triangle?", [0, 2]),
        ("Is the triangle above the square?", [1, 2]),
    ],
)
def test_what_a_question_is_about(question, things):
    assert question in dict(candidates(SCENE))
    assert asked(SCENE, question) == tuple(SCENE[i] for i in things)


def test_the_truth_lies_beside_the_questions(root):
    known = json.loads((root / TRUTH).read_text())
    for subset in ("train2014", "val2014", "test-dev2015"):
        questions = json.loads((root / f"v2_OpenEnded_mscoco_{subset}_questions.json").read_text())["questions"]
        for question in questions:
            entry = known[str(question["question_id"])]
            assert all(box in entry["objects"] for box in entry["asked"])
            assert all(right - left == bottom - top == CELL for left, top, right, bottom in entry["objects"])


def test_figures_of_the_host_alone_are_those_of_the_definition(runs, found, root):
    saved = ready(read_studied(runs["none"]))
    data, model = validation_data(saved), saved.build()
    known = json.loads((root / TRUTH).read_text())
    shares = []
    for index, record in enumerate(data.records):
        inputs = {name: value[None] for name, value in data[index]["inputs"].items()}
        with torch.no_grad():
            active = magnitude(model.tokens(**inputs)[:, 1:])[0].view(3, 3)
        cells = [(top // CELL, left // CELL) for left, top, _, _ in known[str(record.question_id)]["asked"]]
        if cells:
            shares.append(float(sum(active[cell] for cell in cells) / active.sum()))
    measured = one(found["none"], vqa_study.ON_ASKED, HOST)
    assert measured.samples == len(shares) < len(data)
    assert measured.value == pytest.approx(100 * sum(shares) / len(shares), rel=1e-4)


def test_measures_of_a_hand_made_image():
    """Three objects of nine patches, of which the second is asked about: more active than the background alone."""
    values = torch.tensor([[1.0, 0.5, 0.8, 0.0, 0.0, 0.0, 0.0, 0.0, 0.2]])
    objects = torch.tensor([[True, True, True, *[False] * 6]])
    about = torch.tensor([[False, True, *[False] * 7]])
    scores = Scores()
    vqa_study._score(scores, values, HOST, "magnitude", about, objects)
    study = Study("", "vqa", scores.findings())
    assert one(study, vqa_study.AMONG, HOST).value == 0
    assert one(study, vqa_study.OBJECTS, HOST).value == 1
    assert one(study, vqa_study.ASKED, HOST).value == pytest.approx(6 / 8)
    assert one(study, vqa_study.ON_ASKED, HOST).value == pytest.approx(20)
    assert one(study, vqa_study.ON_ASKED, HOST).chance == pytest.approx(100 / 9)
    assert one(study, vqa_study.TOP, HOST).value == 0


def test_boxes_follow_the_images_crop():
    """In a picture twice as wide as high, the model sees the middle."""
    boxes = ([0, 0, 10, 40], [20, 0, 40, 40])
    left, middle = (vqa_study._covered([box], (80, 40), 8, 2) for box in boxes)
    assert not left.any()
    assert middle.tolist() == [True, False, True, False]


def test_taps_of_the_host_alone_and_of_the_layer(found):
    assert {finding.tap for finding in found["none"].findings} == {HOST}
    assert {finding.tap for finding in found["bundled"].findings} == {*TAPS, WEIGHTS}


def test_the_command_prints_and_saves(runs, capsys):
    vqa_study.main([str(runs["bundled"]), "--limit", "10", "--samples", "2"])
    assert vqa_study.AMONG in capsys.readouterr().out
    again = read_study(runs["bundled"])
    assert len(again.samples) == 2
    for sample in again.samples:
        assert "Answered" in sample.title
        assert [mark.token for mark in sample.frames[0].marks] == list(range(9))
    assert list(again.pictures)


def test_data_that_is_gone_is_one_sentence(runs, root):
    with gone(root), pytest.raises(SystemExit, match=r"error: The data folder .* does not exist"):
        vqa_study.main([str(runs["none"])])
