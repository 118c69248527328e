"""The few functions that a decoder layer is made of. No weights live here."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from frozenllm.core.spec import BlockSpec


def normalize(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, spec: BlockSpec, kind: str | None = None
) -> Tensor:
    """RMSNorm or LayerNorm over the last axis, computed in float32, returned in the dtype of ``x``.

    Args:
        x: (..., width).
        weight: Gain (width,), as stored: the family's offset is added here. None means gain 1.
        bias: (width,) or None.
        spec: Gives kind, eps and offset.
        kind: Overrides ``spec.norm`` (norms on queries and keys are always RMSNorm).
    """
    width = x.shape[-1:]
    if weight is not None:
        weight = weight.float() + spec.norm_offset if spec.norm_offset else weight.float()
    if (kind or spec.norm) == "rmsnorm":
        return F.rms_norm(x.float(), width, weight, spec.norm_eps).to(x.dtype)
    return F.layer_norm(x.float(), width, weight, None if bias is None else bias.float(), spec.norm_eps).to(x.dtype)


def activate(x: Tensor, name: str) -> Tensor:
    """The feed-forward network's nonlinearity, by `BlockSpec.activation`."""
    if name == "silu":
        return F.silu(x)
    if name == "relu":
        return F.relu(x)
    return F.gelu(x, approximate="tanh" if name == "gelu_tanh" else "none")


def allowed_keys(
    mask: Tensor | None,
    rows: Tensor,
    length: int,
    *,
    causal: bool,
    window: int | None,
) -> Tensor | None:
    """Which keys each query may see.

    Args:
        mask: (B, N) bool, False = padding; None where nothing is padded.
        rows: Positions of the queries, (R,) or (B, R).
        length: Number of keys N.
        causal: Whether a query sees only keys up to its own position.
        window: Tokens that a query sees, itself included; None for all. Used with ``causal`` only.

    Returns:
        A bool tensor that broadcasts to (B, heads, R, N), or None where every query sees every key.
    """
    allowed = None if mask is None else mask[:, None, None, :]
    if not causal:
        return allowed
    keys = torch.arange(length, device=rows.device)
    distance = rows[..., :, None] - keys
    seen = distance >= 0
    if window is not None:
        seen = seen & (distance < window)
    seen = seen[None, None] if rows.ndim == 1 else seen[:, None]
    return seen if allowed is None else seen & allowed


def softmax_scores(scores: Tensor, allowed: Tensor | None, softcap: float | None) -> Tensor:
    """Attention probabilities from scores (B, heads, R, N); a row that sees nothing gets zeros, not NaN."""
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    if allowed is None:
        return scores.softmax(dim=-1)
    probabilities = scores.masked_fill(~allowed, torch.finfo(scores.dtype).min).softmax(dim=-1)
    return probabilities.masked_fill(~allowed, 0.0)


def attend(q: Tensor, k: Tensor, v: Tensor, allowed: Tensor | None, spec: BlockSpec) -> Tensor:
    """Scaled dot-product attention.

    Args:
        q: (B, H, R, head_dim).
        k: (B, Hkv, N, head_dim), likewise ``v``.
        allowed: See `allowed_keys`.
        spec: Gives the score scale and the soft cap.

    Returns:
        (B, H, R, head_dim); zeros where a query sees nothing.
    """
    groups = spec.num_heads // spec.num_kv_heads
    if groups > 1:
        k, v = (t.repeat_interleave(groups, dim=1) for t in (k, v))
    if spec.attn_softcap is None:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=allowed, scale=spec.score_scale)
    return attention_weights(q, k, allowed, spec).to(v.dtype) @ v  # fused kernels have no soft cap


def attention_weights(q: Tensor, k: Tensor, allowed: Tensor | None, spec: BlockSpec) -> Tensor:
    """The probabilities that `attend` weighs values with, in float32; nothing fused.

    Args:
        q: (B, H, R, head_dim).
        k: (B, H or Hkv, N, head_dim).
        allowed: See `allowed_keys`.
        spec: Gives the score scale and the soft cap.

    Returns:
        (B, H, R, N); zeros where a query sees nothing.
    """
    if q.shape[1] > k.shape[1]:
        k = k.repeat_interleave(q.shape[1] // k.shape[1], dim=1)
    scores = (q @ k.transpose(-1, -2)).float() * spec.score_scale
    return softmax_scores(scores, allowed, spec.attn_softcap)
