"""RandAugment with the paper's setting, for clips: what timm calls ``rand-m7-n4-mstd0.5-inc1``.

torchvision's RandAugment applies every operation at one fixed magnitude, and lacks inversion and SolarizeAdd; timm's
works on single PIL images. This is torchvision's, with timm's operations, ranges and randomness.
"""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import Tensor
from torchvision.transforms import InterpolationMode, v2

_LEVELS = 10.0
_FILL = 128  # timm's grey; the official code's as well
# Operations and what their level, from 0 to 1, stands for: the ranges of timm's "increasing" set.
_SIGNED = {
    "Rotate": 30.0,  # degrees
    "Color": 0.9,  # distance of the blending factor from 1
    "Contrast": 0.9,
    "Brightness": 0.9,
    "Sharpness": 0.9,
    "ShearX": 0.3,
    "ShearY": 0.3,
    "TranslateX": 0.45,  # share of the width
    "TranslateY": 0.45,
}
OPERATIONS = ("AutoContrast", "Equalize", "Invert", "Posterize", "Solarize", "SolarizeAdd", *_SIGNED)
"""What is drawn from, uniformly and with replacement."""


class VideoRandAugment(v2.RandAugment):
    """RandAugment on (..., 3, H, W) uint8 whose leading dimensions all get the same operations.

    Differs from the official code in two points, since operations run on tensors: shifts, shears and rotations
    interpolate bilinearly (torchvision has no bicubic one for tensors), and shifts are by whole pixels.

    Args:
        num_ops: Operations that are drawn for a clip.
        magnitude: Mean of the magnitude, from 0 to 10.
        magnitude_std: Its standard deviation; every operation draws its own, cut off at 0 and 10.
        prob: Share of the drawn operations that are applied.
    """

    def __init__(
        self, num_ops: int = 2, magnitude: float = 10.0, magnitude_std: float = 0.0, prob: float = 0.5
    ) -> None:
        super().__init__(num_ops=num_ops, interpolation=InterpolationMode.BILINEAR, fill=_FILL)
        self.mean = float(magnitude)
        self.std = float(magnitude_std)
        self.prob = prob

    @classmethod
    def parse(cls, name: str) -> VideoRandAugment:
        """From timm's notation: ``rand-m<magnitude>-n<operations>-p<prob>-mstd<std>-inc1``.

        Raises:
            ValueError: It is something else; the operations of ``inc0`` are not there.
        """
        first, *parts = name.split("-")
        keys = {"m": "magnitude", "n": "num_ops", "p": "prob", "mstd": "magnitude_std", "inc": "inc"}
        found: dict[str, float] = {}
        for part in parts:
            match = re.fullmatch(r"([a-z]+)(\d+(?:\.\d+)?)", part)
            if match is None or match[1] not in keys:
                raise ValueError(f"The data's auto_augment {name!r} has an unknown part {part!r}.")
            found[keys[match[1]]] = float(match[2])
        if first != "rand" or found.pop("inc", 0) != 1 or not 0 <= found.get("magnitude", 10) <= _LEVELS:
            raise ValueError(
                f"The data's auto_augment must look like rand-m7-n4-mstd0.5-inc1, with m from 0 to 10, not {name!r}."
            )
        return cls(**{**found, "num_ops": int(found.get("num_ops", 2))})

    def forward(self, *inputs: Any) -> Any:
        """The clip after the drawn operations."""
        (clip,) = inputs
        for _ in range(self.num_ops):
            operation = OPERATIONS[int(torch.randint(len(OPERATIONS), ()))]
            if torch.rand(()) >= self.prob:
                continue
            level = float((self.mean + self.std * torch.randn(())).clamp(0, _LEVELS)) / _LEVELS
            if operation in _SIGNED and torch.rand(()) < 0.5:
                level = -level
            clip = self.apply(clip, operation, level)
        return clip

    def apply(self, clip: Tensor, operation: str, level: float) -> Tensor:
        """One operation.

        Args:
            clip: ``(..., 3, H, W)`` uint8.
            operation: One of `OPERATIONS`.
            level: From 0 to 1, or from -1 for those with two directions.
        """
        # Bytes in place of torchvision's `where` and affine maps, which take ten times as long on clips.
        if operation == "SolarizeAdd":
            return (clip < 128).to(torch.uint8).mul_(min(128, int(level * 110))).add_(clip)
        if operation == "Solarize":
            threshold = 256 - min(256, int(level * 256))
            return (clip >= threshold).to(torch.uint8).mul_(255).bitwise_xor_(clip) if threshold < 256 else clip
        if operation.startswith("Translate"):
            axis = -1 if operation == "TranslateX" else -2
            return _shifted(clip, round(level * _SIGNED[operation] * clip.shape[axis]), axis)
        if operation == "Posterize":
            value: float = 4 - int(level * 4)  # bits that are kept
        else:
            value = level * _SIGNED.get(operation, 0.0)
        applied: Tensor = self._apply_image_or_video_transform(
            clip, operation, value, interpolation=self.interpolation, fill=self._fill
        )
        return applied


def _shifted(clip: Tensor, pixels: int, axis: int) -> Tensor:
    """The clip moved along an axis, with grey where it was."""
    shifted = torch.full_like(clip, _FILL)
    kept = clip.shape[axis] - abs(pixels)
    shifted.narrow(axis, max(pixels, 0), kept).copy_(clip.narrow(axis, max(-pixels, 0), kept))
    return shifted
