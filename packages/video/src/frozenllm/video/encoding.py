"""Frames into a video file, through PyAV."""

from __future__ import annotations

import os
from fractions import Fraction

import numpy as np

FRAME_RATE = 12  # Something-Something V2's


def encode(
    path: str | os.PathLike[str],
    frames: np.ndarray,
    *,
    codec: str = "libx264",
    frame_rate: int | Fraction = FRAME_RATE,
    options: dict[str, str] | None = None,
) -> None:
    """Writes frames as a video file; the container follows from the file's name.

    Args:
        path: The file.
        frames: ``(T, H, W, 3)`` uint8, of even width and height.
        codec: FFmpeg's name of the encoder.
        frame_rate: Frames per second.
        options: The encoder's; None for a quality at which small digits stay what they are.
    """
    import av

    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=frame_rate, options=options or {"crf": "18", "preset": "veryfast"})
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        stream.codec_context.thread_count = 1  # more cost time on small frames
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")))
        container.mux(stream.encode())
