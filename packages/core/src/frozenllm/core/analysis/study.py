"""`Study`: what an analysis of one run found, in a form that every domain writes and the report reads.

A study holds numbers (`Finding`) and samples whose tokens carry activations (`Sample`). It lies in the run folder as
``study/study.json`` with its pictures beside it, so that a report needs neither the data nor the model.
"""

from __future__ import annotations

import json
import math
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

try:
    from PIL import Image
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        "Studies keep pictures with pillow, which is not installed: pip install 'frozenllm-core[train]'.", name="PIL"
    ) from error

FOLDER = "study"
_FILE = "study.json"
_FORMAT = 1


@dataclass(frozen=True)
class Finding:
    """One number.

    Attributes:
        name: What was measured, such as ``"IoU with the object, honest threshold"``.
        value: The number.
        tap: Where in the model (a name of `LayerTaps`), or None.
        kind: Which activation (``"magnitude"``, ``"frequency"``, ``"attention"``), or None.
        low: Lower end of the 95 % bootstrap interval, or None.
        high: Its upper end.
        chance: What tokens without any information would give, or None where there is no such number.
        unit: For display: ``"%"``, ``"x"`` or nothing.
        samples: Over how many samples.
    """

    name: str
    value: float
    tap: str | None = None
    kind: str | None = None
    low: float | None = None
    high: float | None = None
    chance: float | None = None
    unit: str = ""
    samples: int | None = None


@dataclass(frozen=True)
class Mark:
    """Where a token lies in a picture, in fractions of its width and height, from the upper left corner.

    Attributes:
        shape: ``"rect"`` (x0, y0, x1, y1), ``"point"`` (x, y) or ``"line"`` (x0, y0, x1, y1, x2, y2, ...).
        xy: The numbers.
        token: Index into the sample's activations.
    """

    shape: Literal["rect", "point", "line"]
    xy: tuple[float, ...]
    token: int


@dataclass
class Frame:
    """A picture with the tokens that lie in it; a video has several.

    Attributes:
        picture: RGB.
        marks: Its tokens.
        caption: A few words, such as ``"frames 0 and 1"``.
    """

    picture: Image.Image
    marks: list[Mark]
    caption: str = ""


@dataclass
class Sample:
    """One sample, as the reader of a report sees it.

    Attributes:
        title: One line: what it is, and what the model made of it.
        frames: Pictures.
        activations: ``"magnitude at adapter_out"`` -> one value from 0 to 1 per token.
        relevant: Per token, whether it lies on what the task is about; None where nobody knows.
        key: Tells the same sample in the studies of other runs on the same data, such as its index or file; None where
            the pictures do.
    """

    title: str
    frames: list[Frame]
    activations: dict[str, list[float]]
    relevant: list[bool] | None = None
    key: str | None = None


@dataclass
class Study:
    """What an analysis of one run found.

    Attributes:
        title: What was asked, in one line.
        domain: ``"vision2d"``, ``"video"``, ...
        findings: Numbers.
        samples: A few samples.
        notes: Sentences that a reader needs to understand the numbers: the rule for tokens, what chance means.
        pictures: Name -> further figures, with their captions.
    """

    title: str
    domain: str
    findings: list[Finding] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    pictures: dict[str, Image.Image] = field(default_factory=dict)

    def save(self, run: str | os.PathLike[str]) -> Path:
        """Write into a run folder, in place of an earlier study.

        Args:
            run: The run folder.

        Returns:
            ``<run>/study``.

        Raises:
            ValueError: A sample's marks and activations do not fit together, or the folder cannot be written.
        """
        for sample in self.samples:
            _check(sample)
        folder = Path(run) / FOLDER
        new = folder.with_name(f".{FOLDER}.{os.getpid()}.tmp")
        try:
            shutil.rmtree(new, ignore_errors=True)
            new.mkdir(parents=True)
            document = self._document(new)
            (new / _FILE).write_text(json.dumps(document, indent=1, allow_nan=False) + "\n", encoding="utf-8")
            shutil.rmtree(folder, ignore_errors=True)
            new.rename(folder)
        except OSError as error:
            shutil.rmtree(new, ignore_errors=True)
            raise ValueError(f"The study cannot be written to {folder} ({error.strerror}).") from error
        return folder

    def _document(self, folder: Path) -> dict[str, Any]:
        samples = []
        for number, sample in enumerate(self.samples):
            frames = []
            for index, frame in enumerate(sample.frames):
                name = f"sample{number}_frame{index}.png"
                frame.picture.convert("RGB").save(folder / name)
                frames.append({"picture": name, "caption": frame.caption, "marks": [asdict(m) for m in frame.marks]})
            samples.append({**_plain(sample), "frames": frames})
        pictures = {}
        for number, (caption, picture) in enumerate(self.pictures.items()):
            name = f"{number}_{re.sub(r'[^a-z0-9]+', '_', caption.lower()).strip('_')[:40]}.png"
            picture.convert("RGB").save(folder / name)
            pictures[caption] = name
        return {
            "format": _FORMAT,
            "title": self.title,
            "domain": self.domain,
            "findings": [asdict(finding) for finding in self.findings],
            "samples": samples,
            "notes": self.notes,
            "pictures": pictures,
        }


