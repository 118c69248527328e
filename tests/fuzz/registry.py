"""Where readers of outside files are registered: a valid file to damage, and what an accepted one must satisfy."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from harness import Reader

READERS: list[Reader] = []


def reader(name: str, form: str = "bytes") -> Callable[[type], type]:
    """Register a class with static ``write``, ``read`` and ``check``."""

    def register(cls: type) -> type:
        READERS.append(Reader(name, cls.write, cls.read, cls.check, form))
        return cls

    return register


def finite(arrays: Iterable[Any]) -> None:
    """All numbers of tensors or arrays are finite."""
    for array in arrays:
        assert torch.as_tensor(array if torch.is_tensor(array) else np.asarray(array)).isfinite().all()
