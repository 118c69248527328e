"""Frames of encoded videos: through pytorchvideo's PyAV decoding, or torchcodec where it works."""

from __future__ import annotations

import functools
import logging
import math
import os
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from frozenllm.core.training import BrokenSample
from frozenllm.video.sampling import Choice

logger = logging.getLogger(__name__)

DECODERS = ("auto", "pyav", "torchcodec")

_COMPLETE = 0.9
"""Share of the frames promised by its header below which a video is cut short. Not 1: edit lists hide a few frames."""


def read_video(path: str | os.PathLike[str], choice: Choice, decoder: str = "auto") -> Tensor:
    """Some frames of a video file.

    PyAV decodes the whole file and converts the chosen frames; torchcodec seeks.

    Args:
        path: The file.
        choice: Which frames, given how many there are.
        decoder: One of `DECODERS`; ``"auto"`` for torchcodec where it is installed and finds FFmpeg, else PyAV.

    Returns:
        ``(T, 3, H, W)`` uint8, RGB.

    Raises:
        BrokenSample: The file is missing, empty, damaged or cut short.
        ValueError: There is no such decoder.
        ImportError: The decoder is not installed.
    """
    path = os.fspath(path)
    if not os.path.isfile(path):
        raise BrokenSample(f"There is no video file at {path}.")
    if not os.path.getsize(path):
        raise BrokenSample(f"The video file {path} is empty.")
    return pick_decoder(decoder)(path, choice)


@functools.lru_cache
def pick_decoder(name: str) -> Callable[[str, Choice], Tensor]:
    """The function that decodes, by its name in `DECODERS`.

    Raises:
        ValueError: There is no such decoder.
        ImportError: It is not installed, or finds no FFmpeg.
    """
    if name not in DECODERS:
        raise ValueError(f"The data's decoder must be one of {', '.join(DECODERS)}, not {name!r}.")
    if name != "pyav":
        try:
            _try_torchcodec()
        except (ImportError, RuntimeError, OSError) as error:
            if name == "torchcodec":
                raise ImportError(
                    "The decoder torchcodec does not work here: install 'frozenllm-video[torchcodec]' and FFmpeg's "
                    f"shared libraries, or set decoder to pyav ({_reason(error)})."
                ) from error
        else:
            logger.info("Videos are decoded by torchcodec.")
            return _read_torchcodec
    return _read_pyav


def _read_pyav(path: str, choice: Choice) -> Tensor:
    import av

    try:
        with av.open(path, metadata_errors="ignore") as container:
            if not container.streams.video:
                raise BrokenSample(f"The file {path} has no video stream.")
            stream = container.streams.video[0]
            if stream.codec_context is None:
                raise BrokenSample(f"The video file {path} is encoded in a way that FFmpeg does not know.")
            stream.codec_context.thread_count = 1  # the loader's workers are the threads
            promised = _promised(container, stream)
            frames = _decode(path, container, stream)
            if not frames or len(frames) < _COMPLETE * promised:
                raise BrokenSample(_cut_short(path, len(frames), promised))
            wanted = choice(len(frames)).tolist()
            arrays = {i: frames[i].to_ndarray(format="rgb24") for i in set(wanted)}
    except av.FFmpegError as error:
        raise BrokenSample(f"The video file {path} cannot be decoded ({error.strerror or error}).") from error
    shapes = {array.shape for array in arrays.values()}
    if len(shapes) > 1:
        raise BrokenSample(f"The video file {path} changes the size of its frames.")
    return torch.from_numpy(np.stack([arrays[i] for i in wanted])).permute(0, 3, 1, 2)


def _decode(path: str, container: Any, stream: Any) -> list[Any]:
    from pytorchvideo.data.encoded_video_pyav import _pyav_decode_stream

    try:
        # The class around this function hides decoding errors, and makes float32 of every frame.
        frames, _ = _pyav_decode_stream(container, -math.inf, math.inf, stream, {"video": 0})
    except TypeError as error:  # it puts frames in order of their times
        raise BrokenSample(f"The video file {path} has frames without a time.") from error
    return frames


def _promised(container: Any, stream: Any) -> int:
    """Frames by the header: counted in mp4, from the length in webm, 0 where it tells neither."""
    import av

    if stream.frames:
        return int(stream.frames)
    rate = stream.average_rate
    audio = container.streams.audio
    if container.duration is None or rate is None or audio:
        return 0  # the length may be that of the sound
    return round(container.duration / av.time_base * rate)


def _promised_by(path: str) -> int:
    """`_promised` of a file: torchcodec does not tell a webm's length."""
    import av

    try:
        with av.open(path, metadata_errors="ignore") as container:
            return _promised(container, container.streams.video[0])
    except av.FFmpegError:
        return 0


def _try_torchcodec() -> None:
    """Raises where torchcodec is not installed or finds no FFmpeg (on import or on first use, by its release)."""
    from torchcodec.decoders import VideoDecoder

    try:
        VideoDecoder(b"no video")
    except (RuntimeError, ValueError) as error:
        if "libtorchcodec" in str(error):
            raise


def _read_torchcodec(path: str, choice: Choice) -> Tensor:
    from torchcodec.decoders import VideoDecoder

    try:
        decoder = VideoDecoder(path, dimension_order="NCHW", num_ffmpeg_threads=1)
        number = len(decoder)
        promised = decoder.metadata.num_frames_from_header or _promised_by(path)
        if not number or number < _COMPLETE * promised:
            raise BrokenSample(_cut_short(path, number, promised))
        frames: Tensor = decoder.get_frames_at(choice(number).tolist()).data
        return frames
    except (RuntimeError, IndexError, ValueError) as error:
        if isinstance(error, BrokenSample):
            raise
        raise BrokenSample(f"The video file {path} cannot be decoded ({_reason(error)}).") from error


def _reason(error: Exception) -> str:
    """The first line of torchcodec's message, without the place in its source."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return re.sub(r"^.*\.cpp:\d+, ", "", lines[0]).removesuffix(" Likely causes:").removesuffix(".")


def _cut_short(path: str, found: int, promised: int) -> str:
    if not found:
        return f"The video file {path} has no frames."
    return f"The video file {path} is cut short: {found} of its {promised} frames are there."
