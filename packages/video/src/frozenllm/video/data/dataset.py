"""The data set: clips of videos, augmented and labelled, whatever the videos are stored as."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import default_collate

from frozenllm.core.training import UNREADABLE, BrokenSample
from frozenllm.core.training.tolerant import TolerantDataset
from frozenllm.video.sampling import Choice, Sampling, make_sampling
from frozenllm.video.transforms import EvalTransform, make_transform


class VideoSource(Protocol):
    """Videos that are stored somewhere."""

    labels: np.ndarray

    def __len__(self) -> int: ...

    def name(self, index: int) -> str:
        """How messages call the video."""

    def frames(self, index: int, choice: Choice) -> Tensor:
        """The chosen frames, ``(T, 3, H, W)`` uint8; raises `BrokenSample`."""


class VideoDataset(TolerantDataset):
    """Clips of videos with their classes: dicts of ``inputs``, ``targets`` and ``video`` (the video's index).

    In training a sample is a video, with one clip ``(T, 3, S, S)`` float32, or with ``samples_per_video`` clips: the
    same frames under different augmentation, stacked in front, with as many targets. In evaluation a sample is a view
    of a video: number ``video * views + t * spatial + s``, with temporal view ``t`` and crop ``s``.

    Args:
        source: The videos.
        sampling: The choice of frames, or its config (`make_sampling`).
        transform: From frames to a clip of the width ``transform.size``; or its config (`make_transform`).
        train: Random frames and augmentation.
        samples_per_video: Clips of every training sample.
        views: ``temporal`` and ``spatial`` views in evaluation; None for one clip.
        random_frames: Whether a single evaluated clip has random frames too, as in the official validation; drawn, as
            in training, from the generators that the engine seeds. Otherwise they are in the middle of their segments.
        on_error: See `TolerantDataset`.

    Raises:
        ValueError: An option is not possible.
    """

    def __init__(
        self,
        source: VideoSource,
        *,
        sampling: Sampling | Mapping[str, Any],
        transform: Callable[..., Tensor] | Mapping[str, Any],
        train: bool = False,
        samples_per_video: int = 1,
        views: Mapping[str, int] | None = None,
        random_frames: bool = False,
        on_error: str = "raise",
    ) -> None:
        temporal, spatial = _views(views)
        if samples_per_video < 1:
            raise ValueError(f"The data's samples_per_video must be 1 or more, not {samples_per_video}.")
        if train and views is not None:
            raise ValueError("Views are for evaluation: leave out views where train is true.")
        if not train and samples_per_video > 1:
            raise ValueError("Several samples per video are for training: in evaluation there are views.")
        if random_frames and (train or views is not None):
            raise ValueError("random_frames is for evaluation with one clip: training has them, and views are fixed.")
        super().__init__(len(source) * temporal * spatial, train=train, on_error=on_error)
        self.source = source
        self.sampling = make_sampling(sampling) if isinstance(sampling, Mapping) else sampling
        self.transform = make_transform(transform, train) if isinstance(transform, Mapping) else transform
        self.samples_per_video = samples_per_video
        self.temporal, self.spatial = temporal, spatial
        self.random_frames = random_frames
        self._last: tuple[int, Tensor | BrokenSample] | None = None

    @property
    def views(self) -> int:
        """Samples of every video."""
        return self.temporal * self.spatial

    def read(self, index: int) -> dict[str, Any]:
        """See `TolerantDataset`."""
        return self._training_clips(index) if self.train else self._view(index)

    def describe(self, index: int) -> str:
        """The video's file, or its id where it is a folder of frames."""
        return self.source.name(index // self.views)

    def placeholder(self, index: int) -> dict[str, Any]:
        """See `TolerantDataset`."""
        size = self.transform.size  # type: ignore[attr-defined]
        clip = torch.zeros(self.sampling.num_frames, 3, size, size)
        return {"inputs": clip, "targets": UNREADABLE, "video": index // self.views}

    def frame_numbers(self, index: int, length: int) -> np.ndarray:
        """Which frames of its video an evaluated sample shows, ``(T,)``, if the video has ``length`` of them.

        Raises:
            ValueError: They are drawn at random.
        """
        if self.train or self.random_frames:
            raise ValueError("The frames are drawn at random: which ones cannot be said afterwards.")
        return self._choice(length).reshape(self.temporal, -1)[index % self.views // self.spatial]

    def _training_clips(self, video: int) -> dict[str, Any]:
        frames = self.source.frames(video, self.sampling.random)
        label = int(self.source.labels[video])
        if self.samples_per_video == 1:
            return {"inputs": self.transform(frames), "targets": label, "video": video}
        number = self.samples_per_video
        return {
            "inputs": torch.stack([self.transform(frames) for _ in range(number)]),
            "targets": torch.full((number,), label),
            "video": torch.full((number,), video),
        }

    def _view(self, index: int) -> dict[str, Any]:
        video, view = divmod(index, self.views)
        t, s = divmod(view, self.spatial)
        clips = self._resized(video)
        if isinstance(self.transform, EvalTransform):
            clip = self.transform.crop(clips[t], s, self.spatial)
        else:
            clip = self.transform(clips[t])
        return {"inputs": clip, "targets": int(self.source.labels[video]), "video": video}

    def _resized(self, video: int) -> Tensor:
        """Clips of all temporal views. Those of the last video are kept, so that its views decode it once."""
        if self._last is None or self._last[0] != video:
            try:
                frames = self.source.frames(video, self._choice)
                if isinstance(self.transform, EvalTransform):
                    frames = self.transform.resize(frames)
                clips: Tensor | BrokenSample = frames.unflatten(0, (self.temporal, self.sampling.num_frames))
            except BrokenSample as error:
                clips = error
            if self.views == 1:
                self._last = None
            else:
                self._last = (video, clips)
        else:
            clips = self._last[1]
        if isinstance(clips, BrokenSample):
            raise BrokenSample(str(clips))
        return clips

    def _choice(self, length: int) -> np.ndarray:
        if self.random_frames:
            return self.sampling.random(length)
        return np.concatenate([self.sampling.view(length, t, self.temporal) for t in range(self.temporal)])

    def note(self, index: int, error: BrokenSample) -> None:
        """Count a broken video and log it, once, however many views it has."""
        super().note(index // self.views * self.views, error)


def collate_videos(samples: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """A batch in which every clip is a sample of its own.

    Clips of one video are as far from each other as they can be, all videos' first clips coming first: mixup pairs
    neighbours, and a video mixed with itself is not mixed.

    Args:
        samples: Of `VideoDataset`, with one or with several clips each.

    Returns:
        ``inputs`` (B, T, C, H, W), ``targets`` and ``video`` (B,), and B is the number of clips.
    """
    batch: dict[str, Any] = default_collate(list(samples))
    if batch["inputs"].ndim == 5:
        return batch
    return {name: value.transpose(0, 1).flatten(0, 1) for name, value in batch.items()}


def _views(views: Mapping[str, int] | None) -> tuple[int, int]:
    if views is None:
        return 1, 1
    if not isinstance(views, Mapping):
        raise ValueError(f"The data's views must be numbers `temporal` and `spatial` from 1, not {views!r}.")
    chosen = dict(views)
    temporal, spatial = chosen.pop("temporal", 1), chosen.pop("spatial", 1)
    if chosen or not all(isinstance(v, int) and v >= 1 for v in (temporal, spatial)):
        raise ValueError(f"The data's views must be numbers `temporal` and `spatial` from 1, not {dict(views)}.")
    return temporal, spatial
