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
"""Share of the length promised by its header below which a video is cut short. Not 1: headers round.

The length and not the number of frames: a clip that was cut out of a longer video without encoding it anew keeps frames
that its edit list hides, and of a variable rate the number is not known.
"""


def read_video(path: str | os.PathLike[str], choice: Choice, decoder: str = "auto") -> Tensor:
    """Some frames of a video file.

    PyAV decodes the whole file and converts the chosen frames; torchcodec seeks. Both turn the frames as the file says
    (phones store them sideways).

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
        with _open(path) as container:
            if not container.streams.video:
                raise BrokenSample(f"The file {path} has no video stream.")
            stream = container.streams.video[0]
            if stream.codec_context is None:
                raise BrokenSample(f"The video file {path} is encoded in a way that FFmpeg does not know.")
            stream.codec_context.thread_count = 1  # the loader's workers are the threads
            promised = _promised(container, stream)
            frames = _decode(path, container, stream)
            _check_length(path, len(frames), _end(frames, stream), promised)
            wanted = choice(len(frames)).tolist()
            turns = _clockwise_turns(frames[0])
            arrays = {i: np.rot90(frames[i].to_ndarray(format="rgb24"), -turns) for i in set(wanted)}
    except av.FFmpegError as error:
        raise BrokenSample(f"The video file {path} cannot be decoded ({error.strerror or error}).") from error
    shapes = {array.shape for array in arrays.values()}
    if len(shapes) > 1:
        raise BrokenSample(f"The video file {path} changes the size of its frames.")
    return torch.from_numpy(np.stack([arrays[i] for i in wanted])).permute(0, 3, 1, 2)


def _open(path: str) -> Any:
    """A video file, whatever the encoding of the texts in it."""
    import av

    # From 19 on PyAV reads any text, and has no such argument.
    options = {"metadata_errors": "ignore"} if int(av.__version__.split(".")[0]) < 19 else {}
    return av.open(path, **options)


def _decode(path: str, container: Any, stream: Any) -> list[Any]:
    from pytorchvideo.data.encoded_video_pyav import _pyav_decode_stream

    try:
        # The class around this function hides decoding errors, and makes float32 of every frame.
        frames, _ = _pyav_decode_stream(container, -math.inf, math.inf, stream, {"video": 0})
    except TypeError as error:  # it puts frames in order of their times
        raise BrokenSample(f"The video file {path} has frames without a time.") from error
    return frames


def _promised(container: Any, stream: Any) -> float:
    """Seconds at which the video ends by the header: that of the stream in mp4, of the file in webm; 0 if neither."""
    import av

    if stream.duration is not None and stream.time_base is not None:
        return float(stream.duration * stream.time_base)
    if container.duration is None or container.streams.audio:
        return 0.0  # the length may be that of the sound
    return float(container.duration / av.time_base)


def _promised_by(path: str) -> float:
    """`_promised` of a file: torchcodec does not tell a webm's length."""
    import av

    try:
        with _open(path) as container:
            return _promised(container, container.streams.video[0])
    except av.FFmpegError:
        return 0.0


def _end(frames: list[Any], stream: Any) -> float:
    """Seconds at which the last frame ends; 0 without frames."""
    if not frames:
        return 0.0
    last = frames[-1]
    length = (getattr(last, "duration", 0) or 0) * last.time_base  # older PyAV does not tell
    return float((last.time or 0) + (length or (1 / stream.average_rate if stream.average_rate else 0)))


def _check_length(path: str, number: int, end: float, promised: float) -> None:
    """Raise for a video without frames, or one that ends too early."""
    if not number:
        raise BrokenSample(f"The video file {path} has no frames.")
    if end < _COMPLETE * promised:
        raise BrokenSample(
            f"The video file {path} is cut short: it ends after {end:.1f} of its {promised:.1f} seconds."
        )


def _clockwise_turns(frame: Any) -> int:
    """Quarter turns that bring a frame upright, from its display matrix (rows of 16.16 fixed-point numbers)."""
    from av.sidedata.sidedata import Type

    found = frame.side_data.get(Type.DISPLAYMATRIX)
    if found is None:
        return 0
    matrix = np.frombuffer(bytes(found), dtype=np.int32)
    return round(math.atan2(matrix[1], matrix[0]) / (math.pi / 2))


def _try_torchcodec() -> None:
    """Raises where torchcodec is not installed or finds no FFmpeg (on import or on first use, by its release)."""
    from torchcodec.decoders import VideoDecoder, VideoStreamMetadata

    if "rotation" not in VideoStreamMetadata.__dataclass_fields__:
        raise ImportError("releases before 0.11 leave the videos of phones sideways")
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
        promised = decoder.metadata.duration_seconds_from_header or _promised_by(path)
        _check_length(path, number, float(decoder.metadata.end_stream_seconds or 0), promised)
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
