"""Information filtering in a trained model that answers questions: ``python -m frozenllm.vqa.study RUN``.

How active the visual tokens are for its validation questions, and how much of it is on the objects that are asked
about, where the data knows them: the toy scenes do (`frozenllm.vqa.toy.truth`). No real data set here says it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw
from torch import Tensor
from torch.nn import functional as F

from frozenllm.core.analysis import class_attention
from frozenllm.core.analysis.relevance import auroc, pointing, relevant_share, share_inside
from frozenllm.core.analysis.scores import Scores
from frozenllm.core.analysis.study import Frame, Sample, Study, grid_marks
from frozenllm.core.study import (
    HOST,
    LAYER,
    TAPS,
    WEIGHTS,
    activations_of,
    check_counts,
    opened,
    read_studied,
    shown_of,
    study_cli,
    tokens_at,
)
from frozenllm.core.training import UNREADABLE, SavedRun
from frozenllm.vqa.data.questions import VQADataset
from frozenllm.vqa.data.records import VQARecord
from frozenllm.vqa.images import MEAN, STD, ImageFile, clip_transform
from frozenllm.vqa.meter.model import MeterVQA
from frozenllm.vqa.runs import ready
from frozenllm.vqa.study_pictures import figure
from frozenllm.vqa.toy.truth import TRUTH

COVERED = 0.5
"""Share of a patch that objects' boxes must cover for it to lie on them. Chosen."""
ON_ASKED = "share of activation on the objects asked about"
ASKED, AMONG = "objects asked about above the rest (AUROC)", "objects asked about above other objects (AUROC)"
OBJECTS, TOP = "objects above background (AUROC)", "most active patch is on an object asked about"
_CHANGES = (ON_ASKED, ASKED, AMONG, OBJECTS)
_SIDE = 240  # pixels of a picture that is smaller
_SHOWN = 4  # questions in the figure


def study(run: str | Path, *, limit: int | None = None, samples: int = 6, weights: str = "auto") -> Study:
    """What is active for the validation questions of a run.

    Args:
        run: The run folder, or one of its checkpoints.
        limit: At most so many questions, spread evenly.
        samples: How many of them go into the study as pictures.
        weights: See `frozenllm.core.training.read_run`.

    Raises:
        ValueError: The run is not of question answering, or it or its data cannot be read.
    """
    check_counts(limit, samples)
    saved = read_studied(run, weights)
    kind = saved.cfg.model.get("type")
    if kind == "sqa3d":
        from frozenllm.vqa.scenes.study import study_scenes  # needs the extra [scenes]

        return study_scenes(ready(saved), limit, samples)
    if kind != "meter_vqa":
        raise ValueError(
            f"{run} is a run of the model {kind!r}: only question answering has objects that are asked about."
        )
    return _study(ready(saved), limit, samples)


def _study(saved: SavedRun, limit: int | None, samples: int) -> Study:
    model, data, pictured, batches = opened(saved, limit, samples)
    assert isinstance(data, VQADataset)
    assert isinstance(model, MeterVQA)
    layer = getattr(model.trunk.llm, "visual", None)
    side = model.trunk.image_encoder.grid
    scores, result = Scores(), Study("Which patches of an image are active, given a question?", "vqa")
    known = False
    for indices, batch in batches:
        keep = (batch["targets"] != UNREADABLE).any(dim=1).nonzero().flatten().tolist()
        if not keep:
            continue
        inputs = {name: value[keep] for name, value in batch["inputs"].items()}
        records = [data.records[indices[place]] for place in keep]
        host = lambda inputs=inputs: model.tokens(**inputs)  # noqa: E731
        outputs, tokens = tokens_at(model, inputs, layer=layer, host=host, taps=(*TAPS, WEIGHTS))
        paid = tokens.pop(WEIGHTS, None)
        patches = {name: value[:, 1:] for name, value in tokens.items()}  # the class token is first
        active = {(tap, kind): values.cpu() for tap, kind, values in activations_of(patches)}
        if paid is not None:
            active[WEIGHTS, "attention"] = class_attention(paid[..., 1:]).cpu()
        truths = [patch_truth(record, data.image_size, side) for record in records]
        asked, objects = _stacked(truths, side * side)
        known |= asked is not None
        for (tap, kind), values in active.items():
            _score(scores, values, tap, kind, asked, objects)
        answers = outputs.argmax(dim=1).tolist()
        for row, place in enumerate(keep):
            if indices[place] in pictured:
                said = model.answers.names[answers[row]]
                title = f"{records[row].question} Answered {said}, {_truly(records[row])}"
                picture = _picture(inputs["pixel_values"][row].cpu())
                relevant = None if asked is None or not bool(asked[row].any()) else asked[row].tolist()
                frame = Frame(picture, grid_marks(side, side), "the image as the model sees it")
                shown = shown_of(active, row)
                result.samples.append(Sample(title, [frame], shown, relevant, str(indices[place])))
    if not len(scores):
        raise ValueError(f"Not one validation question of {saved.path} can be read.")
    result.findings = scores.findings() + scores.changes(HOST, LAYER, _CHANGES)
    result.notes = _notes(known, layer is not None)
    if result.samples:
        first = sorted(result.samples, key=lambda sample: sample.relevant is None)[:_SHOWN]
        result.pictures["Activation of the patches; framed: what is asked about"] = figure(first, side)
    return result


