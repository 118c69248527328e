"""Exact shortcuts: fold the adapter into the projections, absorb keys and values, compute the tail where it is read.

Tokens x_j of the host are d wide, the block is D wide, and h_j = A x_j with the adapter A (D x d). The normalised token
that the attention reads is ``basis @ unit_j + shift``: with RMSNorm ``unit_j = x_j / r_j`` and ``basis = diag(g) A``,
where ``r_j`` is the root mean square of h_j; with LayerNorm, A is centred over its D rows first and the norm's bias is
the shift. So every projection W of it is ``(W basis) unit_j + W shift``: d wide products instead of D wide ones.

Everything here equals `DecoderLayer.forward` up to rounding, forward and backward.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from frozenllm.core.decoder import DecoderLayer
from frozenllm.core.functional import allowed_keys, softmax_scores
from frozenllm.core.plan import Plan

# Added to the Gram matrix's diagonal, relative to its trace, so that the factorisation of a rank-deficient adapter
# exists. In float64 it changes nothing visible below condition numbers of 1e4.
JITTER = 1e-14


@dataclass
class AttentionInput:
    """What the attention of one layer reads: ``basis @ unit + shift`` for every token.

    Attributes:
        layer: The decoder layer whose projections are applied.
        unit: (B, N, m) in the block's dtype.
        basis: (D, m), or None for the identity (m = D).
        shift: (D,) or None for zero.
        folded: Products ``W basis`` by name of W; holds those of earlier calls in eval mode.
    """

    layer: DecoderLayer
    unit: Tensor
    basis: Tensor | None = None
    shift: Tensor | None = None
    folded: dict[str, Tensor] = field(default_factory=dict)

    def offset(self, name: str) -> Tensor | None:
        """The part of a projection that is the same for all tokens: its bias, and the projected shift."""
        return self.layer.bias_of(name) if self.shift is None else self.layer.project(self.shift, name)

    def fold(self, name: str) -> Tensor:
        """``W basis``, (size, m)."""
        assert self.basis is not None
        if name not in self.folded:
            self.folded[name] = self.layer.fold(name, self.basis)
        return self.folded[name]

    def project(self, name: str) -> Tensor:
        """Project all tokens: (B, N, size)."""
        if self.basis is None:
            return self.layer.project(self.unit, name)
        return F.linear(self.unit, self.fold(name), self.offset(name))


def gram_factor(adapter: Tensor) -> Tensor:
    """Upper triangular R (d x d, float32) with ``|R x| = |A x|`` for all x.

    Computed through float64: the squared condition number of the Gram matrix stays harmless, and products with R lose
    no more than products with A do.
    """
    gram = _Gram.apply(adapter)
    eye = torch.eye(gram.shape[0], dtype=gram.dtype, device=gram.device)
    jitter = JITTER * gram.diagonal().sum().detach() + torch.finfo(gram.dtype).tiny
    factor, _ = torch.linalg.cholesky_ex(gram + jitter * eye)
    return factor.mT.float()


class _Gram(torch.autograd.Function):
    """``A' A`` in float64. Its gradient needs float32 only, and one product where autograd would take two."""

    @staticmethod
    def forward(ctx, adapter: Tensor) -> Tensor:
        ctx.save_for_backward(adapter)
        wide = adapter.double()
        return wide.T @ wide

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:
        (adapter,) = ctx.saved_tensors
        return adapter @ (grad + grad.T).to(adapter.dtype)


def folded_input(
    layer: DecoderLayer, tokens: Tensor, adapter: Tensor, hidden: Tensor | None, cache: dict[str, Tensor]
) -> AttentionInput:
    """The first layer's attention input in the host's d dimensions.

    Args:
        layer: The block's first layer.
        tokens: (B, N, d).
        adapter: A, (D, d), in float32.
        hidden: A x for all tokens (B, N, D) where it is at hand or cheap, else None: the Gram matrix is used.
        cache: Folded weights and the Gram factor of earlier calls in eval mode; an empty dict otherwise.
    """
    spec, dtype = layer.spec, layer.dtype
    if spec.norm_placement not in ("pre", "sandwich"):  # the attention reads the stream itself
        return AttentionInput(layer, tokens.to(dtype), adapter.to(dtype), None, cache)
    centred = adapter - adapter.mean(dim=0) if spec.norm == "layernorm" else adapter
    if hidden is None:
        if "gram" not in cache:
            cache["gram"] = gram_factor(centred)
        # In bfloat16 this product may be, too: through the factor an error is not squared, and the tokens are rounded
        # in any case. float16 could overflow.
        norm_dtype = torch.bfloat16 if dtype == torch.bfloat16 else torch.float32
        image = F.linear(tokens.to(norm_dtype), cache["gram"].to(norm_dtype)).float()
        square = image.square().sum(dim=-1, keepdim=True) / spec.hidden_size
    elif spec.norm == "layernorm":
        square = hidden.float().var(dim=-1, correction=0, keepdim=True)
    else:
        square = hidden.float().square().mean(dim=-1, keepdim=True)
    unit = (tokens.float() * torch.rsqrt(square + spec.norm_eps)).to(dtype)
    weight = layer.weight("attn_norm_weight")
    assert weight is not None
    gain = weight.float() + spec.norm_offset
    return AttentionInput(layer, unit, (gain[:, None] * centred).to(dtype), layer.weight("attn_norm_bias"), cache)


