"""Attention probabilities of a host's own layers, whatever library they come from."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from frozenllm.core.analysis.patching import replace, run_eagerly


@contextmanager
def attention_of(module: nn.Module) -> Iterator[list[Tensor]]:
    """Record the attention probabilities that a module computes, such as a host's last block.

    Fused attention (`torch.nn.functional.scaled_dot_product_attention`: timm's and transformers' default) is recorded
    as what it stands for, and so is every softmax over the last axis of a tensor with four. Results do not change.

    Example::

        with torch.no_grad(), attention_of(model.blocks[-1]) as seen:
            model(images)
        maps = class_attention(seen[-1][..., 1:])

    Args:
        module: Any module that the model calls while the ``with`` block lasts.

    Yields:
        A list that fills with (B, heads, queries, keys) in float32, in the order of the computation. It stays empty
        where the module computes attention in another way, such as a kernel of its own.
    """
    seen: list[Tensor] = []
    plain = module.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        with _Recorder(seen):
            return plain(*args, **kwargs)

    with ExitStack() as stack:
        run_eagerly(stack)
        replace(module, "forward", forward, stack)
        yield seen


class _Recorder(TorchFunctionMode):
    def __init__(self, seen: list[Tensor]) -> None:
        super().__init__()
        self.seen = seen

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        output = func(*args, **kwargs)
        if func is F.scaled_dot_product_attention:
            self.seen.append(probabilities(*args, **kwargs))
        elif func in (F.softmax, torch.softmax, Tensor.softmax) and output.ndim == 4:
            axis = args[1] if len(args) > 1 else kwargs.get("dim")
            self.seen += [output.float()] if axis in (-1, 3) else []
        return output


def probabilities(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """The weights of `torch.nn.functional.scaled_dot_product_attention` for its arguments, before dropout.

    Args:
        query: (B, heads, R, width).
        key: (B, heads, N, width), fewer heads with ``enable_gqa``.
        value: Not used.
        attn_mask: Bool (False = not seen) or added to the scores; broadcasts to (B, heads, R, N).
        dropout_p: Not used.
        is_causal: Whether a query sees only keys up to its own position.
        scale: Factor on the scores; None means ``width ** -0.5``.
        enable_gqa: Whether a head of the keys serves several of the queries.

    Returns:
        (B, heads, R, N) in float32; zeros for a query that sees nothing.
    """
    if enable_gqa:
        key = key.repeat_interleave(query.shape[-3] // key.shape[-3], dim=-3)
    scores = (query @ key.mT).float() * (1 / math.sqrt(query.shape[-1]) if scale is None else scale)
    if is_causal:
        causal = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
        scores = scores.masked_fill(~causal, -torch.inf)
    if attn_mask is not None:
        scores = scores.masked_fill(~attn_mask, -torch.inf) if attn_mask.dtype == torch.bool else scores + attn_mask
    return scores.softmax(dim=-1).nan_to_num(0.0)
