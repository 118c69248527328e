"""Random numbers as a function of where the run is, so that a resumed run draws the same ones."""

from __future__ import annotations

import hashlib
import random

import numpy as np
import torch


def derive_seed(*parts: int | str) -> int:
    """A 64-bit seed that depends on every part, such as (run's seed, "sample", epoch, index)."""
    text = "/".join(map(str, parts))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def seed_everything(seed: int) -> None:
    """Seed the global generators of torch (all devices), numpy and random.

    Args:
        seed: 64 bits; numpy takes the lower 32.
    """
    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)
    random.seed(seed)


def seed_host(seed: int) -> None:
    """Like `seed_everything` for the CPU alone: cheap enough to be called once per sample."""
    torch.default_generator.manual_seed(seed)
    np.random.seed(seed % 2**32)
    random.seed(seed)