def read_study(run: str | os.PathLike[str]) -> Study | None:
    """The study in a run folder.

    Args:
        run: The run folder.

    Returns:
        None where the run was not studied.

    Raises:
        ValueError: The study is damaged.
    """
    path = Path(run) / FOLDER / _FILE
    if not path.is_file():
        return None
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        if document["format"] != _FORMAT:
            raise ValueError(f"it has format {document['format']}")
        return Study(
            title=_text(document["title"]),
            domain=_text(document["domain"]),
            findings=[_finding(entry) for entry in document["findings"]],
            samples=[_sample(entry, path.parent) for entry in document["samples"]],
            notes=[_text(note) for note in document["notes"]],
            pictures={
                caption: _picture(path.parent / Path(name).name) for caption, name in document["pictures"].items()
            },
        )
    except Exception as error:  # whatever a damaged document leads to
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"{path} cannot be read ({reason}): make the study again.") from error


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"there is {value!r} in place of a text")
    return value


def _finding(entry: Mapping[str, Any]) -> Finding:
    found = Finding(**entry)
    numbers = {name: getattr(found, name) for name in ("value", "low", "high", "chance", "samples")}
    for name, number in numbers.items():
        optional = name != "value" and number is None
        if not optional and (
            isinstance(number, bool) or not isinstance(number, int | float) or not math.isfinite(number)
        ):
            raise ValueError(f"the {name} of a finding is {number!r}")
    for text in (found.name, found.unit, found.tap or "", found.kind or ""):
        _text(text)
    return found


def _sample(entry: Mapping[str, Any], folder: Path) -> Sample:
    frames = [
        Frame(
            _picture(folder / Path(frame["picture"]).name),
            [Mark(mark["shape"], tuple(mark["xy"]), mark["token"]) for mark in frame["marks"]],
            _text(frame["caption"]),
        )
        for frame in entry["frames"]
    ]
    sample = Sample(_text(entry["title"]), frames, dict(entry["activations"]), entry["relevant"])
    sample.key = None if entry.get("key") is None else _text(entry["key"])
    _check(sample)
    return sample


def _plain(sample: Sample) -> dict[str, Any]:
    rounded = {name: [round(float(v), 4) for v in values] for name, values in sample.activations.items()}
    return {
        "title": sample.title,
        "key": sample.key,
        "activations": rounded,
        "relevant": None if sample.relevant is None else [bool(value) for value in sample.relevant],
    }


def _picture(path: Path) -> Image.Image:
    with Image.open(path) as opened:
        return opened.convert("RGB")


def _check(sample: Sample) -> None:
    lengths = {len(values) for values in sample.activations.values()}
    if sample.relevant is not None:
        lengths.add(len(sample.relevant))
    if len(lengths) != 1:
        raise ValueError(f"Sample {sample.title!r} has activations of different lengths: {sorted(lengths)}.")
    (count,) = lengths
    for name, values in sample.activations.items():
        if not all(math.isfinite(value) and 0.0 <= value <= 1.0 for value in values):
            raise ValueError(f"Sample {sample.title!r}: {name} holds values outside 0 to 1.")
    for mark in (mark for frame in sample.frames for mark in frame.marks):
        if not 0 <= mark.token < count:
            raise ValueError(f"Sample {sample.title!r} has a mark of token {mark.token}, but {count} activations.")
        if not _fits(mark.shape, mark.xy):
            raise ValueError(f"Sample {sample.title!r} has a mark of shape {mark.shape} with {len(mark.xy)} numbers.")


def _fits(shape: str, xy: Sequence[float]) -> bool:
    return {"rect": len(xy) == 4, "point": len(xy) == 2, "line": len(xy) >= 4 and len(xy) % 2 == 0}.get(shape, False)


def grid_marks(rows: int, columns: int, first: int = 0) -> list[Mark]:
    """Marks of patch tokens that tile a picture, row by row.

    Args:
        rows: Patches from top to bottom.
        columns: Patches from left to right.
        first: The first patch's token.
    """
    return [
        Mark(
            "rect",
            (column / columns, row / rows, (column + 1) / columns, (row + 1) / rows),
            first + row * columns + column,
        )
        for row in range(rows)
        for column in range(columns)
    ]
