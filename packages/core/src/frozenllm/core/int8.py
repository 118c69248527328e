"""Weights as 8-bit integers with one scale per row: a quarter of float32's memory."""

from __future__ import annotations

import torch
from torch import Tensor

LARGEST = 127


def quantize_rows(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Round a weight to 8-bit integers, symmetrically around zero.

    Args:
        weight: (rows, columns).

    Returns:
        Integers (rows, columns) and scales (rows, 1) in the weight's dtype; their product is within half a scale of
        the weight.
    """
    wide = weight.float()
    # The scale is rounded to the weight's dtype first, so that the integers fit the scale that is kept.
    scale = (wide.abs().amax(dim=1, keepdim=True) / LARGEST).to(weight.dtype)
    divisor = scale.float().clamp_min(torch.finfo(torch.float32).tiny)  # a row of zeros stays one
    return (wide / divisor).round().clamp(-LARGEST, LARGEST).to(torch.int8), scale


def dequantize_rows(integers: Tensor, scale: Tensor) -> Tensor:
    """Inverse of `quantize_rows`, in the dtype of the scales."""
    return integers.to(scale.dtype).mul_(scale)
