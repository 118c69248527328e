"""Encoded video files and their classes, from folders, the official annotations, or VideoMAE's csv."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from torch import Tensor

from frozenllm.video.data.annotations import (
    VIDEO_SUFFIXES,
    LabeledVideo,
    check_labels,
    existing,
    read_annotations,
    read_csv,
    read_folders,
)
from frozenllm.video.data.decoding import pick_decoder, read_video
from frozenllm.video.sampling import Choice


class VideoFiles:
    """Video files and their classes.

    Args:
        videos: Paths, relative to ``prefix``, and classes.
        prefix: Folder that the paths start from.
        decoder: See `frozenllm.video.data.decoding.read_video`.

    Attributes:
        labels: Class indices, ``(N,)`` int64.

    Raises:
        ValueError: There is no such decoder.
        ImportError: The decoder is not installed.
    """

    def __init__(self, videos: list[LabeledVideo], prefix: str = "", decoder: str = "auto") -> None:
        pick_decoder(decoder)
        self.prefix = prefix
        self.decoder = decoder
        self.labels = np.array([video.label for video in videos], dtype=np.int64)
        self._names = np.array([video.name.encode() for video in videos], dtype=np.bytes_)

    def __len__(self) -> int:
        return len(self.labels)

    def name(self, index: int) -> str:
        """The video's file."""
        return os.path.join(self.prefix, self._names[index].decode())

    def frames(self, index: int, choice: Choice) -> Tensor:
        """Some of a video's frames, ``(T, 3, H, W)`` uint8.

        Raises:
            BrokenSample: The file cannot be read.
        """
        return read_video(self.name(index), choice, self.decoder)


def read_video_csv(
    path: str | Path,
    root: str | Path | None = None,
    *,
    num_classes: int | None = None,
    decoder: str = "auto",
) -> VideoFiles:
    """Videos that a csv lists with lines ``path label``.

    Args:
        path: The csv.
        root: Folder that relative paths start from; None for the csv's own.
        num_classes: Upper bound for the classes; None to allow any.
        decoder: See `VideoFiles`.

    Raises:
        ValueError: The csv is missing, empty, or has a line of another form, or not even its first file is there.
    """
    videos = read_csv(path)
    check_labels(videos, num_classes, Path(path))
    prefix = Path(path).parent if root is None else existing(root, "the folder of the videos", "data.root")
    return _files(videos, prefix, decoder, Path(path))


def read_video_folder(
    root: str | Path | None,
    split: str,
    *,
    train_split: str = "train",
    num_classes: int | None = None,
    decoder: str = "auto",
) -> VideoFiles:
    """Videos in ``<root>/<split>/<class>/*``, classes numbered in the sorted order of the training part's names.

    Raises:
        ValueError: Folders or videos are missing, or a class is not among those of the training part.
    """
    folder = existing(root, "the folder of the videos", "data.root") / split
    existing(folder, f"the part {split}", "data.root")
    train = existing(Path(root or "") / train_split, "the part whose classes give the numbers", "data.root")
    videos = read_folders(folder, train)
    check_labels(videos, num_classes, folder)
    return VideoFiles(videos, str(folder), decoder)


def read_annotated_videos(
    labels: str | Path,
    annotations: str | Path,
    root: str | Path,
    *,
    num_classes: int | None = None,
    decoder: str = "auto",
) -> VideoFiles:
    """The official annotations, with the videos as ``<root>/<id>.webm`` (as published) or another ending.

    Raises:
        ValueError: A file or folder is missing or of another format, or the folder holds none of the videos.
    """
    videos = read_annotations(labels, annotations)
    check_labels(videos, num_classes, Path(annotations))
    root = existing(root, "the folder of the videos", "data.videos")
    if not root.is_dir():
        raise ValueError(f"{root} is not a folder; data.videos should name that of the videos.")
    with os.scandir(root) as entries:  # one listing, not a look for each of 200 000 files
        suffixes = {os.path.splitext(entry.name)[0]: os.path.splitext(entry.name)[1] for entry in entries}
    suffixes = {name: suffix for name, suffix in suffixes.items() if suffix.lower() in VIDEO_SUFFIXES}
    usual = next(iter(suffixes.values()), VIDEO_SUFFIXES[0])
    named = [LabeledVideo(video.name + suffixes.get(video.name, usual), video.label) for video in videos]
    if not any(video.name in suffixes for video in videos):
        raise ValueError(f"{root} holds none of the {len(videos)} videos in {annotations}, such as {named[0].name}.")
    return VideoFiles(named, str(root), decoder)


def _files(videos: list[LabeledVideo], prefix: Path, decoder: str, source: Path) -> VideoFiles:
    files = VideoFiles(videos, str(prefix), decoder)
    # A wrong folder is one mistake, and not as many as there are videos; a few missing files are the policy's affair.
    if not any(os.path.exists(files.name(i)) for i in range(min(len(files), 100))):
        raise ValueError(
            f"{source}: its paths do not start from {prefix} (there is no {files.name(0)}); set data.root."
        )
    return files
