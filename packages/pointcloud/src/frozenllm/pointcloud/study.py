"""Information filtering in a trained classifier of point clouds: ``python -m frozenllm.pointcloud.study RUN``.

How active the points of its validation clouds are, and how much of it is on the object and not on the background, where
the data tells them apart: ScanObjectNN with background does, in its key ``mask``.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch
from PIL import Image, ImageDraw
from torch import Tensor

from frozenllm.core.analysis.relevance import auroc, relevant_share, share_inside
from frozenllm.core.analysis.scores import Scores
from frozenllm.core.analysis.study import Frame, Mark, Sample, Study
from frozenllm.core.study import (
    HOST,
    LAYER,
    activations_of,
    check_counts,
    opened,
    read_studied,
    readable,
    shown_of,
    study_cli,
    tokens_at,
)
from frozenllm.pointcloud.data import PointClouds
from frozenllm.pointcloud.data.scanobjectnn import CLASSES, read_mask
from frozenllm.pointcloud.look import save_png, spread
from frozenllm.pointcloud.model import PointBERT
from frozenllm.pointcloud.ops import farthest_point_sample, gather
from frozenllm.pointcloud.toy_shapes import SHAPES

LOW, HIGH = 0.3, 0.7
"""Thresholds. Chosen: a low and a high one, as for videos."""
ON_OBJECT, OF_OBJECT = "share of activation on the object", "object above background (AUROC)"
VIEWS = {"from the front": (0, 1, 2), "from the right": (2, 1, 0), "from above": (0, 2, 1)}
"""Caption -> axes of a projection: to the right, upwards, and towards the eye; y is upright."""
_SIDE, _MARGIN = 320, 0.06
_SHOWN = 4  # clouds in the figure


def study(run: str | Path, *, limit: int | None = None, samples: int = 6, weights: str = "auto") -> Study:
    """What is active in the validation clouds of a run.

    Args:
        run: The run folder, or one of its checkpoints.
        limit: At most so many clouds, spread evenly.
        samples: How many of them go into the study as pictures.
        weights: See `frozenllm.core.training.read_run`.

    Raises:
        ValueError: The run is not of a classifier of point clouds, or it or its data cannot be read.
    """
    check_counts(limit, samples)
    saved = read_studied(run, weights).expect("a point cloud classifier", "point_bert")
    model, data, pictured, batches = opened(saved, limit, samples)
    assert isinstance(data, PointClouds)
    assert isinstance(model, PointBERT)
    masks = read_mask(data.where) if data.where.endswith(".h5") else None
    scores, result, clouds = Scores(), Study("Which points of a cloud are active?", "pointcloud"), []
    background = False
    for indices, points, labels in readable(batches):
        points, kept = thinned(points, saved.cfg.data.num_points)
        on_object = None
        if masks is not None:
            known = torch.from_numpy(masks[data.chosen[indices]])
            on_object = known.gather(1, kept.cpu())
            background |= not bool(on_object.all())
        groups = model.group(points)
        host = lambda points=points, groups=groups: model.tokens(points, groups)  # noqa: E731
        outputs, tokens = tokens_at(model, points, layer=model.llm, host=host)
        active = {
            (tap, kind): spread(values, groups, points).cpu()
            for tap, kind, values in activations_of({name: x[:, 1:] for name, x in tokens.items()})
        }
        for (tap, kind), values in active.items():
            _score(scores, values, tap, kind, on_object)
        guesses = outputs.argmax(dim=1).tolist()
        for row, index in enumerate(indices):
            if index in pictured:
                title = f"{_name(saved.cfg, labels[row])}, predicted {_name(saved.cfg, guesses[row])}"
                truth = None if on_object is None else on_object[row]
                clouds.append((title, points[row].cpu(), shown_of(active, row), truth))
    if not len(scores):
        raise ValueError(f"Not one validation cloud of {run} can be read.")
    result.findings = scores.findings() + scores.changes(HOST, LAYER, (ON_OBJECT, OF_OBJECT))
    result.notes = _notes(masks is not None, background)
    result.samples = [_sample(*entry) for entry in clouds]
    if clouds:
        result.pictures["Magnitude of the points, from 0 to 1, and where the object is"] = _figure(clouds[:_SHOWN])
    return result


def thinned(points: Tensor, num_points: int | None) -> tuple[Tensor, Tensor]:
    """What `frozenllm.pointcloud.transforms.thin` keeps of clouds (B, N, 3), and which points these are, (B, n)."""
    if num_points is None or points.shape[1] <= num_points:
        return points, torch.arange(points.shape[1], device=points.device).expand(points.shape[:2])
    kept = farthest_point_sample(points, num_points)
    return gather(points, kept), kept


def _score(scores: Scores, values: Tensor, tap: str, kind: str, on_object: Tensor | None) -> None:
    """Add a batch of points' activations (B, N)."""
    if tap in (HOST, LAYER):
        for threshold in (LOW, HIGH):
            above = values > threshold
            scores.add(f"points above {threshold}", above.float().mean(dim=1), tap, kind, unit="%")
            if on_object is not None:
                inside = _partly(share_inside(above.float(), on_object), on_object)
                scores.add(f"points above {threshold} that are on the object", inside, tap, kind,
                           chance=relevant_share(on_object), unit="%")  # fmt: skip
    if on_object is not None:
        inside, chance = _partly(share_inside(values, on_object), on_object), relevant_share(on_object)
        scores.add(ON_OBJECT, inside, tap, kind, chance=chance, unit="%")
        scores.add(OF_OBJECT, auroc(values, on_object), tap, kind, chance=0.5)


