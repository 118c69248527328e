"""The data sets of captions that the training engine reads: captions with negatives, and galleries.

Random choices come from the global generators, which the engine seeds for each sample.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from frozenllm.core.training import UNREADABLE, TolerantDataset
from frozenllm.vqa.data.flickr30k import flickr30k_images
from frozenllm.vqa.data.records import CaptionedImage
from frozenllm.vqa.images import clip_transform
from frozenllm.vqa.text import TextTokens, tokenizer_source


class CaptionDataset(TolerantDataset):
    """Captions with their images, each beside captions of other images: training data for retrieval.

    A sample's ``input_ids`` are (1 + negatives, L), the image's own caption first; its target is the image's number,
    by which captions of the same image are told from negatives.

    Args:
        images: The captioned images.
        tokens: Makes token ids of captions.
        image_size: Pixels of the images.
        negatives: Captions of other images, drawn anew each time (METER: 15).
        randaug: Augment the images.
        on_error: See `TolerantDataset`.

    Raises:
        ValueError: There are no other images to draw from.
    """

    def __init__(
        self,
        images: Sequence[CaptionedImage],
        tokens: TextTokens,
        *,
        image_size: int,
        negatives: int = 15,
        randaug: bool = False,
        on_error: str = "raise",
    ) -> None:
        if len(images) < 2 or negatives < 1:
            raise ValueError(f"Retrieval needs two images and a negative, not {len(images)} and {negatives}.")
        self.images = list(images)
        self.pairs = [(place, text) for place, image in enumerate(images) for text in image.captions]
        super().__init__(len(self.pairs), train=True, on_error=on_error)
        self.tokens = tokens
        self.negatives = negatives
        self.transform = clip_transform(image_size, randaug=randaug)

    def read(self, index: int) -> dict[str, Any]:
        """The sample.

        Raises:
            BrokenSample: Its image cannot be read.
        """
        place, text = self.pairs[index]
        image = self.transform(self.images[place].image.open())
        texts = [text]
        while len(texts) <= self.negatives:
            other, negative = self.pairs[random.randrange(len(self.pairs))]
            if other != place:
                texts.append(negative)
        ids, masks = zip(*(self.tokens(text) for text in texts), strict=True)
        inputs = {"pixel_values": image, "input_ids": torch.stack(ids), "attention_mask": torch.stack(masks)}
        return {"inputs": inputs, "targets": place}

    def describe(self, index: int) -> str:
        """The image."""
        return self.images[self.pairs[index][0]].image.name


class GalleryDataset(TolerantDataset):
    """Images, each of which meets all captions of the gallery: evaluation data for retrieval.

    A sample's ``gallery_ids`` (G, L) are the same for all; its target is the image's number, or `UNREADABLE`; its
    ``own`` the range of the image's captions in the gallery.

    Args:
        images: The captioned images.
        tokens: Makes token ids of captions.
        image_size: Pixels of the images.
        on_error: See `TolerantDataset`.
    """

    def __init__(
        self, images: Sequence[CaptionedImage], tokens: TextTokens, *, image_size: int, on_error: str = "raise"
    ) -> None:
        super().__init__(len(images), on_error=on_error)
        self.images = list(images)
        self.image_size = image_size
        self.transform = clip_transform(image_size)
        ids, masks = zip(*(tokens(text) for image in images for text in image.captions), strict=True)
        self.gallery_ids, self.gallery_mask = torch.stack(ids), torch.stack(masks)
        ends = torch.tensor([len(image.captions) for image in images]).cumsum(0).tolist()
        self.own = [(end - len(image.captions), end) for end, image in zip(ends, images, strict=True)]

    def read(self, index: int) -> dict[str, Any]:
        """The sample.

        Raises:
            BrokenSample: Its image cannot be read.
        """
        return self._sample(index, self.transform(self.images[index].image.open()), index)

    def describe(self, index: int) -> str:
        """The image."""
        return self.images[index].image.name

    def placeholder(self, index: int) -> dict[str, Any]:
        """A black image with the target `UNREADABLE`."""
        return self._sample(index, torch.zeros(3, self.image_size, self.image_size), UNREADABLE)

    def _sample(self, index: int, image: Tensor, target: int) -> dict[str, Any]:
        gallery = {"gallery_ids": self.gallery_ids, "gallery_mask": self.gallery_mask}
        return {"inputs": {"pixel_values": image, **gallery}, "targets": target, "own": self.own[index]}


def flickr30k(
    root: str | None,
    part: str,
    *,
    tokenizer: str,
    max_text_len: int,
    image_size: int,
    train: bool = False,
    randaug: bool = False,
    negatives: int = 15,
    on_error: str = "raise",
    limit: int | None = None,
    **options: Any,
) -> CaptionDataset | GalleryDataset:
    """Flickr30k's captions as a config describes them: training pairs, or a gallery.

    Args:
        root: The folder, or ``"toy"``.
        part: ``"train"``, ``"val"`` or ``"test"``.
        tokenizer: A folder or hub repository, or ``"toy"``.
        max_text_len: Tokens of a caption.
        image_size: Pixels of the images.
        train: Training pairs; False for a gallery.
        randaug: Augment the training images.
        negatives: See `CaptionDataset`.
        on_error: See `TolerantDataset`.
        limit: Take only so many images.
        **options: See `flickr30k_images`.
    """
    images = flickr30k_images(root, part, **options)[:limit]
    tokens = TextTokens(tokenizer_source(tokenizer), max_text_len)
    if train:
        return CaptionDataset(
            images, tokens, image_size=image_size, negatives=negatives, randaug=randaug, on_error=on_error
        )
    return GalleryDataset(images, tokens, image_size=image_size, on_error=on_error)