def attend_readout(
    source: AttentionInput,
    normed: Tensor | None,
    rows: Tensor | None,
    mask: Tensor | None,
    plan: Plan,
    positions: str,
    attention: str,
) -> Tensor:
    """Attention output of the readout tokens of one layer.

    Args:
        source: What the attention reads, for all tokens.
        normed: What it reads at the readout tokens, D wide (B, R, D); None where ``plan.fold_queries``.
        rows: Positions of the readout tokens, (R,) or (B, R); None for all.
        mask: (B, N) bool, False = padding, or None.
        plan: Which shortcut.
        positions: ``"none"`` or ``"rotary"``.
        attention: ``"bidirectional"`` or ``"causal"``.

    Returns:
        (B, R, D), after the output projection.
    """
    layer, spec = source.layer, source.layer.spec
    positions_read = torch.arange(source.unit.shape[1], device=source.unit.device) if rows is None else rows
    if plan.fold_queries and not plan.absorb and rows is None:  # one product for all three
        q, k, v = source.project("qkv").split((spec.q_size, spec.kv_size, spec.kv_size), dim=-1)
        return layer.attention_output(layer.attention_heads(q, k, v, positions_read, mask, positions, attention))
    if plan.fold_queries:
        q = F.linear(gather_rows(source.unit, rows), source.fold("q"), source.offset("q"))
    else:
        assert normed is not None
        q = layer.project(normed, "q")
    if plan.absorb:
        assert positions == "none"
        return layer.attention_output(_absorbed_heads(source, q, positions_read, mask, plan.fold_context, attention))
    k, v = source.project("kv").split((spec.kv_size, spec.kv_size), dim=-1)
    return layer.attention_output(layer.attention_heads(q, k, v, positions_read, mask, positions, attention))


def _absorbed_heads(
    source: AttentionInput, q: Tensor, rows: Tensor, mask: Tensor | None, fold: bool, attention: str
) -> Tensor:
    """Attended heads (B, H, R, head_dim) without forming a key or a value.

    With q_h the query of head h, its score on token j is ``(basis' W_k,h' q_h) . unit_j`` plus a part that is the same
    for all j, and its attended value is ``W_v,h basis (sum_j p_hj unit_j)`` plus the values' common part.
    """
    layer, spec = source.layer, source.layer.spec
    assert not layer.has_low_rank
    kv, width = spec.num_kv_heads, spec.head_dim
    batch, length, size = source.unit.shape
    # Queries by the key head that serves them: (B, kv, groups * R, head_dim).
    q = layer.split_heads(layer.norm_heads("q_norm", q)).reshape(batch, kv, -1, width)
    key_weight = source.fold("k") if fold else layer.weight_of("k")
    probes = torch.einsum("bkrp,kpm->bkrm", q, key_weight.unflatten(0, (kv, width)))
    if not fold and source.basis is not None:
        probes = probes @ source.basis
    scores = torch.bmm(probes.reshape(batch, -1, size), source.unit.mT).float() * spec.score_scale
    scores = scores.view(batch, spec.num_heads, -1, length)
    # The part of the scores that all keys share cancels in a softmax, but not under a soft cap.
    offset = None if spec.attn_softcap is None else source.offset("k")
    if offset is not None:
        common = torch.einsum("bkrp,kp->bkr", q.float(), offset.float().view(kv, width))
        scores = scores + common.reshape(batch, spec.num_heads, -1, 1) * spec.score_scale
    causal = attention == "causal"
    allowed = allowed_keys(mask, rows, length, causal=causal, window=spec.sliding_window)
    weights = softmax_scores(scores, allowed, spec.attn_softcap)
    probabilities = weights.view(batch, -1, length).to(source.unit.dtype)
    context = torch.bmm(probabilities, source.unit).view(batch, kv, -1, size)
    value_weight = source.fold("v") if fold else layer.weight_of("v")
    if not fold and source.basis is not None:
        context = context @ source.basis.mT
    values = torch.einsum("bkrm,kpm->bkrp", context, value_weight.unflatten(0, (kv, width)))
    offset = source.offset("v")
    if offset is not None:
        seen = weights.sum(dim=-1).view(batch, kv, -1, 1).to(values.dtype)  # 0 for a query that sees nothing
        values = values + seen * offset.view(kv, 1, width)
    return values.reshape(batch, spec.num_heads, -1, width)


def gather_rows(x: Tensor, rows: Tensor | None) -> Tensor:
    """Tokens (B, N, m) at ``rows``, (R,) or (B, R): (B, R, m); all of them where ``rows`` is None."""
    if rows is None:
        return x
    return x.index_select(1, rows) if rows.ndim == 1 else torch.take_along_dim(x, rows[..., None], dim=1)
