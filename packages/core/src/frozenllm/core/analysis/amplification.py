"""Does a layer amplify what matters? Activation inside against outside, at every depth; and the tokens' rank."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from frozenllm.core.analysis.minmax import check_mask
from frozenllm.core.analysis.patching import run_eagerly
from frozenllm.core.analysis.thresholds import checked_relevance


def inside_outside(activations: Tensor, relevant: Tensor, counted: Tensor | None = None) -> Tensor:
    """Mean activation of the relevant tokens over that of the others; 1 = no difference.

    Give it activations as they are (``normalize=False``): min-max scaling moves the smallest value to 0 and so changes
    ratios. Average ratios with `geometric_mean`.

    Args:
        activations: (B, N), not negative.
        relevant: (B, N) bool.
        counted: (B, N) bool, False = left out; None counts all.

    Returns:
        (B,) float32; NaN for a sample with no token inside, with none outside, or with either mean zero.

    Raises:
        ValueError: A shape or dtype does not fit.
    """
    relevant, counted = checked_relevance(activations, relevant, counted)
    inside, outside = (_mean_where(activations.float(), where) for where in (relevant, counted & ~relevant))
    return torch.where((inside > 0) & (outside > 0), inside / outside, torch.nan)


def effective_rank(tokens: Tensor, mask: Tensor | None = None, *, centred: bool = True) -> Tensor:
    """Exponential of the entropy of the singular values, scaled to sum 1 (Roy and Vetterli, 2007).

    Between 1 (all tokens on one line) and min(N, D): over how many directions a sample's tokens spread.

    Args:
        tokens: (B, N, D), any floating point dtype; computed in float32.
        mask: (B, N) bool, False = padding.
        centred: Whether the sample's mean token is taken off first, as the activations do.

    Returns:
        (B,) float32; 0 where nothing is left (equal tokens, or none).

    Raises:
        ValueError: A shape or dtype does not fit.
    """
    if tokens.ndim != 3:
        raise ValueError(f"tokens must have shape (batch, tokens, channels), got {tuple(tokens.shape)}.")
    check_mask(mask, tokens)
    tokens = tokens.float()
    kept = torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device) if mask is None else mask
    tokens = tokens.masked_fill(~kept[..., None], 0.0)
    scale = tokens.abs().amax(dim=(1, 2))
    if centred:
        mean = tokens.sum(dim=1, keepdim=True) / kept.sum(dim=1).clamp_min(1)[:, None, None]
        tokens = (tokens - mean).masked_fill(~kept[..., None], 0.0)  # rows of zeros add no singular value
    values = torch.linalg.svdvals(tokens)
    # Rounding leaves a little of what was taken off.
    noise = torch.finfo(torch.float32).eps * max(tokens.shape[1:]) * scale[:, None]
    values = torch.where(values > noise, values, 0.0)
    total = values.sum(dim=1, keepdim=True)
    shares = values / total.clamp_min(torch.finfo(torch.float32).tiny)
    entropy = -torch.special.xlogy(shares, shares).sum(dim=1)
    return torch.where(total[:, 0] > 0, entropy.exp(), 0.0)


@contextmanager
def block_outputs(modules: Iterable[nn.Module]) -> Iterator[dict[int, Tensor]]:
    """Record what modules return, such as the tokens after every block of a host.

    Example::

        with torch.no_grad(), block_outputs(model.blocks) as depth:
            model(images)
        depth[0]  # (B, N, D) after the first block

    Args:
        modules: Of any model; of those that return several things the first is taken.

    Yields:
        Their last call's outputs by place in ``modules``, in the order of the computation.
    """
    outputs: dict[int, Tensor] = {}

    def record(place: int) -> Any:
        def hook(_module: nn.Module, _inputs: Any, output: Any) -> None:
            outputs.pop(place, None)  # in the order of the last call
            outputs[place] = output[0] if isinstance(output, (tuple, list)) else output

        return hook

    with ExitStack() as stack:
        run_eagerly(stack)
        for place, module in enumerate(modules):
            stack.callback(module.register_forward_hook(record(place)).remove)
        yield outputs


def _mean_where(values: Tensor, where: Tensor) -> Tensor:
    """(B,); NaN where there is none."""
    return values.masked_fill(~where, 0.0).sum(dim=1) / where.sum(dim=1)
