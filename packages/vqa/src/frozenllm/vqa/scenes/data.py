"""SQA3D as a config describes it, and its batches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from frozenllm.vqa.answers import AnswerSource, find_answers
from frozenllm.vqa.data.records import find_root
from frozenllm.vqa.scenes.arrays import SceneFolder
from frozenllm.vqa.scenes.augment import Augmentation
from frozenllm.vqa.scenes.dataset import SQA3DDataset
from frozenllm.vqa.scenes.files import answers_of, sqa3d_questions


def sqa3d(
    root: str | None,
    split: str,
    *,
    scenes: str | None = None,
    format: str = "sqa3d",
    answers: AnswerSource | None = None,
    num_points: int = 40_000,
    train: bool = False,
    augment: Mapping[str, Any] | bool | None = None,
    kept: int = 32,
    limit: int | None = None,
    **options: Any,
) -> SQA3DDataset:
    """SQA3D's questions as a config describes them.

    Args:
        root: The folder with the questions, or ``"toy"``.
        split: ``"train"``, ``"val"`` or ``"test"``.
        scenes: The folder with the prepared scenes; None for ``scannet_data`` or ``scannet/scannet_data`` in ``root``.
        format: See `frozenllm.vqa.scenes.files`.
        answers: The answers in the order of their classes, see `frozenllm.vqa.answers.find_answers`; None for the
            data's.
        num_points: See `SQA3DDataset`.
        train: See `SQA3DDataset`.
        augment: Fields of `Augmentation`; True for its defaults; None or False for no augmentation.
        kept: See `SceneFolder`.
        limit: Take only so many questions.
        **options: See `SQA3DDataset`.

    Raises:
        ValueError: See `sqa3d_questions`, `SceneFolder` and `SQA3DDataset`.
    """
    questions = sqa3d_questions(root, split, format=format)[:limit]
    return SQA3DDataset(
        questions,
        answers_of(root, format=format) if answers is None else find_answers(answers, answers_of),
        SceneFolder(scene_folder(root, scenes), kept),
        num_points=num_points,
        train=train,
        augment=_augmentation(augment),
        **options,
    )


def scene_folder(root: str | None, scenes: str | None = None) -> Path:
    """The folder of prepared scenes that a config means, whether it is there or not; see `sqa3d`."""
    if scenes is not None:
        return Path(scenes).expanduser()
    folder = find_root(root, "sqa3d", "SQA3D")
    inner = folder / "scannet" / "scannet_data"  # where SQA3D's own code keeps it
    return inner if inner.is_dir() else folder / "scannet_data"


def _augmentation(augment: Mapping[str, Any] | bool | None) -> Augmentation | None:
    if augment is None or isinstance(augment, bool):
        return Augmentation() if augment else None
    if not isinstance(augment, Mapping):
        raise ValueError(f"data.augment must be flip, degrees and metres, true or null, not {augment!r}.")
    unknown = set(augment) - {"flip", "degrees", "metres"}
    if unknown:
        raise ValueError(f"data.augment has no option {sorted(unknown)[0]!r}: it has flip, degrees and metres.")
    return Augmentation(**augment)


def scene_batch(samples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """A batch of samples of `SQA3DDataset`.

    Points, answers, poses and labels of points are stacked; texts, boxes and classes are lists, one entry per sample,
    as is everything beside ``inputs`` and ``targets``.
    """
    inputs = {key: [sample["inputs"][key] for sample in samples] for key in ("situation", "question")}
    targets = {key: [sample["targets"][key] for sample in samples] for key in ("boxes", "classes")}
    stacked = {
        key: torch.stack([sample["targets"][key] for sample in samples]) for key in ("pose", "semantic", "instance")
    }
    answers = torch.tensor([sample["targets"]["answer"] for sample in samples])
    others = {key: [sample[key] for sample in samples] for key in samples[0] if key not in ("inputs", "targets")}
    points = torch.stack([sample["inputs"]["points"] for sample in samples])
    return {"inputs": {"points": points, **inputs}, "targets": {"answer": answers, **stacked, **targets}, **others}
