"""One video of Something-Something V2, checked and stored in another form. Runs in the workers of `prepare`."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from frozenllm.core.film import write_film
from frozenllm.core.training import BrokenSample
from frozenllm.video.data.decoding import read_video

FORMS = ("frames", "mp4", "lists")
"""What is written: images, smaller videos, or only lists of the videos as they are."""


@dataclass(frozen=True)
class Conversion:
    """How every video is stored.

    Args:
        form: One of `FORMS`.
        out: The data set's new folder.
        height: Height in pixels; None for the videos' own.
        quality: Of JPEG, up to 100.
        crf: Of H.264: 0 is without loss.
    """

    form: str
    out: str
    height: int | None
    quality: int
    crf: int

    def target(self, name: str) -> Path:
        """Where a video goes, below ``out``."""
        return Path(self.out) / ("frames" if self.form == "frames" else "videos") / self.relative(name)

    def relative(self, name: str) -> str:
        """Its folder or file."""
        return name if self.form == "frames" else f"{name}.mp4"


def convert(name: str, file: str, conversion: Conversion) -> dict[str, Any]:
    """Reads all of a video, and stores it; its new folder or file appears whole or not at all.

    Args:
        name: The video's id.
        file: The video as published.
        conversion: What to make of it.

    Returns:
        ``id`` and ``frames``; or ``id`` and what is ``broken``.
    """
    length = 0

    def choice(available: int) -> np.ndarray:
        nonlocal length
        length = available
        # All have been decoded when there is this choice; conversion to RGB is what a check does without.
        return np.arange(available if conversion.form != "lists" else 1)

    try:
        frames = read_video(file, choice, "pyav")
    except BrokenSample as error:
        return {"id": name, "broken": str(error)}
    if conversion.form == "frames":
        _write_images(name, frames, conversion)
    elif conversion.form == "mp4":
        _write_mp4(name, frames, _rate(file), conversion)
    return {"id": name, "frames": length}


def _write_images(name: str, frames: Tensor, conversion: Conversion) -> None:
    import cv2

    folder = conversion.target(name)
    scratch = folder.with_name(f".{name}-{os.getpid()}")
    scratch.mkdir(parents=True)
    try:
        for number, frame in enumerate(_resized(frames, conversion.height), start=1):
            _, image = cv2.imencode(".jpg", frame[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, conversion.quality])
            (scratch / f"{name}_{number:06d}.jpg").write_bytes(image.tobytes())
        if folder.exists():  # of a run that was stopped before it noted this video
            shutil.rmtree(folder)
        scratch.rename(folder)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _write_mp4(name: str, frames: Tensor, rate: Fraction, conversion: Conversion) -> None:
    file = conversion.target(name)
    scratch = file.with_name(f".{name}-{os.getpid()}.mp4")
    file.parent.mkdir(parents=True, exist_ok=True)
    try:
        options = {"crf": str(conversion.crf), "preset": "fast"}
        write_film(_resized(frames, conversion.height, even=True), scratch, rate, options=options)
        os.replace(scratch, file)
    finally:
        scratch.unlink(missing_ok=True)


def _resized(frames: Tensor, height: int | None, even: bool = False) -> np.ndarray:
    """(T, H, W, 3) uint8 of the wanted height and the same shape; H.264 wants even sides."""
    import cv2

    images = frames.permute(0, 2, 3, 1).numpy()
    tall, wide = images.shape[1:3]
    new = (tall, wide) if height is None else (height, max(1, round(wide * height / tall)))
    if even:
        new = (new[0] + new[0] % 2, new[1] + new[1] % 2)
    if new == (tall, wide):
        return images
    how = cv2.INTER_AREA if new[0] < tall else cv2.INTER_CUBIC
    return np.stack([cv2.resize(image, new[::-1], interpolation=how) for image in images])


def _rate(file: str) -> Fraction:
    import av

    with av.open(file) as container:
        return container.streams.video[0].average_rate or Fraction(12)
