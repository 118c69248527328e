"""Frozen weights stored as 8-bit integers with one scale per row: a quarter of float32's memory.

Products unpack some rows at a time, and again in the backward pass: no unpacked copy of a weight is ever held. Tensor
subclasses such as torchao's cannot take the place of the two plain buffers: as of torchao 0.18 theirs lacks the product
that folds an adapter, splitting, and ``to_empty``.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

LARGEST = 127
_UNPACKED = 2**24  # weights at a time


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


def int8_linear(x: Tensor, integers: Tensor, scale: Tensor, bias: Tensor | None = None) -> Tensor:
    """`torch.nn.functional.linear` with a stored weight, differentiable in ``x``.

    Args:
        x: (..., columns).
        integers: (rows, columns).
        scale: (rows, 1).
        bias: (rows,) or None.

    Returns:
        (..., rows).
    """
    y = _Int8Linear.apply(x, integers, scale)
    return y if bias is None else y + bias


class _Int8Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, integers: Tensor, scale: Tensor) -> Tensor:
        ctx.save_for_backward(integers, scale)
        return torch.cat([F.linear(x, dequantize_rows(*part)) for part in _in_parts(integers, scale)], dim=-1)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None, None]:
        integers, scale = ctx.saved_tensors
        parts = _in_parts(integers, scale)
        grads = grad.split([part.shape[0] for part, _ in parts], dim=-1)
        grad_x = grads[0] @ dequantize_rows(*parts[0])
        for part, piece in zip(parts[1:], grads[1:], strict=True):
            grad_x += piece @ dequantize_rows(*part)
        return grad_x, None, None


def _in_parts(integers: Tensor, scale: Tensor) -> list[tuple[Tensor, Tensor]]:
    rows = max(1, _UNPACKED // integers.shape[1])
    return list(zip(integers.split(rows), scale.split(rows), strict=True))
