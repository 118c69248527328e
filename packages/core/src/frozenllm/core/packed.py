"""Frozen weights stored as integers and scales, in two plain buffers, and products with them.

Products unpack some rows at a time, and again in the backward pass: no unpacked copy of a weight is ever held. Tensor
subclasses such as torchao's cannot take the place of the two buffers: as of torchao 0.18 theirs lacks the product that
folds an adapter, splitting, and ``to_empty``, and its 4-bit kernels exist for some devices alone.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from frozenllm.core.int4 import dequantize_groups, group_size, quantize_groups
from frozenllm.core.int8 import dequantize_rows, quantize_rows

QUANTIZATIONS = ("int8", "int4")
_UNPACKED = 2**24  # weights at a time


def check_quantize(quantize: str | None) -> None:
    """Raise where there is no such storage."""
    if quantize is not None and quantize not in QUANTIZATIONS:
        raise ValueError(f"quantize must be None, {' or '.join(QUANTIZATIONS)}, not {quantize!r}.")


def packed_like(
    rows: int, columns: int, quantize: str, dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Empty integers and scales for a weight (rows, columns); ``dtype`` is that of the scales."""
    if quantize == "int8":
        shape, scales, kind = (rows, columns), 1, torch.int8
    else:
        shape, scales, kind = (rows, columns // 2), columns // group_size(columns), torch.uint8
    return torch.empty(shape, dtype=kind, device=device), torch.empty((rows, scales), dtype=dtype, device=device)


def pack(weight: Tensor, quantize: str) -> tuple[Tensor, Tensor]:
    """Integers and scales of a weight (rows, columns)."""
    return quantize_rows(weight) if quantize == "int8" else quantize_groups(weight)


def unpack(integers: Tensor, scale: Tensor) -> Tensor:
    """The weight (rows, columns) that integers and scales stand for, in the dtype of the scales."""
    return dequantize_rows(integers, scale) if integers.dtype == torch.int8 else dequantize_groups(integers, scale)


def packed_linear(x: Tensor, integers: Tensor, scale: Tensor, bias: Tensor | None = None) -> Tensor:
    """`torch.nn.functional.linear` with a stored weight, differentiable in ``x``.

    Args:
        x: (..., columns).
        integers: From `pack`.
        scale: From `pack`.
        bias: (rows,) or None.

    Returns:
        (..., rows).
    """
    y = _PackedLinear.apply(x, integers, scale)
    return y if bias is None else y + bias


class _PackedLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, integers: Tensor, scale: Tensor) -> Tensor:
        ctx.save_for_backward(integers, scale)
        return torch.cat([F.linear(x, unpack(*part)) for part in _in_parts(integers, scale, x.shape[-1])], dim=-1)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None, None]:
        integers, scale = ctx.saved_tensors
        columns = integers.shape[1] if integers.dtype == torch.int8 else 2 * integers.shape[1]
        parts = _in_parts(integers, scale, columns)
        grads = grad.split([part.shape[0] for part, _ in parts], dim=-1)
        grad_x = grads[0] @ unpack(*parts[0])
        for part, piece in zip(parts[1:], grads[1:], strict=True):
            grad_x += piece @ unpack(*part)
        return grad_x, None, None


def _in_parts(integers: Tensor, scale: Tensor, columns: int) -> list[tuple[Tensor, Tensor]]:
    rows = max(1, _UNPACKED // columns)
    return list(zip(integers.split(rows), scale.split(rows), strict=True))