def patch_truth(record: VQARecord, size: int, side: int) -> tuple[Tensor, Tensor] | None:
    """Which patches lie on the objects that a question is about, and which on any object.

    Args:
        record: The question.
        size: Pixels of the image that the model sees.
        side: Patches along one side of it.

    Returns:
        Twice (side x side,) bool, row by row; None where nothing is known.

    Raises:
        ValueError: The file with the boxes is damaged.
    """
    if not isinstance(record.image, ImageFile):
        return None
    entry = _read_truth(record.image.path.parent.parent / TRUTH).get(str(record.question_id))
    if entry is None:
        return None
    with Image.open(record.image.path) as opened:
        shape = opened.size
    return tuple(_covered(boxes, shape, size, side) for boxes in (entry["asked"], entry["objects"]))  # type: ignore


def _covered(boxes: Sequence[Sequence[int]], shape: tuple[int, int], size: int, side: int) -> Tensor:
    """Patches that boxes cover, after the same resizing and cropping as the image's."""
    drawn = Image.new("RGB", shape)
    canvas = ImageDraw.Draw(drawn)
    for left, top, right, bottom in boxes:
        canvas.rectangle((left, top, right - 1, bottom - 1), fill="white")
    seen = _unnormalized(clip_transform(size)(drawn))[:1]
    return (F.adaptive_avg_pool2d(seen, side)[0] >= COVERED).flatten()


@lru_cache(maxsize=4)
def _read_truth(path: Path) -> Mapping[str, Any]:
    if not path.is_file():
        return {}
    try:
        return dict(json.loads(path.read_text()))
    except (OSError, ValueError, TypeError) as error:
        raise ValueError(f"{path} cannot be read ({error}): remove it, or write the toy data anew.") from error


def _stacked(truths: Sequence[tuple[Tensor, Tensor] | None], count: int) -> tuple[Tensor | None, Tensor | None]:
    """Both as (B, N), none where nothing is known of a question; None where nothing is known of any."""
    if all(truth is None for truth in truths):
        return None, None
    nothing = torch.zeros(count, dtype=torch.bool)
    pairs = [truth or (nothing, nothing) for truth in truths]
    return torch.stack([asked for asked, _ in pairs]), torch.stack([objects for _, objects in pairs])


def _score(scores: Scores, values: Tensor, tap: str, kind: str, asked: Tensor | None, objects: Tensor | None) -> None:
    """Add a batch of activations (B, N): thresholds where nothing is known."""
    if asked is None or objects is None:
        for threshold in (0.3, 0.7):
            above = (values > threshold).float().mean(dim=1)
            scores.add(f"patches above {threshold}", above, tap, kind, unit="%")
        return
    scores.add(ASKED, auroc(values, asked), tap, kind, chance=0.5)
    scores.add(AMONG, auroc(values, asked, objects), tap, kind, chance=0.5)
    scores.add(OBJECTS, auroc(values, objects), tap, kind, chance=0.5)
    if tap in (HOST, LAYER, WEIGHTS):
        chance = relevant_share(asked)
        scores.add(ON_ASKED, share_inside(values, asked), tap, kind, chance=chance, unit="%")
        scores.add(TOP, pointing(values, asked), tap, kind, chance=chance, unit="%")


def _unnormalized(image: Tensor) -> Tensor:
    mean, std = (torch.tensor(values)[:, None, None] for values in (MEAN, STD))
    return (image * std + mean).clamp(0, 1)


def _picture(image: Tensor) -> Image.Image:
    pixels = (_unnormalized(image) * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
    picture = Image.fromarray(pixels)
    factor = -(-_SIDE // picture.width)
    return picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.NEAREST)


def _truly(record: VQARecord) -> str:
    return "the truth is not known" if record.majority is None else f"truly {record.majority}"


def _notes(known: bool, layer: bool) -> list[str]:
    notes = [
        "A token is a patch of the image after it met the question in the fusion; the class token takes no part. The "
        "tap host is what leaves the fusion, adapter_out what leaves the frozen layer."
    ]
    if layer:
        notes.append("Attention is what the class token, the only one that is read, pays inside the block.")
    if not known:
        return [*notes, "The data does not say where the objects are that are asked about: only thresholds are left."]
    return [
        *notes,
        "Questions about something that is not there (Is there ...? How many ...?) are left out. Chance of a share is "
        "the share of patches on the objects asked about.",
        "Whether activation follows the question is said by the objects asked about against the other objects alone: "
        "objects stand out against an empty background for any network.",
    ]


main = partial(study_cli, "vqa", study, doc=__doc__)
"""The command line; takes its arguments, or None for the process's."""

if __name__ == "__main__":
    main()
