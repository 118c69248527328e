"""SQA3D's questions, as published and as ScanQA's code reads them.

Published (``format="sqa3d"``): ``balanced/v1_balanced_questions_<split>_scannetv2.json``,
``balanced/v1_balanced_sqa_annotations_<split>_scannetv2.json`` and ``answer_dict.json``, in the folder or in its
``sqa_task``. For ScanQA's code (``format="scanqa"``, made by SQA3D's ``utils/sqa_data_2_ScanQA.py``):
``SQA_<split>.json`` or ``SQA_balanced_<split>.json`` and ``answer_counter.json``, in the folder or in its ``qa``.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from frozenllm.vqa.data.records import check_choice, find_root, read_json

logger = logging.getLogger(__name__)

SPLITS = ("train", "val", "test")
FORMATS = ("sqa3d", "scanqa")
QUESTION_TYPES = ("what", "is", "how", "can", "which", "others")
_WHAT = "SQA3D: sqa_task with balanced and answer_dict.json, or ScanQA's SQA_<split>.json and answer_counter.json"


@dataclass(frozen=True)
class SituatedQuestion:
    """A question that somebody asks at a place in a scene.

    Attributes:
        question_id: SQA3D's.
        scene_id: ScanNet's, such as ``scene0380_00``.
        situation: Where the person is, in words.
        alternatives: The same in other words; none in ScanQA's format.
        question: The question.
        answer: The answer.
        pose: Position x, y, z in metres and quaternion x, y, z, w, in the scan's own axes with the origin in the middle
            of its bounding box (see `frozenllm.vqa.scenes.pose`).
    """

    question_id: int
    scene_id: str
    situation: str
    alternatives: tuple[str, ...]
    question: str
    answer: str
    pose: tuple[float, ...]


def question_type(question: str) -> str:
    """One of `QUESTION_TYPES`: the question's first word, as the paper splits them, or ``others``."""
    first = question.strip().lower().split(maxsplit=1)
    word = first[0].rstrip("?,.!") if first else ""
    return word if word in QUESTION_TYPES[:-1] else "others"


def sqa3d_questions(root: str | None, split: str, *, format: str = "sqa3d") -> tuple[SituatedQuestion, ...]:
    """The questions of a split.

    Args:
        root: The folder, or ``"toy"``.
        split: ``"train"``, ``"val"`` or ``"test"``.
        format: ``"sqa3d"`` or ``"scanqa"``.

    Raises:
        ValueError: A file is missing or damaged, an option is unknown, or the split is empty.
    """
    check_choice("split", split, SPLITS)
    check_choice("format", format, FORMATS)
    folder = find_root(root, "sqa3d", _WHAT)
    return _published(_below(folder, "sqa_task"), split) if format == "sqa3d" else _scanqa(_below(folder, "qa"), split)


def answers_of(root: str | None, *, format: str = "sqa3d") -> tuple[str, ...]:
    """The answers in the order of their classes.

    Of ``answer_dict.json`` by its numbers; of ``answer_counter.json``, a list of all answers given, the different ones
    in alphabetical order, as ScanQA's code does.

    Args:
        root: See `sqa3d_questions`.
        format: See `sqa3d_questions`.

    Raises:
        ValueError: The file is missing or damaged, or its numbers are not 0 to n - 1.
    """
    check_choice("format", format, FORMATS)
    folder = find_root(root, "sqa3d", _WHAT)
    if format == "sqa3d":
        return _dictionary(_below(folder, "sqa_task") / "answer_dict.json")
    path = _below(folder, "qa") / "answer_counter.json"
    answers = _json(path)
    if not isinstance(answers, list) or not answers or not all(isinstance(answer, str) for answer in answers):
        raise ValueError(f"{path} is not a list of answers.")
    return tuple(sorted(set(answers)))


def _below(folder: Path, name: str) -> Path:
    return folder / name if (folder / name).is_dir() else folder


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror}): is data.root the right folder?") from error
    except ValueError as error:
        raise ValueError(f"{path} is not JSON ({error}): it may be truncated.") from error


