"""VQAv2 as it is published (json and images), and as METER packs it into Arrow files.

METER trains on train2014 and val2014 and reports val2014, which it has trained on. By default part of val2014 is held
out here: it is neither trained on nor counted for the answer vocabulary. ``protocol="meter"`` does as METER does.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from frozenllm.vqa.answers import MIN_COUNT, build_vocabulary
from frozenllm.vqa.data.records import PROTOCOLS, VQARecord, check_choice, field, find_root, open_arrow, read_json
from frozenllm.vqa.images import ArrowImage, ImageFile

logger = logging.getLogger(__name__)

PARTS = ("train", "val", "test")
FORMATS = ("json", "arrow")
HELD_OUT = 1000  # images of val2014; as many as METER's file rest_val has
_IMAGES = {"train2014": "train2014", "val2014": "val2014", "test-dev2015": "test2015", "test2015": "test2015"}
_ARROW = {"train2014": "train", "val2014": "val", "test-dev2015": "test-dev", "test2015": "test"}
_COLUMNS = ("image", "questions", "answers", "answer_labels", "answer_scores", "image_id", "question_id")
_WHAT = "VQAv2's json files, and its images in train2014, val2014 and test2015"


def vqav2_records(
    root: str | None,
    part: str,
    *,
    protocol: str = "honest",
    held_out: int | None = HELD_OUT,
    format: str = "json",
    test_subset: str = "test-dev2015",
) -> list[VQARecord]:
    """The questions of a part.

    Args:
        root: The folder, or ``"toy"``.
        part: ``"train"``, ``"val"`` or ``"test"``.
        protocol: ``"honest"``: train2014 with the part of val2014 that is not held out, and the held-out part.
            ``"meter"``: train2014 with val2014, and val2014.
        held_out: Images of val2014 that are held out, chosen by a hash of their ids; None for all of them.
        format: ``"json"`` (as published) or ``"arrow"`` (METER's files).
        test_subset: ``"test-dev2015"`` or ``"test2015"``.

    Raises:
        ValueError: A file is missing or damaged, an option is unknown, or the part is empty.
    """
    check_choice("part", part, PARTS)
    check_choice("protocol", protocol, PROTOCOLS)
    check_choice("format", format, FORMATS)
    check_choice("test_subset", test_subset, ("test-dev2015", "test2015"))
    folder = find_root(root, "vqav2", _WHAT)
    if part == "test":
        return list(_read(folder, test_subset, format))
    val = _read(folder, "val2014", format)
    if protocol == "meter":
        return [*_read(folder, "train2014", format), *val] if part == "train" else list(val)
    held = held_out_images([record.image_id for record in val], held_out)
    if part == "val":
        return [record for record in val if record.image_id in held]
    return [*_read(folder, "train2014", format), *(record for record in val if record.image_id not in held)]


def held_out_images(image_ids: Sequence[int], number: int | None) -> frozenset[int]:
    """The images that are held out: those with the smallest SHA-256 of their ids, whatever their order.

    Raises:
        ValueError: The number is not positive.
    """
    if number is None:
        return frozenset(image_ids)
    if isinstance(number, bool) or not isinstance(number, int) or number < 1:
        raise ValueError(f"data.held_out must be a whole number from 1, or null for all of val2014, not {number!r}.")
    return frozenset(sorted(set(image_ids), key=lambda i: hashlib.sha256(str(i).encode()).digest())[:number])


def answers_of(
    root: str | None,
    *,
    protocol: str = "honest",
    held_out: int | None = HELD_OUT,
    format: str = "json",
    min_count: int = MIN_COUNT,
) -> tuple[str, ...]:
    """The answer vocabulary: normalised majority answers of the training part that occur often enough.

    From METER's files it is the one that they were made with, from train2014 and val2014 (3129 answers).

    Args:
        root: See `vqav2_records`.
        protocol: See `vqav2_records`.
        held_out: See `vqav2_records`.
        format: See `vqav2_records`.
        min_count: Occurrences that make an answer a class.
    """
    check_choice("format", format, FORMATS)
    if format == "arrow":
        return _arrow_answers(find_root(root, "vqav2", "METER's arrow files"))
    records = vqav2_records(root, "train", protocol=protocol, held_out=held_out, format=format)
    return tuple(build_vocabulary((record.majority for record in records if record.majority is not None), min_count))


def _read(folder: Path, subset: str, format: str) -> tuple[VQARecord, ...]:
    return _read_arrow(folder, subset) if format == "arrow" else _read_json(folder, subset)


@lru_cache(maxsize=8)
def _read_json(folder: Path, subset: str) -> tuple[VQARecord, ...]:
    source = folder / f"v2_OpenEnded_mscoco_{subset}_questions.json"
    questions = read_json(source, "questions")
    images = _IMAGES[subset]
    annotated = subset in ("train2014", "val2014")
    path = folder / f"v2_mscoco_{subset}_annotations.json"
    entries = read_json(path, "annotations") if annotated else []
    annotations = {field(path, entry, "question_id", int): entry for entry in entries}
    records, lonely = [], 0
    for question in questions:
        number, image = (field(source, question, key, int) for key in ("question_id", "image_id"))
        annotation = annotations.get(number)
        if annotated and annotation is None:
            lonely += 1
            continue
        said = field(path, annotation, "answers", list) if annotation else None
        records.append(
            VQARecord(
                question_id=number,
                image_id=image,
                image=ImageFile(folder / images / f"COCO_{images}_{image:012d}.jpg"),
                question=field(source, question, "question", str),
                answers=tuple(field(path, answer, "answer", str) for answer in said) if said else None,
                answer_type=field(path, annotation, "answer_type", str) if annotation else None,
                majority=field(path, annotation, "multiple_choice_answer", str) if annotation else None,
            )
        )
    if not records:
        raise ValueError(f"Not one question of {subset} has an annotation in {path}.")
    if lonely:
        logger.warning("Left out %d of %d questions of %s without annotations.", lonely, len(questions), subset)
    return tuple(records)


@lru_cache(maxsize=8)
def _read_arrow(folder: Path, subset: str) -> tuple[VQARecord, ...]:
    path = folder / f"vqav2_{_ARROW[subset]}.arrow"
    table = open_arrow(path, _COLUMNS)
    columns = {name: table[name].to_pylist() for name in _COLUMNS if name != "image"}
    annotated = subset in ("train2014", "val2014")
    try:
        records = list(_arrow_records(path, table, columns, annotated))
    except (TypeError, ValueError, IndexError) as error:
        raise ValueError(f"{path} is not as METER writes it ({error}).") from error
    if not records:
        raise ValueError(f"{path} holds no questions.")
    return tuple(records)


def _arrow_records(path: Path, table: Any, columns: Mapping[str, Any], annotated: bool) -> Iterator[VQARecord]:
    for row, image in enumerate(columns["image_id"]):
        for place, (number, question) in enumerate(
            zip(columns["question_id"][row], columns["questions"][row], strict=True)
        ):
            scores = None
            if annotated:
                pairs = zip(columns["answers"][row][place], columns["answer_scores"][row][place], strict=True)
                scores = tuple((answer, float(score)) for answer, score in pairs)
            yield VQARecord(int(number), int(image), ArrowImage(table, row, str(path)), question, scores=scores)


@lru_cache(maxsize=2)
def _arrow_answers(folder: Path) -> tuple[str, ...]:
    names: dict[int, str] = {}
    for subset in ("train", "val"):
        table = open_arrow(folder / f"vqav2_{subset}.arrow", _COLUMNS)
        try:
            for labels, answers in zip(table["answer_labels"].to_pylist(), table["answers"].to_pylist(), strict=True):
                for one, other in zip(labels, answers, strict=True):
                    names.update(zip(one, other, strict=True))
        except (TypeError, ValueError) as error:
            raise ValueError(f"{folder / f'vqav2_{subset}.arrow'} is not as METER writes it ({error}).") from error
    size = max(names, default=-1) + 1
    missing = next((label for label in range(size) if label not in names), None)
    if not size or missing is not None:
        hint = f"the name of class {missing}" if size else "a single answer"
        raise ValueError(f"METER's arrow files in {folder} lack {hint}.")
    return tuple(names[label] for label in range(size))
