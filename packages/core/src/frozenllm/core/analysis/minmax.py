"""Scaling of each sample's activations to the range from 0 to 1."""

from __future__ import annotations

import torch
from torch import Tensor


def min_max(values: Tensor, mask: Tensor | None = None) -> Tensor:
    """Scale each sample to the range from 0 (its smallest value) to 1 (its largest), so that one threshold fits all.

    Args:
        values: (B, N), finite.
        mask: (B, N) bool, False = padding, which takes no part in the range and comes out as 0.

    Returns:
        (B, N) in float32; 0 throughout a sample whose values are all equal.

    Raises:
        ValueError: A shape or dtype does not fit.
    """
    if values.ndim != 2:
        raise ValueError(f"values must have shape (batch, tokens), got {tuple(values.shape)}.")
    check_mask(mask, values)
    values = values.float()
    low, high = values, values
    if mask is not None:
        low, high = values.masked_fill(~mask, torch.inf), values.masked_fill(~mask, -torch.inf)
    low, high = low.amin(dim=1, keepdim=True), high.amax(dim=1, keepdim=True)
    scaled = torch.where(high > low, (values - low) / (high - low), 0.0)
    return scaled if mask is None else scaled.masked_fill(~mask, 0.0)


def check_mask(mask: Tensor | None, tokens: Tensor) -> None:
    """Raise where a mask is not bool of shape (B, N), the first two axes of ``tokens``."""
    if mask is not None and (mask.shape != tokens.shape[:2] or mask.dtype != torch.bool):
        raise ValueError(
            f"mask must be bool of shape {tuple(tokens.shape[:2])}, got {mask.dtype} of shape {tuple(mask.shape)}."
        )
