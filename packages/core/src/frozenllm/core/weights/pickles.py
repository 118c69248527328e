"""Reading ``.pth`` and ``.bin`` files without ever running what they hold."""

from __future__ import annotations

import argparse
import os
import pickle
import warnings
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch

_ZIP_MAGIC = b"PK\x03\x04"


def load_pickle(path: str | os.PathLike[str], *, allow_namespace: bool = False) -> Any:
    """Read a file that ``torch.save`` wrote, tensors memory-mapped and on the CPU.

    Args:
        path: The file.
        allow_namespace: Also accept `argparse.Namespace`, a plain holder of values that the official checkpoints of
            the paper contain. Nothing else beyond tensors and plain Python values is ever accepted.

    Returns:
        What the file holds. Tensors are views of the mapped file; a file in the format before torch 1.6 cannot be
        mapped and is read whole, with a warning.

    Raises:
        ValueError: The file is missing, damaged, or holds Python objects that could run code; they are not run.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            mapped = file.read(4) == _ZIP_MAGIC
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror}).") from error
    if not mapped:
        size = path.stat().st_size / 1e9
        warnings.warn(
            f"{path}: is in the format before torch 1.6, which cannot be memory-mapped: reading all {size:.2f} GB.",
            stacklevel=2,
        )
    allowed = torch.serialization.safe_globals([argparse.Namespace]) if allow_namespace else nullcontext()
    try:
        with allowed, torch.device("cpu"):
            return torch.load(path, map_location="cpu", mmap=mapped, weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(f"{path}: refused, {_what_was_refused(str(error))}.") from error
    except Exception as error:  # damaged pickles end in errors of every kind
        raise ValueError(f"{path}: truncated or not a file that torch.save wrote ({_first_line(error)}).") from error


def _what_was_refused(message: str) -> str:
    """torch's message spans many lines and advises unsafe ways out; keep what it found."""
    for marker in ("Unsupported global: GLOBAL ", "Unsupported class ", "Trying to load unsupported GLOBAL "):
        if marker in message:
            found = message.split(marker, 1)[1].split()[0]
            return f"it holds Python objects beyond tensors ({found}) that could run code"
    return "it is damaged or holds Python objects beyond tensors"


def _first_line(error: BaseException) -> str:
    return (str(error) or type(error).__name__).splitlines()[0][:200]