def _dictionary(path: Path) -> tuple[str, ...]:
    content = _json(path)
    numbers = content[0] if isinstance(content, list) and content else None
    if not isinstance(numbers, dict) or not numbers:
        raise ValueError(f"{path} is no answer dictionary: it must hold [answer -> number, number -> answer].")
    if sorted(numbers.values(), key=str) != sorted(range(len(numbers)), key=str):
        raise ValueError(f"{path} is no answer dictionary: the numbers of its answers are not 0 to {len(numbers) - 1}.")
    return tuple(sorted(numbers, key=lambda answer: numbers[answer]))


@lru_cache(maxsize=8)
def _published(folder: Path, split: str) -> tuple[SituatedQuestion, ...]:
    path = folder / "balanced" / f"v1_balanced_questions_{split}_scannetv2.json"
    annotated = folder / "balanced" / f"v1_balanced_sqa_annotations_{split}_scannetv2.json"
    told: dict[int, tuple[str, tuple[float, ...]]] = {}
    for place, entry in enumerate(read_json(annotated, "annotations")):
        with _named(annotated, place, entry):
            position, turn = entry["position"], entry["rotation"]
            pose = [position[axis] for axis in "xyz"] + [turn[axis] for axis in ("_x", "_y", "_z", "_w")]
            told[int(entry["question_id"])] = (entry["answers"][0]["answer"], _checked(pose))
    questions, lonely = [], 0
    for place, entry in enumerate(read_json(path, "questions")):
        with _named(path, place, entry):
            if int(entry["question_id"]) not in told:
                lonely += 1
                continue
            answer, pose = told[int(entry["question_id"])]
            questions.append(_question(entry, entry.get("alternative_situation") or (), answer, pose))
    if not questions:
        raise ValueError(f"Not one question in {path} has an annotation in {annotated}.")
    if lonely:
        logger.warning("Left out %d questions of %s without annotations.", lonely, path)
    return tuple(questions)


@lru_cache(maxsize=8)
def _scanqa(folder: Path, split: str) -> tuple[SituatedQuestion, ...]:
    names = (f"SQA_{split}.json", f"SQA_balanced_{split}.json")
    path = next((folder / name for name in names if (folder / name).is_file()), folder / names[0])
    entries = _json(path)
    if not isinstance(entries, list) or not entries:
        raise ValueError(f"{path} is not a list of questions.")
    questions = []
    for place, entry in enumerate(entries):
        with _named(path, place, entry):
            questions.append(_question(entry, (), entry["answers"][0], _checked(entry["position"])))
    return tuple(questions)


@contextmanager
def _named(path: Path, place: int, entry: Any) -> Iterator[None]:
    """Errors about an entry of a file become one sentence that names both."""
    try:
        yield
    except (LookupError, TypeError, ValueError, AttributeError, OverflowError) as error:
        number = entry.get("question_id", place) if isinstance(entry, dict) else place
        reason = f"{error} is missing" if isinstance(error, KeyError) else str(error)
        raise ValueError(f"{path}: question {number} cannot be read ({reason}).") from error


def _checked(pose: Sequence[float]) -> tuple[float, ...]:
    numbers = tuple(float(number) for number in pose)
    if len(numbers) != 7 or not all(map(math.isfinite, numbers)) or not any(numbers[3:]):
        raise ValueError(f"a pose is 3 numbers of a position and a quaternion, not {pose}")
    return numbers


def _question(entry: dict[str, Any], alternatives: Any, answer: str, pose: tuple[float, ...]) -> SituatedQuestion:
    return SituatedQuestion(
        question_id=int(entry["question_id"]),
        scene_id=str(entry["scene_id"]),
        situation=str(entry["situation"]),
        alternatives=tuple(str(text) for text in alternatives),
        question=str(entry["question"]),
        answer=str(answer),
        pose=pose,
    )
