"""Toy data in ImageNet's on-disk format: scikit-learn's handwritten digits as an ImageFolder.

The 1797 images are real (UCI's optical recognition of handwritten digits, 8 x 8 pixels, 10 classes). They are enlarged
and written as ``<root>/{train,val}/<digit>/<index>.png``, so that the real loader reads them.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

MANIFEST = "digits.json"
VAL_SHARE = 0.2


def default_root(size: int = 32, seed: int = 0) -> Path:
    """Where the digits go when no folder is named: below ``$XDG_CACHE_HOME`` or ``~/.cache``."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "frozenllm" / "toy" / f"digits-{size}px-seed{seed}"


def write_digits(root: str | os.PathLike[str] | None = None, *, size: int = 32, seed: int = 0) -> Path:
    """Writes the digits as an ImageFolder, once.

    A fifth of every class is held out, chosen by ``seed``. The folder appears whole or not at all; an existing one
    with the same settings is left as it is, also when several processes ask for it at the same time.

    Args:
        root: The folder to write; None for `default_root`.
        size: Width and height of the images in pixels.
        seed: Chooses the held-out images.

    Returns:
        The folder, with ``train/`` and ``val/`` in it.

    Raises:
        ValueError: The folder holds something else.
    """
    root = Path(root) if root is not None else default_root(size, seed)
    manifest = {"data": "scikit-learn digits", "format": 1, "size": size, "seed": seed, "val_share": VAL_SHARE}
    if _is_written(root, manifest):
        return root
    root.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{root.name}-", dir=root.parent))
    try:
        _write_images(scratch, size, seed)
        (scratch / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n")
        scratch.chmod(0o755)  # mkdtemp makes folders that only their owner can read
        try:
            scratch.rename(root)
        except OSError:  # the folder is there and not empty: another process was faster, or it holds something else
            if not _is_written(root, manifest):
                raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return root


def _is_written(root: Path, manifest: dict[str, object]) -> bool:
    if not root.exists():
        return False
    try:
        found = json.loads((root / MANIFEST).read_text())
    except (OSError, ValueError):
        found = None
    if found == manifest:
        return True
    if found is None and root.is_dir() and not any(root.iterdir()):
        return False
    held = "digits written with other settings" if found is not None else "something else than the toy digits"
    raise ValueError(f"{root} holds {held}: name another folder, or remove this one.")


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
