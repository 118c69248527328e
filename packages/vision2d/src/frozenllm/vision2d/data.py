"""Image classification data through timm: readers, transforms, mixup; and what happens to images that do not open.

Random choices come from the global generators of torch, numpy and random, which the training engine seeds from (seed,
epoch, sample) before every item.
"""

from __future__ import annotations

import logging
import struct
from collections.abc import Mapping
from typing import Any

import timm.data
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from frozenllm.vision2d.sources import open_reader
from frozenllm.vision2d.toy import write_digits

logger = logging.getLogger(__name__)

UNREADABLE = -1
"""Target of an unreadable image in evaluation; `frozenllm.vision2d.metrics.ImageAccuracy` leaves it out."""

# What Pillow and its codecs raise on damaged files.
_BROKEN = (OSError, EOFError, SyntaxError, ValueError, struct.error, Image.DecompressionBombError)
_MAX_REPLACEMENTS = 100


class ImageDataset(Dataset):
    """Images and class indices of a timm reader.

    Args:
        reader: A map-style reader of `timm.data.readers`.
        transform: Turns an RGB image into a tensor; None hands out the image.
        train: Training data: an unreadable image is replaced by the next readable one, so that batches keep their
            size. In evaluation its target is `UNREADABLE` instead.
        on_error: ``"raise"`` or ``"skip"``, for images that cannot be read. Skipped files are logged once each and
            counted in `num_unreadable`.
        num_classes: Upper bound for the class indices, checked where the reader knows its classes; None to allow any.

    Raises:
        ValueError: An option is unknown, or there are more classes than ``num_classes``.
    """

    def __init__(
        self,
        reader: Any,
        transform: Any = None,
        *,
        train: bool = False,
        on_error: str = "raise",
        num_classes: int | None = None,
    ) -> None:
        if on_error not in ("raise", "skip"):
            raise ValueError(f"on_error must be raise or skip, not {on_error!r}.")
        self.reader = reader
        self.transform = transform
        self.train = train
        self.on_error = on_error
        classes = getattr(reader, "class_to_idx", None)
        if num_classes is not None and classes and max(classes.values()) >= num_classes:
            raise ValueError(
                f"{getattr(reader, 'root', 'The data')} has {max(classes.values()) + 1} classes, but num_classes is "
                f"{num_classes}."
            )
        # Shared with the loader's workers, each of which writes only what it finds.
        self._unreadable = torch.zeros(len(reader), dtype=torch.bool).share_memory_()

    def __len__(self) -> int:
        return len(self.reader)

    @property
    def num_unreadable(self) -> int:
        """Images found unreadable so far, over all workers of this process."""
        return int(self._unreadable.sum())

    def __getitem__(self, index: int) -> tuple[Any, int]:
        """The transformed image and its class index.

        Raises:
            ValueError: The image cannot be read, and the policy is to raise; or too many in a row cannot.
        """
        for step in range(_MAX_REPLACEMENTS if self.train else 1):
            opened = self._open((index + step) % len(self))
            if opened is not None:
                image, target = opened
                return self._transformed(image), target
        if self.train:
            raise ValueError(f"{_MAX_REPLACEMENTS} images in a row cannot be read, from {self._name(index)} on.")
        return self._transformed(Image.new("RGB", (256, 256))), UNREADABLE

    def _open(self, index: int) -> tuple[Image.Image, int] | None:
        try:
            file, target = self.reader[index][:2]
            if isinstance(file, Image.Image):  # readers of array formats hand out images
                return file.convert("RGB"), int(target)
            with file:
                return Image.open(file).convert("RGB"), int(target)
        except _BROKEN as error:
            if self.on_error == "raise":
                raise ValueError(
                    f"{self._name(index)} cannot be read as an image ({error}); repair or remove it, or set on_error "
                    "to skip."
                ) from error
            if not self._unreadable[index]:
                self._unreadable[index] = True
                logger.warning("Skipped %s: it cannot be read as an image (%s).", self._name(index), error)
            return None

    def _transformed(self, image: Image.Image) -> Any:
        return image if self.transform is None else self.transform(image)

    def _name(self, index: int) -> str:
        return str(self.reader.filename(index, absolute=True))


def image_folder(
    root: str | None,
    split: str,
    *,
    source: str | None = None,
    train: bool = False,
    transform: Mapping[str, Any] | None = None,
    on_error: str = "raise",
    num_classes: int | None = None,
    input_key: str | None = None,
    target_key: str | None = None,
) -> ImageDataset:
    """Images in ``<root>/<split>/<class>/*``, or in ``<root>/<split>.tar`` with the same folders inside.

    Classes are numbered in the sorted order of the training part's names, also for a validation part that lacks some of
    them. With a ``source``, the images are those of a Hugging Face data set or of WebDataset shards.

    Args:
        root: The data set's folder.
        split: Name of the part.
        source: See `frozenllm.vision2d.sources.open_reader`.
        train: Whether to replace unreadable images, and to augment.
        transform: Arguments of `timm.data.create_transform`.
        on_error: See `ImageDataset`.
        num_classes: See `ImageDataset`.
        input_key: Name of the image in a sample, for a ``source``; None for timm's.
        target_key: Name of the class in a sample, for a ``source``; None for timm's.

    Raises:
        ValueError: The data is missing or empty, or a class of this part is not a class of the training part.
        ImportError: The source needs a library that is not installed.
    """
    reader = open_reader(
        root, split, source=source, num_classes=num_classes, input_key=input_key, target_key=target_key
    )
    return ImageDataset(
        reader, make_transform(transform, train), train=train, on_error=on_error, num_classes=num_classes
    )


def digits(root: str | None, split: str, *, size: int = 32, **kwargs: Any) -> ImageDataset:
    """The toy digits as an `image_folder`, written first where they are missing.

    Args:
        root: The folder; None for one in the user's cache.
        split: ``"train"`` or ``"val"``.
        size: Width of the images in pixels.
        **kwargs: See `image_folder`.
    """
    return image_folder(str(write_digits(root, size=size)), split, **kwargs)


def make_transform(options: Mapping[str, Any] | None, train: bool) -> Any:
    """timm's transform from its arguments by name.

    Raises:
        ValueError: timm knows no such argument.
    """
    chosen = {name: tuple(value) if isinstance(value, list) else value for name, value in (options or {}).items()}
    try:
        return timm.data.create_transform(is_training=train, **chosen)
    except TypeError as error:
        raise ValueError(f"The data's transform is not one that timm can build: {error}.") from error


class Mixup(timm.data.Mixup):
    """timm's mixup and cutmix as a batch transform; its arguments.

    Labels become probabilities, smoothed by ``label_smoothing``.
    """

    def __call__(self, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Mix every image with another of the batch.

        Args:
            inputs: Images, ``(B, C, H, W)``; changed in place.
            targets: Class indices, ``(B,)``.

        Returns:
            The images and the targets, ``(B, num_classes)``.

        Raises:
            ValueError: The batch is odd.
        """
        if len(inputs) % 2:
            raise ValueError(f"Mixup pairs images: data.batch_size must be even, not {len(inputs)}.")
        return super().__call__(inputs, targets)
