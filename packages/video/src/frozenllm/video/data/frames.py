"""Something-Something V2 as frame folders and frame lists, in pytorchvideo's layout and through its own reader.

pytorchvideo's `SSv2` itself is a stream that repeats and drops videos with several workers, ends after one epoch with
persistent ones, and knows no length; its parser and its frame reader are sound, and are what is used here.
"""

from __future__ import annotations

import csv
import logging
import os
from pathlib import Path

import numpy as np
from torch import Tensor

from frozenllm.core.training import BrokenSample
from frozenllm.video.data.annotations import LabeledVideo, check_labels, existing, read_annotations
from frozenllm.video.sampling import Choice

logger = logging.getLogger(__name__)

HEADER = "original_vido_id video_id frame_id path labels"
"""First line of a frame list; the second letters of ``vido`` are the format's."""


class FrameFolders:
    """Videos whose frames are images, and their classes.

    Args:
        paths: Frames of every video in their order, relative to ``prefix``.
        videos: Ids and classes.
        prefix: Folder that the paths start from.

    Attributes:
        labels: Class indices, ``(N,)`` int64.
    """

    def __init__(self, paths: list[list[str]], videos: list[LabeledVideo], prefix: str = "") -> None:
        self.prefix = prefix
        self.labels = np.array([video.label for video in videos], dtype=np.int64)
        # Arrays: SSv2 has millions of frames, and that many objects are copied page by page into every forked worker.
        self._names = np.array([video.name.encode() for video in videos], dtype=np.bytes_)
        self._paths = np.array([path.encode() for frames in paths for path in frames], dtype=np.bytes_)
        self._ends = np.cumsum([len(frames) for frames in paths])

    def __len__(self) -> int:
        return len(self.labels)

    def name(self, index: int) -> str:
        """The video's id."""
        return self._names[index].decode()

    def frame_paths(self, index: int) -> list[str]:
        """Files of the video's frames, in order."""
        start = self._ends[index - 1] if index else 0
        return [os.path.join(self.prefix, path.decode()) for path in self._paths[start : self._ends[index]]]

    def frames(self, index: int, choice: Choice) -> Tensor:
        """Some of a video's frames.

        Args:
            index: The video.
            choice: Which ones.

        Returns:
            ``(T, 3, H, W)`` uint8.

        Raises:
            BrokenSample: One of them is missing or damaged, or they differ in size.
        """
        import cv2
        from pytorchvideo.data.frame_video import _load_images_with_retries

        paths = self.frame_paths(index)
        wanted = [paths[i] for i in choice(len(paths)).tolist()]
        try:
            # The public `FrameVideo.get_clip` ends with a copy to float32 that would only be undone here.
            images = _load_images_with_retries(wanted, multithreaded=False)
        except (OSError, cv2.error, ValueError) as error:
            raise BrokenSample(self._fault(index, wanted)) from error
        return images.permute(0, 3, 1, 2)

    def _fault(self, index: int, paths: list[str]) -> str:
        import cv2

        video = f"Video {self.name(index)}"
        sizes = set()
        for path in paths:
            if not os.path.exists(path):
                return f"{video} lacks the frame {path}."
            image = cv2.imread(path)
            if image is None:
                return f"{video} has a frame that is no image: {path}."
            sizes.add(image.shape)
        return f"{video} has frames of different sizes, or frames that cannot be read, in {os.path.dirname(paths[0])}."


def read_frame_lists(
    labels: str | Path,
    annotations: str | Path,
    frame_list: str | Path,
    frames: str | Path,
    *,
    num_classes: int | None = None,
    on_error: str = "raise",
) -> FrameFolders:
    """Reads the official annotations and a frame list.

    Args:
        labels: The official ``labels.json``.
        annotations: The official ``train.json`` or ``validation.json``.
        frame_list: Space-separated csv with the header `HEADER` and one row per frame.
        frames: Folder that its paths start from.
        num_classes: Upper bound for the classes; None to allow any.
        on_error: What to do about annotated videos without a row in the frame list: ``"raise"``, or ``"skip"`` to leave
            them out with a warning.

    Raises:
        ValueError: A file is missing, damaged or of another format, or videos without frames are not to be skipped.
    """
    from pytorchvideo.data.ssv2 import _read_video_paths_and_labels

    videos = read_annotations(labels, annotations)
    check_labels(videos, num_classes, Path(annotations))
    frame_list = existing(frame_list, "the frame list", "data.frame_list")
    frames = existing(frames, "the folder of the frames", "data.frames")
    with open(frame_list, encoding="utf-8", errors="replace") as file:
        header = file.readline().strip()
    if header.split(" ") != HEADER.split(" "):
        raise ValueError(f"{frame_list} should begin with the line `{HEADER}`, but begins with {header[:80]!r}.")
    try:
        paths, read = _read_video_paths_and_labels(str(labels), str(annotations), str(frame_list))
    except (AssertionError, TypeError, UnicodeDecodeError, csv.Error) as error:
        raise ValueError(
            f"{frame_list}{_bad_row(frame_list)} is not `{HEADER}`, separated by single spaces."
        ) from error
    if len(paths) < len(videos):
        with open(frame_list, encoding="utf-8", newline="") as file:
            listed = {row.split(" ", 1)[0].strip('"') for row in file}
        missing = [video.name for video in videos if video.name not in listed]
        sentence = (
            f"{frame_list} has no frames of {len(missing)} of the {len(videos)} videos in {annotations}, "
            f"the first being {missing[0]}"
        )
        if on_error != "skip" or not paths:
            raise ValueError(f"{sentence}; set on_error to skip to leave them out.")
        logger.warning("%s: left out.", sentence)
        videos = [video for video in videos if video.name in listed]
    assert read == [video.label for video in videos]
    return FrameFolders(paths, videos, str(frames))


def _bad_row(path: Path) -> str:
    with open(path, encoding="utf-8", errors="replace", newline="") as file:
        for number, row in enumerate(csv.reader(file, delimiter=" "), start=1):
            if row and not 4 <= len(row) <= 5:
                return f", line {number}: {' '.join(row)[:80]!r}"
    return ""
