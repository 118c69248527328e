"""What ``frozenllm doctor`` tries of this package."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np

from frozenllm.core.checkup import Check
from frozenllm.core.film import write_film
from frozenllm.video.data.decoding import read_video
from frozenllm.video.sampling import SegmentSampling


def _decode(decoder: str) -> str:
    """Write a short video that grows brighter, and read it back."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "clip.mp4"
        shades = np.linspace(0, 255, 8).astype(np.uint8)
        write_film(np.broadcast_to(shades[:, None, None, None], (8, 32, 48, 3)), path)
        frames = read_video(path, SegmentSampling(8).view, decoder)
    seen = frames.float().mean(dim=(1, 2, 3))
    error = abs(seen.numpy() - shades).max()
    if not error < 8:  # grey levels; compression costs some
        raise RuntimeError(f"a video is read back with frames that are {error:.0f} grey levels off")
    return "H.264 in an mp4 is written and read back"


def _pyav() -> str:
    import av

    return f"av {av.__version__}: {_decode('pyav')}"


def _torchcodec() -> str:
    import torchcodec

    return f"torchcodec {torchcodec.__version__}: {_decode('torchcodec')}"


def _frames() -> str:
    import cv2

    written, data = cv2.imencode(".jpg", np.full((16, 16, 3), 100, np.uint8))
    if not written or abs(cv2.imdecode(data, cv2.IMREAD_COLOR).astype(int) - 100).max() > 4:
        raise RuntimeError("a frame is read back changed")
    return f"opencv {cv2.__version__} writes and reads"


CHECKS = (
    Check("PyAV through pytorchvideo", _pyav, "pip install --upgrade av 'pytorchvideo>=0.1.5'"),
    Check(
        "[torchcodec] faster decoder",
        _torchcodec,
        "pip install 'frozenllm-video[torchcodec]' in the version that fits torch, and FFmpeg's shared libraries",
        ("torchcodec",),
    ),
    Check(
        "frames",
        _frames,
        "pip install --upgrade opencv-python, and the system's libGL and libglib (or the headless one)",
    ),
)
