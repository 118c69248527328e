"""Weights as 4-bit integers, two to a byte, with one scale for every group of columns: an eighth of float32's memory.

The scheme is that of llama.cpp's Q4_0: the entry of largest magnitude becomes -8, so a file in that format is stored
without loss.
"""

from __future__ import annotations

import torch
from torch import Tensor

GROUP = 32
_LEAST, _MOST = -8, 7


def group_size(columns: int) -> int:
    """Columns that share a scale: the largest number up to 32 that divides them.

    Raises:
        ValueError: The number of columns is odd.
    """
    if columns % 2:
        raise ValueError(f'quantize="int4" stores two columns in a byte, but a projection has {columns}: use "int8".')
    return next(size for size in range(min(GROUP, columns), 0, -1) if columns % size == 0)


def quantize_groups(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Round a weight to 4-bit integers.

    Args:
        weight: (rows, columns), the number of columns even.

    Returns:
        Bytes (rows, columns / 2), which hold column j below column j + columns / 2; and scales (rows, groups) in the
        weight's dtype, of either sign. What they stand for is within half a scale of the weight; within a whole one at
        entries whose sign is not that of their group's largest and whose magnitude is within a sixteenth of its.
    """
    rows, columns = weight.shape
    wide = weight.float().view(rows, -1, group_size(columns))
    largest = wide.gather(2, wide.abs().argmax(dim=2, keepdim=True))
    # Rounded to the weight's dtype first, so that the integers fit the scale that is kept.
    scale = (largest / _LEAST).to(weight.dtype)
    divisor = torch.where(scale == 0, 1.0, scale.float())  # a group of zeros stays one
    integers = (wide / divisor).round().clamp(_LEAST, _MOST).to(torch.int8).sub_(_LEAST).view(rows, columns)
    low, high = integers.to(torch.uint8).chunk(2, dim=1)
    return low | (high << 4), scale.squeeze(2)


def dequantize_groups(packed: Tensor, scale: Tensor) -> Tensor:
    """Inverse of `quantize_groups`, (rows, columns) in the dtype of the scales."""
    integers = torch.cat([packed & 15, packed >> 4], dim=1).to(scale.dtype).add_(_LEAST)
    return integers.view(*scale.shape, -1).mul_(scale[..., None]).view(integers.shape)
