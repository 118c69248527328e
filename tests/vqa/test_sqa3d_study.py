"""The information-filtering study of scenes: which objects a question is about, and the study of a short run."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

pytest.importorskip("mmdet3d", reason="needs the extra [scenes]")

from studies import short_runs

from frozenllm.core.analysis.study import read_study
from frozenllm.core.study import HOST, LAYER
from frozenllm.vqa import study as vqa_study
from frozenllm.vqa.scenes.asked import asked_about, inside
from frozenllm.vqa.scenes.classes import CLASSES
from frozenllm.vqa.train import CONFIG

# An unturned person looks along -x, with -y on the left.
POSE = torch.tensor([0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0])
PLACES = {"bed": (-2.0, 0.0), "chair": (0.0, -1.0), "sofa": (1.5, 0.2), "table": (0.1, 3.0), "door": (-4.0, 0.0)}
BOXES = torch.tensor([[*place, 0.5, 1.0, 1.0, 1.0] for place in PLACES.values()])
NAMES = torch.tensor([CLASSES.index(name) for name in PLACES])


@pytest.mark.parametrize(
    ("question", "objects"),
    [
        ("What is in front of me?", {"bed"}),  # the door is farther away
        ("What is on my left?", {"chair"}),
        ("Is there a chair behind me?", {"sofa"}),
        ("How many chairs are beside me, left and right?", {"chair", "table"}),
        ("What is nearest to me?", {"chair"}),
        ("Which way do I go to reach the table?", {"table"}),
        ("How many sofas are in this room?", {"sofa"}),
        ("What color is it?", set()),
    ],
)
def test_what_a_question_is_about(question, objects):
    assert {
        name for name, on in zip(PLACES, asked_about(question, POSE, BOXES, NAMES).tolist(), strict=True) if on
    } == objects


def test_a_turned_person_means_other_objects():
    turned = POSE.clone()
    turned[3:] = torch.tensor([0.0, 0.0, 1.0, 0.0])  # half a turn
    assert asked_about("What is in front of me?", turned, BOXES, NAMES).tolist() == [False, False, True, False, False]
    assert not asked_about("What is in front of me?", POSE, BOXES[:0], NAMES[:0]).any()


def test_a_box_lies_in_another_by_its_middle():
    boxes = torch.tensor([[0.0, 0.0, 0.5, 9.0, 9.0, 9.0], [0.6, 0.0, 0.5, 0.1, 0.1, 0.1]])
    other = torch.tensor([[0.0, 0.0, 0.5, 1.0, 1.0, 1.0]])
    assert inside(boxes, other).tolist() == [[True], [False]]


@pytest.mark.parametrize("arm", ["none", "bundled"])
def test_the_study_of_a_short_run(arm, tmp_path: Path, rooms_root: Path, capsys):
    wanted = ["recipe=toy_sqa3d", f"data.root={rooms_root}", f"runs={tmp_path}", "data.batch_size=4"]
    wanted += ["runtime.device=cpu", "runtime.workers=0"]
    run = short_runs(CONFIG, wanted, [arm])[arm]
    try:
        vqa_study.main([str(run), "--limit", "24", "--samples", "2"])
    except SystemExit as error:  # four steps may leave no proposal on an object
        assert re.search("no proposal of its detector lies on an object", str(error))  # noqa: PT017
        return
    assert "asked about" in capsys.readouterr().out
    again = read_study(run)
    assert {finding.tap for finding in again.findings} >= ({HOST} if arm == "none" else {HOST, LAYER})
    assert len(again.samples) == 2
