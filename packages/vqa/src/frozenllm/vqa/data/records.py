"""What the readers make of a data set's files, and what they have in common."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from frozenllm.vqa.images import ImageRef
from frozenllm.vqa.toy import write_flickr, write_rooms, write_vqa

TOY = "toy"
PROTOCOLS = ("honest", "meter")
_TOYS = {"vqav2": write_vqa, "flickr30k": write_flickr, "sqa3d": write_rooms}


T = TypeVar("T")


@dataclass(frozen=True)
class VQARecord:
    """A question about an image.

    Attributes:
        question_id: VQAv2's.
        image_id: VQAv2's.
        image: The image.
        question: The question.
        answers: What the ten annotators said; None where that is not known.
        answer_type: ``yes/no``, ``number`` or ``other``; None where it is not known.
        scores: Answer -> worth, where a file gives it in place of the annotators' answers.
        majority: The answer that most annotators gave; None where it is not known.
    """

    question_id: int
    image_id: int
    image: ImageRef
    question: str
    answers: tuple[str, ...] | None = None
    answer_type: str | None = None
    scores: tuple[tuple[str, float], ...] | None = None
    majority: str | None = None


@dataclass(frozen=True)
class CaptionedImage:
    """An image with its captions."""

    image_id: str
    image: ImageRef
    captions: tuple[str, ...]


def find_root(root: str | None, data: str, what: str) -> Path:
    """The folder of a data set; ``"toy"`` is the toy data, written first where it is missing.

    Args:
        root: The folder.
        data: ``"vqav2"``, ``"flickr30k"`` or ``"sqa3d"``.
        what: What the folder holds, for the message.

    Raises:
        ValueError: No folder is given, or there is none.
    """
    if root is None:
        raise ValueError(f"The folder with {what} is missing: give data.root=...")
    if root == TOY:
        return _TOYS[data]()
    path = Path(root).expanduser()
    if not path.is_dir():
        raise ValueError(f"The data folder {path} does not exist: data.root must name the folder with {what}.")
    return path


def check_choice(name: str, value: str, known: tuple[str, ...]) -> None:
    """Raise a ValueError that names the choices."""
    if value not in known:
        raise ValueError(f"{name} must be {' or '.join(known)}, not {value!r}.")


def read_json(path: Path, key: str) -> list[dict[str, Any]]:
    """The list under a key of a JSON file.

    Raises:
        ValueError: The file is missing or damaged, or has no such list.
    """
    try:
        content = json.loads(path.read_text())
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror}): is data.root the right folder?") from error
    except ValueError as error:
        raise ValueError(f"{path} is not JSON ({error}): it may be truncated.") from error
    entries = content.get(key) if isinstance(content, dict) else None
    if not isinstance(entries, list) or not entries:
        raise ValueError(f"{path} has no entries under {key!r}.")
    return entries


def field(path: Path, entry: Any, key: str, kind: type[T]) -> T:
    """A value of an entry of a JSON file.

    Args:
        path: The file, for the message.
        entry: The entry.
        key: The value's key.
        kind: Its type.

    Raises:
        ValueError: The entry has no such value, or it is of another type.
    """
    value = entry.get(key) if isinstance(entry, dict) else None
    if not isinstance(value, kind) or isinstance(value, bool):
        raise ValueError(f"{path} has an entry without {key!r}, or where it is not of type {kind.__name__}.")
    return value


def open_arrow(path: Path, columns: tuple[str, ...]) -> Any:
    """A memory-mapped Arrow table.

    Raises:
        ValueError: The file is missing or damaged, or lacks a column.
    """
    import pyarrow as pa

    if not path.is_file():
        raise ValueError(f"{path} does not exist: data.root must name the folder with METER's arrow files.")
    try:
        table = pa.ipc.RecordBatchFileReader(pa.memory_map(str(path), "r")).read_all()
        table.validate(full=True)  # pyarrow aborts the process where it believes damaged offsets
    except (pa.ArrowException, OSError, ValueError, KeyError) as error:
        raise ValueError(f"{path} is not an Arrow file, or damaged ({' '.join(str(error).split())}).") from error
    missing = [column for column in columns if column not in table.column_names]
    if missing:
        raise ValueError(f"{path} has no column {', '.join(missing)}; it has {', '.join(table.column_names)}.")
    return table
