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
    """The same sample of all arms beside each other, told by its key, else by its pictures."""
    columns: list[list[Sample | None]] = []
    by_key: dict[str, list[int]] = {}
    for arm, own in enumerate(samples):
        for sample in own:
            places = by_key.setdefault(sample.key or _fingerprint(sample.frames), [])
            free = [place for place in places if columns[place][arm] is None]
            if not free:
                places.append(len(columns))
                columns.append([None] * len(samples))
                free = places[-1:]
            columns[free[0]][arm] = sample
    return columns


def _fingerprint(frames: Sequence[Frame]) -> str:
    digest = hashlib.sha256()
    for frame in frames:
        digest.update(repr(frame.picture.size).encode())
        digest.update(frame.picture.convert("RGB").tobytes())
    return digest.hexdigest()
