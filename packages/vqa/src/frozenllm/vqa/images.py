"""Images: where they lie, how they are opened, and CLIP's transforms."""

from __future__ import annotations

import io
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torchvision.transforms import v2 as T

from frozenllm.core.training import BrokenSample

# CLIP's own normalisation.
MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)
# What Pillow and its codecs raise on damaged files.
_BROKEN = (OSError, EOFError, SyntaxError, ValueError, struct.error, Image.DecompressionBombError)


@dataclass(frozen=True)
class ImageFile:
    """An image in a file of its own."""

    path: Path

    @property
    def name(self) -> str:
        """For messages."""
        return str(self.path)

    def open(self) -> Image.Image:
        """The image in RGB.

        Raises:
            BrokenSample: The file is missing or damaged.
        """
        if not self.path.is_file():
            raise BrokenSample(f"The image {self.path} does not exist.")
        try:
            with Image.open(self.path) as image:
                return image.convert("RGB")
        except _BROKEN as error:
            raise BrokenSample(f"{self.path} cannot be read as an image ({error}).") from error


@dataclass(frozen=True)
class ArrowImage:
    """An image in a row of an Arrow table's column ``image``; ``where`` is the table's file."""

    table: Any
    row: int
    where: str

    @property
    def name(self) -> str:
        """For messages."""
        return f"Row {self.row} of {self.where}"

    def open(self) -> Image.Image:
        """The image in RGB.

        Raises:
            BrokenSample: The bytes are damaged.
        """
        try:
            return Image.open(io.BytesIO(self.table["image"][self.row].as_py())).convert("RGB")
        except (*_BROKEN, TypeError) as error:
            raise BrokenSample(f"{self.name} cannot be read as an image ({error}).") from error


ImageRef = ImageFile | ArrowImage


def clip_transform(size: int, *, randaug: bool = False, num_ops: int = 2, magnitude: int = 9) -> T.Compose:
    """CLIP's transform: the shorter side to ``size``, the central square, CLIP's mean and deviation.

    Args:
        size: Pixels of the result.
        randaug: RandAugment first, as METER trains (``clip_randaug``): torchvision's, whose operations differ from
            METER's in a few (no inversion and no additive solarisation).
        num_ops: Operations on an image.
        magnitude: Their strength, of 30.

    Returns:
        RGB image -> (3, size, size) float32.
    """
    return T.Compose(
        [
            *([T.RandAugment(num_ops, magnitude)] if randaug else []),
            T.Resize(size, T.InterpolationMode.BICUBIC),
            T.CenterCrop(size),
            T.PILToTensor(),
            T.ToDtype(torch.float32, scale=True),
            T.Normalize(MEAN, STD),
        ]
    )
