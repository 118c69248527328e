"""What several commands share: help texts, devices, sizes."""

from __future__ import annotations

import torch

SOURCE_HELP = (
    "a folder in transformers' layout, a folder with Meta's consolidated.*.pth, a block file, a GGUF file, a "
    "repository on the hub (org/name or org/name@revision), or the word bundled"
)
LAYERS_HELP = "indices of the layers, negative ones from the end (default: the last one; of a block file, all)"


def parse_device(name: str) -> torch.device:
    """A device by its name.

    Raises:
        ValueError: torch does not know it, or this machine has none.
    """
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"Device {name!r} cannot be used: {str(error).splitlines()[0]}") from error
    return device


def megabytes(size: int) -> str:
    """A size in bytes as text."""
    return f"{size / 1e6:.1f} MB"
