"""Data sets by the names that configs use. Each takes the options of `VideoDataset` beside its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from frozenllm.core.toy_folder import named_root
from frozenllm.video.data.dataset import VideoDataset
from frozenllm.video.data.files import read_annotated_videos, read_video_csv, read_video_folder
from frozenllm.video.data.frames import read_frame_lists
from frozenllm.video.toy import CLASSES, PARTS, write_toy_frames, write_toy_videos


def ssv2_frames(
    labels: str | None,
    annotations: str | None,
    frame_list: str | None,
    frames: str | None,
    *,
    num_classes: int | None = None,
    on_error: str = "raise",
    **options: Any,
) -> VideoDataset:
    """Something-Something V2 as frame folders and frame lists.

    Args:
        labels: See `read_frame_lists`, as for the others.
        annotations: The part's annotations.
        frame_list: The part's frame list.
        frames: Folder that the list's paths start from.
        num_classes: Upper bound for the classes.
        on_error: ``"raise"`` or ``"skip"``, for missing or damaged frames, and videos without any.
        **options: See `VideoDataset`.

    Raises:
        ValueError: Data is missing or of another format, or an option is not possible.
    """
    source = read_frame_lists(labels, annotations, frame_list, frames, num_classes=num_classes, on_error=on_error)
    return VideoDataset(source, on_error=on_error, **options)


def encoded_videos(
    root: str | None,
    split: str = "train",
    *,
    train_split: str = "train",
    labels: str | None = None,
    annotations: str | None = None,
    num_classes: int | None = None,
    decoder: str = "auto",
    **options: Any,
) -> VideoDataset:
    """Video files as ``<root>/<split>/<class>/*``; or, with the official annotations, as ``<root>/<id>.webm``.

    Args:
        root: The folder.
        split: Name of the part, without annotations.
        train_split: Name of the part whose classes give the numbers, without annotations.
        labels: The official ``labels.json``.
        annotations: The part's official annotations.
        num_classes: Upper bound for the classes.
        decoder: See `frozenllm.video.data.read_video`.
        **options: See `VideoDataset`.

    Raises:
        ValueError: Data is missing or of another format, or an option is not possible.
    """
    if (labels is None) != (annotations is None):
        raise ValueError("Official annotations are two files: set both labels and annotations, or neither.")
    if labels is not None:
        source = read_annotated_videos(labels, annotations, root, num_classes=num_classes, decoder=decoder)
    else:
        source = read_video_folder(root, split, train_split=train_split, num_classes=num_classes, decoder=decoder)
    return VideoDataset(source, **options)


def video_csv(
    list: str | None,
    root: str | None = None,
    *,
    num_classes: int | None = None,
    decoder: str = "auto",
    **options: Any,
) -> VideoDataset:
    """Video files that a csv lists with lines ``path label``, as VideoMAE and the official code have them.

    Args:
        list: The csv.
        root: Folder that relative paths start from; None for the csv's own.
        num_classes: Upper bound for the classes.
        decoder: See `frozenllm.video.data.read_video`.
        **options: See `VideoDataset`.

    Raises:
        ValueError: Data is missing or of another format, or an option is not possible.
    """
    return VideoDataset(read_video_csv(list, root, num_classes=num_classes, decoder=decoder), **options)


def toy_frames(root: str | None, split: str, *, toy: dict[str, Any] | None = None, **options: Any) -> VideoDataset:
    """The toy videos as `ssv2_frames`, written first where they are missing.

    Args:
        root: The folder; None for one in the user's cache.
        split: ``"train"`` or ``"val"``.
        toy: Options of `frozenllm.video.toy.write_toy_frames`.
        **options: See `VideoDataset`.
    """
    folder = write_toy_frames(named_root(root), **toy or {})
    return ssv2_frames(
        str(folder / "labels.json"),
        str(folder / f"{_part(split)}.json"),
        str(folder / "frame_lists" / f"{split}.csv"),
        str(folder / "frames"),
        num_classes=len(CLASSES),
        **options,
    )


def toy_videos(root: str | None, split: str, *, toy: dict[str, Any] | None = None, **options: Any) -> VideoDataset:
    """The toy videos as `video_csv`, written first where they are missing; see `toy_frames`."""
    _part(split)
    folder: Path = write_toy_videos(named_root(root), **toy or {})
    return video_csv(str(folder / f"{split}.csv"), num_classes=len(CLASSES), **options)


def _part(split: str) -> str:
    if split not in PARTS:
        raise ValueError(f"The toy videos have the parts {' and '.join(PARTS)}, not {split!r}.")
    return PARTS[split]
