"""Toy data in ImageNet's on-disk format: scikit-learn's handwritten digits as an ImageFolder.

The 1797 images are real (UCI's optical recognition of handwritten digits, 8 x 8 pixels, 10 classes). They are enlarged
and written as ``<root>/{train,val}/<digit>/<index>.png``, so that the real loader reads them.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from PIL import Image

from frozenllm.core.toy_folder import write_once

VAL_SHARE = 0.2


def write_digits(root: str | os.PathLike[str] | None = None, *, size: int = 32, seed: int = 0) -> Path:
    """Writes the digits as an ImageFolder, once.

    A fifth of every class is held out, chosen by ``seed``. The folder appears whole or not at all; an existing one
    with the same settings is left as it is, also when several processes ask for it at the same time.

    Args:
        root: The folder to write; None for one in the user's cache.
        size: Width and height of the images in pixels.
        seed: Chooses the held-out images.

    Returns:
        The folder, with ``train/`` and ``val/`` in it.

    Raises:
        ValueError: The folder holds something else.
    """
    manifest = {"data": "scikit-learn digits", "format": 1, "size": size, "seed": seed, "val_share": VAL_SHARE}
    return write_once(root, "digits", manifest, lambda folder: _write_images(folder, size, seed))


def _write_images(root: Path, size: int, seed: int) -> None:
    from sklearn.datasets import load_digits  # slow to import, and needed once

    digits = load_digits()
    pixels = np.round(digits.images * (255 / 16)).astype(np.uint8)  # the source counts ink from 0 to 16
    order = np.random.default_rng(seed)
    for label in range(10):
        members = np.flatnonzero(digits.target == label)
        held_out = set(order.permutation(members)[: round(VAL_SHARE * len(members))].tolist())
        for split in ("train", "val"):
            (root / split / str(label)).mkdir(parents=True)
        for index in members.tolist():
            image = Image.fromarray(pixels[index]).resize((size, size), Image.Resampling.BICUBIC)
            image.save(root / ("val" if index in held_out else "train") / str(label) / f"{index:04d}.png")
