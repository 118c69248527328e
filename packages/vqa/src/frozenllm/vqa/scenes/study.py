"""The information-filtering study of runs on SQA3D; `frozenllm.vqa.study` calls it.

How active the object tokens are for the validation questions: those on the objects that are asked about against the
others. Which objects these are is read from the question's words, the pose and the annotated boxes (`asked`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from PIL import Image, ImageDraw
from torch import Tensor

from frozenllm.core.analysis.relevance import auroc, pointing, relevant_share, share_inside
from frozenllm.core.analysis.scores import Scores
from frozenllm.core.analysis.study import Frame, Mark, Sample, Study
from frozenllm.core.study import HOST, LAYER, activations_of, opened, shown_of, tokens_at
from frozenllm.core.training import UNREADABLE, SavedRun
from frozenllm.vqa.scenes.asked import asked_about, inside
from frozenllm.vqa.scenes.model import SituatedQA
from frozenllm.vqa.scenes.pose import heading

ON_ASKED = "share of activation on the objects asked about"
ASKED, AMONG = "objects asked about above the rest (AUROC)", "objects asked about above other objects (AUROC)"
TOP = "most active token is on an object asked about"
_CHANGES = (ON_ASKED, ASKED, AMONG)
_SIDE, _SHOWN = 480, 4000  # pixels, and points of a picture


def study_scenes(saved: SavedRun, limit: int | None, samples: int) -> Study:
    """What is active for the validation questions of a run, see `frozenllm.vqa.study.study`.

    Args:
        saved: The run, from `frozenllm.vqa.runs.ready`.
        limit: At most so many questions.
        samples: How many of them go into the study as pictures.

    Raises:
        ValueError: The model sees no scene, or its data cannot be read.
    """
    model, _, pictured, batches = opened(saved, limit, samples)
    assert isinstance(model, SituatedQA)
    if model.detector is None:
        raise ValueError(f"The model of {saved.path} sees no scene (model.blind): it has no object tokens to study.")
    scores, result = Scores(), Study("Which object tokens of a scene are active, given a question?", "vqa")
    for indices, batch in batches:
        outputs, tokens = _tokens(model, batch["inputs"])
        mask = (outputs["mask"] & (batch["targets"]["answer"] != UNREADABLE)[:, None]).cpu()
        boxes = model.detector.boxes(outputs["detected"]).float().cpu()
        asked, objects = (torch.zeros_like(mask) for _ in range(2))
        for row, question in enumerate(batch["inputs"]["question"]):
            targets = {name: batch["targets"][name][row].cpu() for name in ("pose", "boxes", "classes")}
            on = inside(boxes[row], targets["boxes"])
            asked[row] = on[:, asked_about(question, **targets)].any(dim=1)
            objects[row] = on.any(dim=1)
        active = {(tap, kind): v.cpu() for tap, kind, v in activations_of(tokens, outputs["mask"])}
        for (tap, kind), values in active.items():
            _score(scores, values, tap, kind, asked, objects, mask)
        guesses = outputs["answers"].argmax(dim=1).tolist()
        for row, index in enumerate(indices):
            if index in pictured:
                question, said = batch["inputs"]["question"][row], model.answers.names[guesses[row]]
                title = f"{batch['inputs']['situation'][row]} {question} Answered {said}, truly {batch['answer'][row]}"
                shown = shown_of(active, row)
                pose = batch["targets"]["pose"][row].cpu()
                frame = _frame(batch["inputs"]["points"][row].cpu(), boxes[row], mask[row], pose)
                relevant = asked[row].tolist() if bool(asked[row].any()) else None
                result.samples.append(Sample(title, [frame], shown, relevant, str(index)))
    result.findings = scores.findings() + scores.changes(HOST, LAYER, _CHANGES)
    if not result.findings:
        raise ValueError(
            f"{saved.path}: no proposal lies on an object that is asked about; its detector finds nothing."
        )
    result.notes = list(_NOTES)
    return result


@torch.no_grad()
def _tokens(model: SituatedQA, inputs: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    if model.llm is None:
        outputs = model(**inputs)
        return outputs, {HOST: outputs["tokens"]}
    return tokens_at(model, inputs, layer=model.llm, host=lambda: torch.empty(0))  # it has a layer


def _score(scores: Scores, values: Tensor, tap: str, kind: str, asked: Tensor, objects: Tensor, mask: Tensor) -> None:
    """Add a batch of activations (B, K)."""
    scores.add(ASKED, auroc(values, asked, mask), tap, kind, chance=0.5)
    scores.add(AMONG, auroc(values, asked, mask & objects), tap, kind, chance=0.5)
    if tap in (HOST, LAYER):
        chance = relevant_share(asked, mask)
        scores.add(ON_ASKED, share_inside(values, asked, mask), tap, kind, chance=chance, unit="%")
        scores.add(TOP, pointing(values, asked, mask), tap, kind, chance=chance, unit="%")


def _frame(points: Tensor, boxes: Tensor, mask: Tensor, pose: Tensor) -> Frame:
    """The scene from above, x to the right and y up, with the proposals' boxes; the red arrow is the person."""
    shown = points[:: max(1, len(points) // _SHOWN)]
    low, high = points[:, :2].amin(dim=0), points[:, :2].amax(dim=0)
    middle, span = (low + high) / 2, float((high - low).max()) * 1.06 or 1.0

    def place(where: Tensor) -> list[list[float]]:
        return ((where - middle) / span * torch.tensor([1.0, -1.0]) + 0.5).tolist()

    picture = Image.new("RGB", (_SIDE, _SIDE), "white")
    canvas = ImageDraw.Draw(picture)
    order = shown[:, 2].argsort()
    for x, y in place(shown[order, :2]):
        canvas.ellipse((x * _SIDE - 2, y * _SIDE - 2, x * _SIDE + 2, y * _SIDE + 2), fill="#94a3b8")
    person, ahead = pose[:2].float(), torch.tensor(heading(pose.double().numpy())[:2]).float()
    (x0, y0), (x1, y1) = place(torch.stack([person, person + 0.7 * ahead]))
    canvas.line((x0 * _SIDE, y0 * _SIDE, x1 * _SIDE, y1 * _SIDE), fill="#b91c1c", width=4)
    canvas.ellipse((x0 * _SIDE - 6, y0 * _SIDE - 6, x0 * _SIDE + 6, y0 * _SIDE + 6), fill="#b91c1c")
    marks = []
    for token in mask.nonzero().flatten().tolist():
        half = boxes[token, 3:5].clamp(0.1, span) / 2
        (left, bottom), (right, top) = place(torch.stack([boxes[token, :2] - half, boxes[token, :2] + half]))
        marks.append(Mark("rect", tuple(round(v, 4) for v in (left, top, right, bottom)), token))
    return Frame(picture, marks, "from above; red: the person, and where they look")


_NOTES = (
    "A token is a proposal of the detector; those that it takes for nothing are masked and not counted. A token is on "
    "an object if the middle of its box lies in the object's annotated box.",
    "What a question is about is read from its words: the nearest object in the direction that it names, seen from the "
    "person, or the objects of the class that it names. Questions whose words say neither, or whose object no proposal "
    "is on, are left out.",
    "Whether activation follows the question is said by the objects asked about against the other objects alone.",
)
