"""Lists of videos and their classes: the official SSv2 annotations, VideoMAE's csv, folders of classes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

VIDEO_SUFFIXES = (".mp4", ".webm", ".avi", ".mkv", ".mov", ".m4v")
"""Endings by which video files are known."""


class LabeledVideo(NamedTuple):
    """A video by its name (an id or a path) and its class index."""

    name: str
    label: int


def existing(path: str | Path | None, what: str, key: str) -> Path:
    """The path, if there is something.

    Raises:
        ValueError: No path is given, or nothing is there.
    """
    if path is None:
        raise ValueError(f"Where is {what}? Set {key}.")
    if not Path(path).exists():
        raise ValueError(f"{path} does not exist; {key} should name {what}.")
    return Path(path)


def check_labels(videos: list[LabeledVideo], num_classes: int | None, source: Path) -> None:
    """Checks that there are videos, and that their classes are below ``num_classes``.

    Raises:
        ValueError: There are none, or a class is too large.
    """
    if not videos:
        raise ValueError(f"{source} lists no videos.")
    if num_classes is not None:
        worst = max(videos, key=lambda video: video.label)
        if worst.label >= num_classes:
            raise ValueError(f"{source}: {worst.name} has class {worst.label}, but num_classes is {num_classes}.")


def read_labels(path: str | Path) -> dict[str, int]:
    """Class indices by template, from the official ``labels.json``: ``{"Holding something": "0", ...}``.

    Raises:
        ValueError: The file is missing or holds something else.
    """
    path = existing(path, "the official labels.json", "data.labels")
    found = _json(path)
    try:
        labels = {str(template): int(index) for template, index in found.items()}
    except (AttributeError, TypeError, ValueError, OverflowError):
        raise ValueError(f"{path} is not the official labels file: it should map every template to a number.") from None
    if sorted(labels.values()) != list(range(len(labels))):
        raise ValueError(f"{path} should number its {len(labels)} classes from 0 to {len(labels) - 1}.")
    return labels


def read_annotations(labels: str | Path, annotations: str | Path) -> list[LabeledVideo]:
    """Ids and classes, from the official ``labels.json`` and ``train.json`` or ``validation.json``.

    Raises:
        ValueError: A file is missing, damaged or of another format, or an entry has no known template. The official
            ``test.json`` has ids only.
    """
    indices = read_labels(labels)
    path = existing(annotations, "the official annotations (train.json, validation.json)", "data.annotations")
    entries = _json(path)
    if not isinstance(entries, list):
        raise ValueError(f"{path} is not an official annotations file: it should be a list of videos.")
    videos = []
    seen: set[str] = set()
    for number, entry in enumerate(entries):
        name = entry.get("id") if isinstance(entry, dict) else None
        if not isinstance(name, str):
            raise ValueError(f'{path}: entry {number} has no "id" of type string.')
        if name in seen:
            raise ValueError(f"{path} lists the video {name} twice.")
        seen.add(name)
        template = entry.get("template")
        if not isinstance(template, str):
            raise ValueError(f"{path}: video {name} has no template (the official test list has none: use validation).")
        plain = template.replace("[", "").replace("]", "")
        if plain not in indices:
            raise ValueError(f"{path}: the template {plain!r} of video {name} is not in {labels}.")
        videos.append(LabeledVideo(name, indices[plain]))
    return videos


def read_csv(path: str | Path) -> list[LabeledVideo]:
    """Paths and classes, from VideoMAE's csv: one ``<path> <class index>`` per line, no header.

    The separator is a space; a comma or a tab is taken where the line has no space. The last separator of a line
    counts, so paths may hold spaces.

    Raises:
        ValueError: The file is missing, or a line is something else.
    """
    path = existing(path, "a csv with lines `path label`", "data.list")
    videos = []
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError:
        raise ValueError(f"{path} is not a text file.") from None
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        separator = next((s for s in (" ", "\t", ",") if s in line.strip()), " ")
        name, _, label = line.strip().rpartition(separator)
        if not name or not label.isdecimal():
            raise ValueError(f"{path}, line {number}: {line[:80]!r} is not `path label` with a class index from 0.")
        videos.append(LabeledVideo(name.strip().strip('"'), int(label)))
    return videos


def read_folders(root: Path, classes_of: Path | None = None) -> list[LabeledVideo]:
    """Videos in ``<root>/<class>/*``; names are relative to ``root``. Hidden folders and files are left out.

    Args:
        root: The folder.
        classes_of: The folder whose classes, in sorted order, give the class indices: the training part's; None for
            ``root``.

    Raises:
        ValueError: There are no videos, or a class is not among those.
    """
    indices = {name: index for index, name in enumerate(_folders(classes_of or root))}
    here = _folders(root)
    unknown = [name for name in here if name not in indices]
    if unknown:
        raise ValueError(f"{root} has classes that {classes_of} lacks: {', '.join(unknown[:5])}.")
    videos = [
        LabeledVideo(f"{name}/{file.name}", indices[name])
        for name in here
        for file in sorted((root / name).iterdir())
        if file.suffix.lower() in VIDEO_SUFFIXES and file.name[0] != "."
    ]
    if not videos:
        raise ValueError(f"{root} holds no videos named <class>/<file>{{{','.join(VIDEO_SUFFIXES)}}}.")
    return videos


def _folders(root: Path) -> list[str]:
    return sorted(entry.name for entry in root.iterdir() if entry.is_dir() and entry.name[0] != ".")


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise ValueError(f"{path} cannot be read as JSON: {error}.") from error
