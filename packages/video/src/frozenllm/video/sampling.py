"""Which frames of a video make a clip: one of every segment (TSN), or a dense window.

Random choices come from numpy's global generator, which the training engine seeds for every sample.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np

Choice = Callable[[int], np.ndarray]
"""From the number of a video's frames to the indices of those that are wanted."""


class Sampling(Protocol):
    """A way to choose the frames of a clip."""

    num_frames: int

    def random(self, length: int) -> np.ndarray:
        """Indices drawn at random, ``(num_frames,)`` int64, for a video of ``length`` frames (1 or more)."""

    def view(self, length: int, index: int = 0, views: int = 1) -> np.ndarray:
        """Indices of the clip ``index`` among ``views`` that are spread over the video."""


class SegmentSampling:
    """One frame of each of ``num_frames`` segments of equal length, as in the official SSv2 code (its ssv2.py).

    At random (training, and the official validation): a frame of every segment. The official segments have whole
    lengths, so up to ``num_frames - 1`` frames at the end of a video are never seen in training; with ``whole`` the
    segments cover all of it. As views (the official test, two of them): segment ``x`` of ``length / num_frames`` frames
    gives its frame at ``index / views`` of its length, a single view the one in its middle.

    A video with fewer frames than segments has its frames spread evenly over the clip. The official code repeats the
    first frame there, which leaves a still image.

    Args:
        num_frames: Frames of a clip.
        whole: Whether random clips reach the end of every video.
    """

    def __init__(self, num_frames: int, *, whole: bool = False) -> None:
        self.num_frames = _positive("num_frames", num_frames)
        self.whole = whole

    def random(self, length: int) -> np.ndarray:
        """See `Sampling`."""
        segments = np.arange(self.num_frames)
        if length < self.num_frames:
            return segments * length // self.num_frames
        if self.whole:
            edges = np.arange(self.num_frames + 1) * length // self.num_frames
            return edges[:-1] + np.random.randint(np.diff(edges))
        step = length // self.num_frames
        return segments * step + np.random.randint(step, size=self.num_frames)

    def view(self, length: int, index: int = 0, views: int = 1) -> np.ndarray:
        """See `Sampling`."""
        tick = length / self.num_frames
        offset = index / views if views > 1 else 0.5
        return (tick * offset + tick * np.arange(self.num_frames)).astype(np.int64)


class DenseSampling:
    """A window of ``num_frames`` frames, ``stride`` apart, as is usual for Kinetics (VideoMAE's kinetics.py).

    At random it lies anywhere; views are spread evenly from the video's start to its end, and a single one is in the
    middle. A video that is shorter than the window has its last frame repeated.

    Args:
        num_frames: Frames of a clip.
        stride: Distance of neighbouring frames.
    """

    def __init__(self, num_frames: int, *, stride: int = 4) -> None:
        self.num_frames = _positive("num_frames", num_frames)
        self.stride = _positive("stride", stride)

    def random(self, length: int) -> np.ndarray:
        """See `Sampling`."""
        return self._window(length, int(np.random.randint(self._slack(length) + 1)))

    def view(self, length: int, index: int = 0, views: int = 1) -> np.ndarray:
        """See `Sampling`."""
        place = index / (views - 1) if views > 1 else 0.5
        return self._window(length, int(self._slack(length) * place))

    def _slack(self, length: int) -> int:
        return max(length - ((self.num_frames - 1) * self.stride + 1), 0)

    def _window(self, length: int, start: int) -> np.ndarray:
        return np.minimum(start + np.arange(self.num_frames) * self.stride, length - 1)


_KINDS = {"segments": SegmentSampling, "dense": DenseSampling}


def make_sampling(options: Mapping[str, Any]) -> Sampling:
    """A sampling from its config: ``type`` (``segments`` or ``dense``) and the class's arguments.

    Raises:
        ValueError: The type or an option is unknown, or a number is not possible.
    """
    chosen = dict(options)
    kind = chosen.pop("type", "segments")
    if kind not in _KINDS:
        raise ValueError(f"The data's sampling.type must be one of {', '.join(_KINDS)}, not {kind!r}.")
    try:
        return _KINDS[kind](**chosen)
    except TypeError as error:
        raise ValueError(
            f"The data's sampling has an option that {kind!r} does not know, or lacks one: {error}."
        ) from error


def _positive(name: str, value: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"The data's sampling.{name} must be a whole number from 1, not {value!r}.")
    return value
