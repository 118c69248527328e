"""Short films: pictures in, an mp4 out, through PyAV."""

from __future__ import annotations

from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

CODECS = ("libx264", "mpeg4")
"""H.264 where the build of FFmpeg has it: browsers play it; otherwise MPEG-4 part 2."""


def write_film(frames: Iterable[np.ndarray], path: Path, fps: int = 10) -> int:
    """Write an mp4.

    Args:
        frames: (H, W, 3) uint8, all of one size; an odd last row or column is cut off, which the codecs cannot store.
        path: The file; its folder exists.
        fps: Pictures a second.

    Returns:
        The number of pictures.

    Raises:
        ValueError: There is no picture.
    """
    import av  # FFmpeg's libraries take a while to load

    codec = next(name for name in CODECS if name in av.codecs_available)
    count = 0
    stream: Any = None
    with av.open(str(path), "w", format="mp4") as file:
        for frame in frames:
            frame = np.ascontiguousarray(frame[: frame.shape[0] // 2 * 2, : frame.shape[1] // 2 * 2])
            if stream is None:
                stream = file.add_stream(codec, rate=Fraction(fps))
                stream.height, stream.width = frame.shape[:2]
                stream.pix_fmt = "yuv420p"
            file.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
            count += 1
        if stream is None:
            raise ValueError(f"There is no picture to write to {path}.")
        file.mux(stream.encode())
    return count
