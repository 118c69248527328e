"""Short films: pictures in, a video file out, through PyAV."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable, Mapping
from fractions import Fraction
from typing import Any

import numpy as np

CODECS = ("libx264", "mpeg4")
"""H.264 where the build of FFmpeg has it: browsers play it; otherwise MPEG-4 part 2."""


def write_film(
    frames: Iterable[np.ndarray],
    path: str | os.PathLike[str],
    fps: int | Fraction = 10,
    *,
    codec: str | None = None,
    options: Mapping[str, str] | None = None,
) -> int:
    """Write a film; the container follows from the file's name.

    Args:
        frames: (H, W, 3) uint8, all of one size; an odd last row or column is cut off, which the codecs cannot store.
        path: The file; its folder exists.
        fps: Pictures a second.
        codec: FFmpeg's name of the encoder; None for the first of `CODECS` that there is.
        options: The encoder's own; None for what keeps small things in a picture what they are.

    Returns:
        The number of pictures.

    Raises:
        ValueError: There is no picture, or no PyAV.
    """
    try:
        import av  # FFmpeg's libraries take a while to load
    except ImportError as error:
        raise ValueError("Films are written with PyAV, which is not installed: pip install av.") from error

    pictures = iter(frames)
    first = next(pictures, None)
    if first is None:
        raise ValueError(f"There is no picture to write to {os.fspath(path)}.")
    height, width = first.shape[0] // 2 * 2, first.shape[1] // 2 * 2
    codec = codec or next(name for name in CODECS if name in av.codecs_available)
    if options is None:
        options = {"crf": "18", "preset": "veryfast"} if codec == "libx264" else {}
    count = 0
    with av.open(os.fspath(path), "w") as container:
        stream: Any = container.add_stream(codec, rate=Fraction(fps), options=dict(options))
        stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
        stream.codec_context.thread_count = 1  # more cost time on small pictures
        for frame in itertools.chain([first], pictures):
            cut = np.ascontiguousarray(frame[:height, :width])
            container.mux(stream.encode(av.VideoFrame.from_ndarray(cut, format="rgb24")))
            count += 1
        container.mux(stream.encode())
    return count
