"""A toy ImageNet-S in the real one's layout: handwritten digits in cluttered scenes, with their true masks.

A digit of scikit-learn's (8 x 8 pixels, real handwriting) lies enlarged, at a random place and in a random light
colour, on a textured ground among bars, discs and rings that are as light as the digit: brightness alone does not tell
the object. Its class is the label; its ink is the mask; pixels at the edge of the ink are ignored, as the real masks
leave out what is unclear. Written as ``train/<class>/*.JPEG`` (an ImageFolder to train on),
``validation/<class>/*.JPEG`` and ``validation-segmentation/<class>/*.png``; handwriting of the training images never
appears in validation.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from frozenllm.core.toy_folder import named_root, write_once
from frozenllm.vision2d.data import ImageDataset, image_folder
from frozenllm.vision2d.imagenet_s import IGNORED, MASKS, SPLIT, mask_of_ids

SIZE = 32
DIGIT = 20
"""Width of a digit in pixels."""
STEP = 4
"""Digits lie at multiples of it, which makes a small task of one that would take a small host hours to learn."""
OTHERS = 3
"""Shapes beside the digit, as light as it is."""
VIEWS = 4
"""Training images made of each digit."""
VAL_SHARE = 0.2


def write_toy_imagenet_s(
    root: str | os.PathLike[str] | None = None, *, views: int = VIEWS, limit: int | None = None, seed: int = 0
) -> Path:
    """Write the toy data, once.

    Args:
        root: The folder to write; None for one in the user's cache.
        views: Training images made of each digit.
        limit: At most so many digits of each class, for tests; None for all (1797 in ten classes).
        seed: Of the choice of validation digits and of all scenes.

    Returns:
        The folder, with ``train/``, ``validation/`` and ``validation-segmentation/`` in it.

    Raises:
        ValueError: The folder holds something else.
    """
    manifest = {"data": "toy ImageNet-S", "format": 4, "size": SIZE, "views": views, "limit": limit, "seed": seed}
    return write_once(root, "imagenet_s", manifest, lambda folder: _write(folder, views, limit, seed))


def toy_imagenet_s(root: str | None, split: str, **kwargs: Any) -> ImageDataset:
    """The toy data's images as an `image_folder`, written first where they are missing.

    Args:
        root: The folder; None for one in the user's cache.
        split: ``"train"`` or ``"validation"``.
        **kwargs: See `image_folder`.
    """
    return image_folder(str(write_toy_imagenet_s(named_root(root))), split, **kwargs)


def wnid(label: int) -> str:
    """Name of a digit's folder, in the form of ImageNet's."""
    return f"n{label:08d}"


def _write(root: Path, views: int, limit: int | None, seed: int) -> None:
    from sklearn.datasets import load_digits  # slow to import, and needed once

    digits = load_digits()
    random = np.random.default_rng(seed)
    for label in range(10):
        members = random.permutation(np.flatnonzero(digits.target == label))[:limit]
        held_out = max(1, round(VAL_SHARE * len(members)))
        for folder in ("train", SPLIT, SPLIT + MASKS):
            (root / folder / wnid(label)).mkdir(parents=True)
        for place, index in enumerate(members.tolist()):
            for view in range(1 if place < held_out else views):
                image, ids = _scene(digits.images[index], label, random)
                name = f"{index:04d}_{view}"
                part = SPLIT if place < held_out else "train"
                # 4:4:4, so that a mask's edge is the edge in the picture.
                image.save(root / part / wnid(label) / f"{name}.JPEG", quality=92, subsampling=0)
                if part == SPLIT:
                    mask_of_ids(ids).save(root / (SPLIT + MASKS) / wnid(label) / f"{name}.png")


def _scene(pixels: np.ndarray, label: int, random: np.random.Generator) -> tuple[Image.Image, np.ndarray]:
    """A picture of a digit (8, 8; ink from 0 to 16) and the class ids of its pixels."""
    coverage = Image.fromarray(np.round(pixels * (255 / 16)).astype(np.uint8)).resize((DIGIT, DIGIT), Image.BICUBIC)
    alpha = np.zeros((SIZE, SIZE), dtype=np.float64)
    top, left = (STEP * random.integers(0, (SIZE - DIGIT) // STEP + 1, 2)).tolist()
    alpha[top : top + DIGIT, left : left + DIGIT] = np.asarray(coverage) / 255
    picture = _ground(random)
    for cover in (*_others(top, left, random), alpha):
        picture = picture * (1 - cover[..., None]) + random.uniform(0.8, 1.0, 3) * cover[..., None]
    ids = np.where(alpha > 0.5, label + 1, np.where(alpha > 0.25, IGNORED, 0))
    return Image.fromarray(np.round(picture * 255).astype(np.uint8)), ids


def _ground(random: np.random.Generator) -> np.ndarray:
    """(SIZE, SIZE, 3) from 0 to about 0.4: coarse and fine noise."""
    coarse = Image.fromarray(random.integers(10, 80, (5, 5, 3), dtype=np.uint8)).resize((SIZE, SIZE), Image.BICUBIC)
    return np.clip(np.asarray(coarse) / 255 + random.normal(0, 0.04, (SIZE, SIZE, 1)), 0, 1)


def _others(top: int, left: int, random: np.random.Generator) -> list[np.ndarray]:
    """Coverage (SIZE, SIZE) of each of the shapes beside the digit; they lie on the grid as it does."""
    side = 2 * STEP
    places = [
        (y, x)
        for y in range(0, SIZE - side + 1, STEP)
        for x in range(0, SIZE - side + 1, STEP)
        if y + side <= top or y >= top + DIGIT or x + side <= left or x >= left + DIGIT
    ]
    covers = []
    for place in random.choice(len(places), OTHERS, replace=False).tolist():
        y, x = places[place]
        shape = Image.new("L", (4 * side, 4 * side))  # drawn large, for smooth edges
        draw, last = ImageDraw.Draw(shape), 4 * side - 1
        kind = int(random.integers(5))
        if kind == 0:
            draw.ellipse((4, 4, last - 4, last - 4), fill=255)
        elif kind == 1:
            draw.ellipse((0, 0, last, last), outline=255, width=10)
        else:
            ends = [(0, last / 2, last, last / 2), (last / 2, 0, last / 2, last), (0, 0, last, last)][kind - 2]
            draw.line(ends, fill=255, width=13)
        cover = np.zeros((SIZE, SIZE), dtype=np.float64)
        cover[y : y + side, x : x + side] = np.asarray(shape.resize((side, side), Image.BICUBIC)) / 255
        covers.append(cover)
    return covers
