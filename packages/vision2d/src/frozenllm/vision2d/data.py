"""Image classification data through timm: readers, transforms, mixup; and what happens to images that do not open.

Random choices come from the global generators of torch, numpy and random, which the training engine seeds from (seed,
epoch, sample) before every item.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import Any

import timm.data
from PIL import Image
from torch import Tensor

from frozenllm.core.toy_folder import named_root
from frozenllm.core.training import UNREADABLE, BrokenSample, TolerantDataset
from frozenllm.vision2d.sources import open_reader
from frozenllm.vision2d.toy import write_digits

BROKEN_IMAGE = (OSError, EOFError, SyntaxError, ValueError, struct.error, Image.DecompressionBombError)
"""What Pillow and its codecs raise on damaged files."""


class ImageDataset(TolerantDataset):
    """Images and class indices of a timm reader.

    Args:
        reader: A map-style reader of `timm.data.readers`.
        transform: Turns an RGB image into a tensor; None hands out the image.
        train: See `TolerantDataset`.
        on_error: See `TolerantDataset`.
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
        super().__init__(len(reader), train=train, on_error=on_error)
        self.reader = reader
        self.transform = transform
        classes = getattr(reader, "class_to_idx", None)
        if num_classes is not None and classes and max(classes.values()) >= num_classes:
            raise ValueError(
                f"{getattr(reader, 'root', 'The data')} has {max(classes.values()) + 1} classes, but num_classes is "
                f"{num_classes}."
            )

    def read(self, index: int) -> tuple[Any, int]:
        """The transformed image and its class index.

        Raises:
            BrokenSample: The image cannot be read.
        """
        image, target = self.opened(index)
        return self._transformed(image), target

    def opened(self, index: int) -> tuple[Image.Image, int]:
        """The RGB image as it is, and its class index.

        Raises:
            BrokenSample: The image cannot be read.
        """
        try:
            return self._open(index)
        except BROKEN_IMAGE as error:
            name = self.reader.filename(index, absolute=True)
            raise BrokenSample(f"{name} cannot be read as an image ({error}).") from error

    def describe(self, index: int) -> str:
        """The image's file."""
        return str(self.reader.filename(index, absolute=True))

    def placeholder(self, index: int) -> tuple[Any, int]:
        """A black image with the target `UNREADABLE`."""
        return self._transformed(Image.new("RGB", (256, 256))), UNREADABLE

    def _open(self, index: int) -> tuple[Image.Image, int]:
        file, target = self.reader[index][:2]
        if isinstance(file, Image.Image):  # readers of array formats hand out images
            return file.convert("RGB"), int(target)
        with file:
            return Image.open(file).convert("RGB"), int(target)

    def _transformed(self, image: Image.Image) -> Any:
        return image if self.transform is None else self.transform(image)


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
    return image_folder(str(write_digits(named_root(root), size=size)), split, **kwargs)


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
