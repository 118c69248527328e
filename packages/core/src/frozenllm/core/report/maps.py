"""Samples of several arms' studies beside each other, as the script of the page reads them."""

from __future__ import annotations

import base64
import hashlib
import io
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.colors import to_hex
from PIL import Image

from frozenllm.core.analysis.study import Frame, Sample
from frozenllm.core.report.studies import Studied

SCALE = 10_000
"""Activations are handed over as whole numbers: a study keeps four decimals."""
_LONGEST_SIDE = 480  # of a picture in the page; a phone shows 330 of them
_LARGE = 60_000  # bytes of a PNG, above which a JPEG takes its place
_MANY_MARKS = 9_000  # shown at once; more make a phone slow
_STOPS = 17  # of the colour map


def maps_data(studied: Sequence[Studied]) -> dict[str, Any] | None:
    """Everything the maps of a section need, ready for JSON.

    Args:
        studied: Arms with their studies; the first study of each is shown.

    Returns:
        None where no study has samples. ``samples[i]["views"]`` are the same sample seen by several arms; pictures and
        marks are kept once and referred to by their place.
    """
    columns = _aligned([entry.studies[0].samples for entry in studied])
    if not columns:
        return None
    pictures, marks = _Table(), _Table()
    samples = []
    for column in columns:
        views = [_view(arm, sample, pictures, marks) for arm, sample in enumerate(column) if sample is not None]
        samples.append({"views": views})
    names = dict.fromkeys(name for s in samples for view in s["views"] for name in view["activations"])
    total = sum(len(marks.entries[f["marks"]]) for s in samples for view in s["views"] for f in view["frames"])
    return {
        "arms": [{"name": entry.arm.name, "colour": entry.arm.colour} for entry in studied],
        "activations": sorted(names, key=_order),
        "scale": SCALE,
        "colours": [to_hex(colormaps["viridis"](place / (_STOPS - 1))) for place in range(_STOPS)],
        "pictures": pictures.entries,
        "marks": marks.entries,
        "samples": samples,
        "together": total <= _MANY_MARKS,
    }


def script_json(data: Any) -> str:
    """JSON that may stand inside a script element, whatever its strings hold."""
    text = json.dumps(data, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def picture_uri(picture: Image.Image, longest: int = _LONGEST_SIDE) -> str:
    """A picture as a data URI, scaled down and compressed where it is large."""
    picture = picture.convert("RGB")
    if max(picture.size) > longest:
        picture.thumbnail((longest, longest))
    out = io.BytesIO()
    picture.save(out, "PNG", optimize=True)
    kind = "png"
    if out.tell() > _LARGE:
        out, kind = io.BytesIO(), "jpeg"
        picture.save(out, "JPEG", quality=85, optimize=True)
    return f"data:image/{kind};base64,{base64.b64encode(out.getvalue()).decode()}"


class _Table:
    """Entries that are kept once each."""

    def __init__(self) -> None:
        self.entries: list[Any] = []
        self._places: dict[str, int] = {}

    def place(self, entry: Any) -> int:
        key = json.dumps(entry)
        if key not in self._places:
            self._places[key] = len(self.entries)
            self.entries.append(entry)
        return self._places[key]


def _view(arm: int, sample: Sample, pictures: _Table, marks: _Table) -> dict[str, Any]:
    frames = []
    for frame in sample.frames:
        listed = [[mark.shape, mark.token, *(round(float(v), 4) for v in mark.xy)] for mark in frame.marks]
        frames.append(
            {
                "picture": pictures.place(picture_uri(frame.picture)),
                "size": list(frame.picture.size),
                "marks": marks.place(listed),
                "caption": frame.caption,
            }
        )
    return {
        "arm": arm,
        "title": sample.title,
        "frames": frames,
        "activations": {name: _packed(values) for name, values in sample.activations.items()},
        "relevant": None if sample.relevant is None else "".join("01"[value] for value in sample.relevant),
    }


def _packed(values: Sequence[float]) -> str:
    """Whole numbers of two bytes each, low byte first: a third of the text that decimals would take."""
    whole = np.rint(np.asarray(values, dtype=np.float64) * SCALE).astype("<u2")
    return base64.b64encode(whole.tobytes()).decode()


def _order(name: str) -> tuple[int, int, str]:
    """What the paper looks at first: magnitude, behind the frozen layer."""
    kind, _, tap = name.partition(" at ")
    kinds, taps = ("magnitude", "frequency", "attention"), ("adapter_out", "host")
    return (
        kinds.index(kind) if kind in kinds else len(kinds),
        taps.index(tap) if tap in taps else len(taps),
        name,
    )


def _aligned(samples: Sequence[Sequence[Sample]]) -> list[list[Sample | None]]:
    """The same sample of all arms beside each other: by their pictures, else by their place among what is left."""
    columns: list[list[Sample | None]] = []
    by_picture: dict[str, list[int]] = {}
    late: list[tuple[int, Sample]] = []
    for arm, own in enumerate(samples):
        for sample in own:
            key = _fingerprint(sample.frames)
            free = [place for place in by_picture.get(key, []) if columns[place][arm] is None]
            if arm and not free:
                late.append((arm, sample))
                continue
            if not free:
                by_picture.setdefault(key, []).append(len(columns))
                columns.append([None] * len(samples))
                free = [len(columns) - 1]
            columns[free[0]][arm] = sample
    for arm, sample in late:  # domains that draw the model's answer into the picture
        place = next((i for i, c in enumerate(columns) if c[arm] is None and _alike(c, sample)), None)
        if place is None:
            columns.append([None] * len(samples))
            place = len(columns) - 1
        columns[place][arm] = sample
    return columns


def _alike(column: Sequence[Sample | None], sample: Sample) -> bool:
    other = next(entry for entry in column if entry is not None)
    return [f.picture.size for f in other.frames] == [f.picture.size for f in sample.frames]


def _fingerprint(frames: Sequence[Frame]) -> str:
    digest = hashlib.sha256()
    for frame in frames:
        digest.update(repr(frame.picture.size).encode())
        digest.update(frame.picture.convert("RGB").tobytes())
    return digest.hexdigest()
