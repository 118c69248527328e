"""From frames to clips: (T, 3, H, W) uint8 to (T, 3, S, S) float32, with torchvision's v2 transforms.

One draw holds for all frames of a clip, except the noise that erasing puts in. Random numbers come from torch's global
generator, which the training engine seeds for every sample.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms.v2 import functional as F

from frozenllm.video.augment import VideoRandAugment

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class CubeErasing(v2.RandomErasing):
    """Random erasing of the same box in all frames, filled with normal noise that is fresh in every frame.

    torchvision's own ``value="random"`` repeats one noise image in all frames. Applies to normalised clips.

    Args:
        p: Share of the clips.
        scale: Least and largest share of the frame.
        ratio: Least and largest ratio of height to width.
    """

    def __init__(
        self, p: float = 0.25, scale: Sequence[float] = (0.02, 1 / 3), ratio: Sequence[float] = (0.3, 1 / 0.3)
    ) -> None:
        super().__init__(p=p, scale=scale, ratio=ratio, value=0)

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        """Called by torchvision with a box ``i, j, h, w``; there is none where ``v`` is None."""
        if params["v"] is None:
            return inpt
        i, j, h, w = (params[name] for name in "ijhw")
        erased = inpt.clone()
        erased[..., i : i + h, j : j + w] = torch.randn_like(erased[..., i : i + h, j : j + w])
        return erased


class TrainTransform(nn.Module):
    """Augmentation as in the official code: RandAugment, random resized crop, normalisation, erasing; no flip.

    Args:
        size: Width and height of the clip in pixels.
        auto_augment: See `VideoRandAugment`; None for none.
        scale: Least and largest share of the frame that the crop takes.
        ratio: Least and largest ratio of its width to its height.
        hflip: Share of the clips that are mirrored. SSv2's classes tell left from right.
        erase: See `CubeErasing`.
        interpolation: ``"bilinear"`` or ``"bicubic"``, of the crop.
        antialias: Whether shrinking smooths.
        mean: Of the channels, subtracted from values between 0 and 1.
        std: Of the channels.

    Raises:
        ValueError: An option is not possible.
    """

    def __init__(
        self,
        size: int,
        *,
        auto_augment: str | None = None,
        scale: Sequence[float] = (0.08, 1.0),
        ratio: Sequence[float] = (3 / 4, 4 / 3),
        hflip: float = 0.0,
        erase: float = 0.0,
        interpolation: str = "bilinear",
        antialias: bool = False,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
    ) -> None:
        super().__init__()
        self.size = size
        crop = v2.RandomResizedCrop(
            (size, size), tuple(scale), tuple(ratio), interpolation=_mode(interpolation), antialias=antialias
        )
        steps: list[nn.Module] = [VideoRandAugment.parse(auto_augment)] if auto_augment else []
        steps += [crop] + ([v2.RandomHorizontalFlip(hflip)] if hflip else [])
        steps += [v2.ToDtype(torch.float32, scale=True), v2.Normalize(tuple(mean), tuple(std))]
        if erase:
            steps.append(CubeErasing(erase))
        self.steps = nn.Sequential(*steps)

    def forward(self, frames: Tensor) -> Tensor:
        """The augmented clip."""
        clip: Tensor = self.steps(frames)
        return clip


class EvalTransform(nn.Module):
    """The shorter side to ``resize``, a crop, normalisation.

    Args:
        size: Width and height of the clip in pixels.
        resize: Length of the shorter side; None for ``size``, as in the official code.
        interpolation: ``"bilinear"`` or ``"bicubic"``.
        antialias: Whether shrinking smooths; the official code's does not.
        mean: Of the channels, subtracted from values between 0 and 1.
        std: Of the channels.

    Raises:
        ValueError: An option is not possible.
    """

    def __init__(
        self,
        size: int,
        *,
        resize: int | None = None,
        interpolation: str = "bilinear",
        antialias: bool = False,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
    ) -> None:
        super().__init__()
        self.size = size
        self.short = size if resize is None else resize
        if self.short < size:
            raise ValueError(f"The data's transform.resize {self.short} is below its size {size}.")
        self.interpolation = _mode(interpolation)
        self.antialias = antialias
        self.mean, self.std = list(mean), list(std)

    def forward(self, frames: Tensor) -> Tensor:
        """The clip in the middle of the frames."""
        return self.crop(self.resize(frames))

    def resize(self, frames: Tensor) -> Tensor:
        """Frames with the shorter side of the wanted length, uint8."""
        return F.resize(frames, [self.short], interpolation=self.interpolation, antialias=self.antialias)

    def crop(self, frames: Tensor, index: int = 0, views: int = 1) -> Tensor:
        """The clip at one of several places.

        Args:
            frames: From `resize`.
            index: Which place.
            views: Places, spread along the longer side from its start to its end; one is in the middle.
        """
        height, width = frames.shape[-2:]
        top, left = round((height - self.size) / 2), round((width - self.size) / 2)
        if views > 1:
            if width >= height:
                left = int((width - self.size) / (views - 1) * index)
            else:
                top = int((height - self.size) / (views - 1) * index)
        clip = F.to_dtype(F.crop(frames, top, left, self.size, self.size), torch.float32, scale=True)
        return F.normalize(clip, self.mean, self.std)


def make_transform(options: Mapping[str, Any], train: bool) -> TrainTransform | EvalTransform:
    """The transform from its arguments by name.

    Raises:
        ValueError: It knows no such argument, or lacks one, or a value is not possible.
    """
    kind = TrainTransform if train else EvalTransform
    try:
        return kind(**options)
    except TypeError as error:
        what = "training" if train else "evaluation"
        raise ValueError(f"The data's transform for {what} has a wrong option: {error}.") from error


def _mode(name: str) -> InterpolationMode:
    modes = {"bilinear": InterpolationMode.BILINEAR, "bicubic": InterpolationMode.BICUBIC}
    if name not in modes:
        raise ValueError(f"The data's transform.interpolation must be one of {', '.join(modes)}, not {name!r}.")
    return modes[name]