def _partly(values: Tensor, on_object: Tensor) -> Tensor:
    """NaN for clouds without a point of the background: all of anything is on the object there."""
    return values.masked_fill(on_object.all(dim=1), torch.nan)


def project(cloud: Tensor, axes: tuple[int, int, int]) -> Tensor:
    """Points (N, 3) in a square picture: (N, 2), from its upper left corner, as shares of its side."""
    span = float((cloud.amax(dim=0) - cloud.amin(dim=0)).max()) or 1.0
    centred = (cloud - (cloud.amax(dim=0) + cloud.amin(dim=0)) / 2) / span * (1 - 2 * _MARGIN)
    right, up, _ = axes
    return torch.stack([0.5 + centred[:, right], 0.5 - centred[:, up]], dim=1)


def _sample(title: str, cloud: Tensor, values: dict[str, list[float]], on_object: Tensor | None) -> Sample:
    """A cloud from several sides; its tokens are its points, the background's drawn hollow where it is known."""
    frames = []
    for caption, axes in VIEWS.items():
        places = project(cloud, axes)
        picture = Image.new("RGB", (_SIDE, _SIDE), "white")
        canvas = ImageDraw.Draw(picture)
        for number in cloud[:, axes[2]].argsort().tolist():  # the nearest last
            x, y = (places[number] * _SIDE).tolist()
            part = on_object is None or bool(on_object[number])
            canvas.ellipse((x - 2, y - 2, x + 2, y + 2), fill="#94a3b8" if part else "white", outline="#64748b")
        marks = [Mark("point", (round(x, 4), round(y, 4)), token) for token, (x, y) in enumerate(places.tolist())]
        frames.append(Frame(picture, marks, caption))
    relevant = None if on_object is None or bool(on_object.all()) else on_object.tolist()
    return Sample(title, frames, values, relevant)


def _figure(clouds: Sequence[tuple[str, Tensor, dict[str, list[float]], Tensor | None]]) -> Image.Image:
    titles = [title.replace(", predicted ", "\npredicted ") for title, *_ in clouds]
    rows = {}
    if all(truth is not None for *_, truth in clouds):
        rows["1 = on the object"] = torch.stack([truth.float() for *_, truth in clouds])  # type: ignore[union-attr]
    for tap in (HOST, LAYER):
        if f"magnitude at {tap}" in clouds[0][2]:
            rows[tap] = torch.tensor([values[f"magnitude at {tap}"] for _, _, values, _ in clouds])
    buffer = io.BytesIO()
    save_png(buffer, torch.stack([cloud for _, cloud, *_ in clouds]), rows, titles)
    return Image.open(buffer).convert("RGB")


def _name(cfg: object, label: int) -> str:
    kind = str(cfg.data.val.type)  # type: ignore[attr-defined]
    names: Sequence[str] = tuple(SHAPES) if kind.startswith("shapes") else CLASSES if kind == "scanobjectnn" else ()
    return names[label] if label < len(names) else f"class {label}"


def _notes(known: bool, background: bool) -> list[str]:
    notes = [
        "A token is a group of neighbouring points; a point has the mean of its groups, or its nearest group's. The "
        "class token takes no part.",
        "The tap host is what leaves the host's last block; adapter_out is what leaves the frozen layer.",
    ]
    if not known:
        return [*notes, "The data does not say which points are on the object: only thresholds are left."]
    if not background:
        return [*notes, "These clouds have no background: runs with data.variant=objectbg or hardest do."]
    return [
        *notes,
        "Which points are background is known from the data. Chance is the share of points that are on the object.",
        "Points at the edge of a cloud are unlike the others for any network, and background often lies there.",
    ]


main = partial(study_cli, "pointcloud", study, doc=__doc__)
"""The command line; takes its arguments, or None for the process's."""

if __name__ == "__main__":
    main()
