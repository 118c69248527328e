"""ImageNet-S (Gao et al., TPAMI 2022): ImageNet's validation images with masks of their objects, for 50, 300 or 919
classes.

The layout is that of the download: images in ``<root>/validation/<wnid>/*.JPEG``, masks of the same size in
``<root>/validation-segmentation/<wnid>/*.png``, where a pixel's class is its red value + 256 x its green one: 0 =
anything else, 1000 = not annotated (ignored), and classes count from 1 in the order of the sorted wnids.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from frozenllm.core.training import UNREADABLE, BrokenSample
from frozenllm.vision2d.data import BROKEN_IMAGE, ImageDataset, make_transform
from frozenllm.vision2d.sources import folder_reader

OTHER, IGNORED = 0, 1000
SPLIT = "validation"
MASKS = "-segmentation"
"""What the folder of a part's masks is called after the part."""

Mask = Callable[[Path, Image.Image], Image.Image]


def class_ids(mask: Image.Image) -> Tensor:
    """Class of every pixel of an ImageNet-S mask.

    Args:
        mask: RGB.

    Returns:
        (H, W) int64.
    """
    pixels = torch.from_numpy(np.array(mask.convert("RGB"), dtype=np.int64))
    return pixels[..., 0] + 256 * pixels[..., 1]


def mask_of_ids(ids: np.ndarray) -> Image.Image:
    """The mask of class ids, (H, W): the inverse of `class_ids`."""
    return Image.fromarray(np.stack([ids % 256, ids // 256, np.zeros_like(ids)], axis=-1).astype(np.uint8))


def ink(_path: Path, image: Image.Image) -> Image.Image:
    """A mask from the picture itself: pixels brighter than half are the object, for digits on a dark ground."""
    return mask_of_ids((np.asarray(image.convert("L")) > 127).astype(np.int64))


class SegmentationMasks:
    """Masks in files: that of ``<images>/<wnid>/<name>.JPEG`` is ``<masks>/<wnid>/<name>.png``.

    Args:
        folder: The masks' folder.
        classes: The wnids in sorted order; None accepts any id.
    """

    def __init__(self, folder: Path, classes: list[str] | None = None) -> None:
        self.folder = folder
        self.classes = classes

    def __call__(self, path: Path, image: Image.Image) -> Image.Image:
        """The mask of an image.

        Raises:
            BrokenSample: It is missing, damaged, of another size than the image, or holds classes that there are not.
        """
        place = self.folder / path.parent.name / f"{path.stem}.png"
        if not place.is_file():
            raise BrokenSample(f"{path} has no mask: {place} is missing.")
        try:
            with Image.open(place) as opened:
                mask = opened.convert("RGB")
        except BROKEN_IMAGE as error:
            raise BrokenSample(f"{place} cannot be read as a mask ({error}).") from error
        if mask.size != image.size:
            raise BrokenSample(f"{place} has {mask.size} pixels, its image {image.size}: it is another image's mask.")
        if self.classes is not None:
            found = class_ids(mask).unique().tolist()
            unknown = [number for number in found if number != IGNORED and number > len(self.classes)]
            if unknown:
                raise BrokenSample(f"{place} holds class {unknown[0]}, but there are {len(self.classes)} classes.")
        return mask


class MaskedImages(ImageDataset):
    """Images, their masks in the same crop, and their classes.

    Args:
        reader: A map-style reader of `timm.data.readers`.
        transform: Arguments of `timm.data.create_transform`, for evaluation. The mask takes the same steps with the
            nearest pixel in place of interpolation, up to the one that makes the image a tensor.
        mask: Makes or reads the mask of an image: ImageNet-S's ids in red and green. None ignores every pixel.
        on_error: See `TolerantDataset`.
    """

    def __init__(
        self, reader: Any, transform: Mapping[str, Any] | None, mask: Mask | None, *, on_error: str = "raise"
    ) -> None:
        super().__init__(reader, make_transform(transform, False), on_error=on_error)
        self.mask = mask
        self._mask_steps = _geometry(make_transform({**(transform or {}), "interpolation": "nearest"}, False))

    def name(self, index: int) -> str:
        """``<class>/<file>``, the same wherever the data lies."""
        return "/".join(Path(self.describe(index)).parts[-2:])

    def picture(self, index: int) -> Image.Image:
        """The image in its crop, before normalisation.

        Raises:
            BrokenSample: It cannot be read.
        """
        image = self.opened(index)[0]
        for step in _geometry(self.transform):
            image = step(image)
        return image

    def read(self, index: int) -> dict[str, Any]:
        """``inputs`` (C, H, W), ``mask`` (H, W) int64 class ids, ``targets``: the image's class index.

        Raises:
            BrokenSample: The image or its mask cannot be read.
        """
        image, target = self.opened(index)
        inputs = self.transform(image)
        if self.mask is None:
            return {"inputs": inputs, "mask": torch.full(inputs.shape[-2:], IGNORED), "targets": target}
        mask = self.mask(Path(self.describe(index)), image)
        for step in self._mask_steps:
            mask = step(mask)
        return {"inputs": inputs, "mask": class_ids(mask), "targets": target}

    def placeholder(self, index: int) -> dict[str, Any]:
        """A black image that is all ignored."""
        inputs = self.transform(Image.new("RGB", (256, 256)))
        return {"inputs": inputs, "mask": torch.full(inputs.shape[-2:], IGNORED), "targets": UNREADABLE}


def imagenet_s(
    root: str | os.PathLike[str],
    transform: Mapping[str, Any] | None = None,
    *,
    split: str = SPLIT,
    on_error: str = "raise",
) -> MaskedImages:
    """ImageNet-S, or data of your own in its layout.

    Args:
        root: The folder with ``validation/`` and ``validation-segmentation/``.
        transform: See `MaskedImages`.
        split: Name of the part.
        on_error: See `TolerantDataset`; an image without a usable mask is broken.

    Raises:
        ValueError: A folder is missing or empty, or the folders of images and masks are of different classes.
    """
    base = Path(root).expanduser()
    images, masks = base / split, base / f"{split}{MASKS}"
    for folder, what in ((images, "images"), (masks, "masks")):
        if not folder.is_dir():
            raise ValueError(f"{base} holds no {folder.name}/ with ImageNet-S's {what}: name the folder that does.")
    wnids, others = (sorted(p.name for p in f.iterdir() if p.is_dir() and p.name[0] != ".") for f in (images, masks))
    if missing := sorted(set(wnids) - set(others)):
        raise ValueError(f"{masks} lacks classes that {images} has: {', '.join(missing[:5])}.")
    reader = folder_reader(images, {name: number for number, name in enumerate(wnids)})
    return MaskedImages(reader, transform, SegmentationMasks(masks, others), on_error=on_error)


def _geometry(transform: Any) -> list[Any]:
    """The steps of a timm evaluation transform that move pixels."""
    steps = []
    for step in transform.transforms:
        if type(step).__name__ in ("ToTensor", "MaybeToTensor", "PILToTensor", "MaybePILToTensor"):
            return steps
        steps.append(step)
    raise AssertionError("timm's transform makes no tensor")
