"""Which tokens of a clip lie on the object and which frames tell something, where a data set knows.

Known for the toy videos, from the file `frozenllm.video.toy.TRUTH`. A file of the same form beside other data is read
in the same way.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from frozenllm.video.data import VideoDataset
from frozenllm.video.toy import TRUTH
from frozenllm.video.transforms import EvalTransform

COVERED = 0.5
"""Share of a token's area, over its frames, that the object's box must cover for the token to lie on it. Chosen."""


@dataclass(frozen=True)
class ClipTruth:
    """What is known of one clip.

    Attributes:
        on_object: ``(T', H', W')`` bool.
        moves: ``(T',)`` bool: in one of the token's frames, the object is elsewhere than in the frame before.
    """

    on_object: Tensor
    moves: Tensor


class Truth:
    """What a data set knows of its videos.

    Args:
        data: Evaluation data.
        size: Width and height of the videos' frames.
        videos: Id -> ``boxes`` and ``moves``.
    """

    def __init__(self, data: VideoDataset, size: int, videos: Mapping[str, Any]) -> None:
        self.data = data
        self.size = size
        self.videos = videos

    def clip(self, index: int, grid: tuple[int, int, int]) -> ClipTruth | None:
        """What is known of a sample; None for nothing.

        Args:
            index: The sample.
            grid: Tokens along time, height and width.
        """
        entry = self.videos.get(Path(self.data.source.name(index // self.data.views)).stem)
        if entry is None:
            return None
        times = self.data.frame_numbers(index, len(entry["boxes"]))
        masks = self._masks(np.asarray(entry["boxes"])[times], index)
        moves = torch.tensor(entry["moves"])[times].reshape(grid[0], -1).any(dim=1)
        return ClipTruth(F.adaptive_avg_pool3d(masks[None], grid)[0] >= COVERED, moves)

    def _masks(self, boxes: np.ndarray, index: int) -> Tensor:
        """The boxes as the model would see them, (T, S, S) from 0 to 1: resized and cropped as the frames are."""
        drawn = torch.zeros(len(boxes), 3, self.size, self.size, dtype=torch.uint8)
        for frame, (left, top, right, bottom) in zip(drawn, boxes.tolist(), strict=True):
            frame[:, top:bottom, torch.arange(left, right) % self.size] = 255
        transform = self.data.transform
        assert isinstance(transform, EvalTransform)
        clip = transform.crop(transform.resize(drawn), index % self.data.spatial, self.data.spatial)
        return pixels(clip, transform)[:, 0]


def read_truth(data: VideoDataset) -> Truth | None:
    """What is known of evaluation data; None where there is no such file, or the clips are drawn at random.

    Raises:
        ValueError: The file is damaged.
    """
    prefix = getattr(data.source, "prefix", None)
    if prefix is None or data.random_frames or not isinstance(data.transform, EvalTransform):
        return None
    path = next((p for p in (Path(prefix) / TRUTH, Path(prefix).parent / TRUTH) if p.is_file()), None)
    if path is None:
        return None
    try:
        content = json.loads(path.read_text())
        return Truth(data, int(content["size"]), dict(content["videos"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} cannot be read ({error}): remove it, or write the toy data anew.") from error


def pixels(clip: Tensor, transform: EvalTransform) -> Tensor:
    """A clip (T, 3, S, S) before its normalisation, from 0 to 1."""
    mean, std = (torch.tensor(values, device=clip.device)[:, None, None] for values in (transform.mean, transform.std))
    return (clip * std + mean).clamp(0, 1)
