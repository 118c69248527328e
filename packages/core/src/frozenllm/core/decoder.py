"""One decoder layer of a language model, computed from its spec and weights. This is the readable definition.

Legend of shapes: B batch, N tokens, D ``hidden_size``, F ``intermediate_size``, H query heads.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from frozenllm.core.functional import activate, allowed_keys, attend, normalize
from frozenllm.core.lora import LowRankUpdate
from frozenllm.core.packed import pack, packed_like, packed_linear, unpack
from frozenllm.core.rotary import apply_rotary, rotary_tables
from frozenllm.core.spec import BlockSpec

Positions = Literal["none", "rotary"]
Attention = Literal["bidirectional", "causal"]


def copy_checked(target: Tensor, tensors: Mapping[str, Tensor], name: str) -> None:
    """Copy the tensor of that name into ``target``, after a check that it is there and of the same shape."""
    if name not in tensors:
        raise ValueError(f"Tensor {name} of the block is missing.")
    source = tensors[name]
    if source.shape != target.shape:
        raise ValueError(f"Tensor {name} of the block has shape {tuple(source.shape)}, not {tuple(target.shape)}.")
    with torch.no_grad():
        target.copy_(source)


def _scale_of(weight: str) -> str:
    """Name of the buffer with the scales of a weight that is stored as integers."""
    return f"{weight.rsplit('_', 1)[0]}_scale"


class DecoderLayer(nn.Module):
    """A decoder layer whose weights are buffers; query, key, value and gate, up are stored as one matrix each.

    Args:
        spec: What the layer computes.
        dtype: Data type of the weights.
        device: Where the (still empty) weights are made.
        quantize: ``"int8"`` or ``"int4"`` stores projections as integers, with scales in ``dtype``
            (`frozenllm.core.packed`).
    """

    # Every family has these; what only some have is reached through `weight`.
    qkv_weight: Tensor
    o_weight: Tensor
    up_weight: Tensor
    down_weight: Tensor
    qkv_scale: Tensor  # of integers only

    def __init__(self, spec: BlockSpec, dtype: torch.dtype, device: torch.device, quantize: str | None = None) -> None:
        super().__init__()
        self.spec = spec
        self.quantize = quantize
        shapes = spec.tensor_shapes()
        for name, parts in self.layout().items():
            first = shapes[parts[0]]
            rows = sum(shapes[part][0] for part in parts)
            if quantize and len(first) == 2:
                empty, scale = packed_like(rows, first[1], quantize, dtype, device)
                self.register_buffer(_scale_of(name), scale, persistent=False)
            else:
                empty = torch.empty((rows, *first[1:]), dtype=dtype, device=device)
            self.register_buffer(name, empty, persistent=False)
        self.low_rank = nn.ModuleDict()
        self.has_low_rank = False  # a plain flag: older torch.compile cannot ask a ModuleDict whether it is empty

    @property
    def dtype(self) -> torch.dtype:
        """Data type that the layer computes in."""
        return self.qkv_scale.dtype if self.quantize else self.qkv_weight.dtype

    def layout(self) -> dict[str, list[str]]:
        """Name of each stored tensor, and the canonical tensors whose rows it joins."""
        groups = {"attn.q": "qkv", "attn.k": "qkv", "attn.v": "qkv", "ffn.gate": "up", "ffn.up": "up"}
        layout: dict[str, list[str]] = {}
        for canonical in self.spec.tensor_shapes():
            stem, kind = canonical.rsplit(".", 1)
            layout.setdefault(f"{groups.get(stem, stem.split('.')[-1])}_{kind}", []).append(canonical)
        return layout

    def canonical_tensors(self) -> dict[str, Tensor]:
        """Canonical name -> weights, in the order of `BlockSpec.tensor_shapes`: views, of integers unpacked copies."""
        return {name: part if scale is None else unpack(part, scale) for name, (part, scale) in self._parts().items()}

    def merged_tensors(self) -> dict[str, Tensor]:
        """`canonical_tensors` with the low-rank updates added to them, where there are any."""
        tensors = self.canonical_tensors()
        for stored, update in self.low_rank.items():
            parts = self.layout()[f"{stored}_weight"]
            for name, product in zip(parts, update.products(), strict=True):  # type: ignore[operator]
                tensors[name] = (tensors[name].float() + product.detach()).to(tensors[name].dtype)
        return tensors

    def fill(self, tensors: Mapping[str, Tensor]) -> None:
        """Copy canonical tensors in, one at a time, so that a lazily read file needs no second copy in memory.

        Raises:
            ValueError: A tensor is missing or has another shape than the spec says.
        """
        shapes = self.spec.tensor_shapes()
        for name, (view, scale) in self._parts().items():
            if scale is None:
                copy_checked(view, tensors, name)
                continue
            assert self.quantize is not None
            full = torch.empty(shapes[name], dtype=scale.dtype, device=view.device)
            copy_checked(full, tensors, name)
            with torch.no_grad():
                for target, source in zip((view, scale), pack(full, self.quantize), strict=True):
                    target.copy_(source)

    def _parts(self) -> dict[str, tuple[Tensor, Tensor | None]]:
        """Canonical name -> view of the stored weights, and of their scales where they are integers."""
        shapes = self.spec.tensor_shapes()
        views: dict[str, tuple[Tensor, Tensor | None]] = {}
        for name, parts in self.layout().items():
            sizes = [shapes[part][0] for part in parts]
            scale = None if name.endswith("_bias") else self._buffers.get(_scale_of(name))
            stored = getattr(self, name).detach().split(sizes)
            scales = [None] * len(parts) if scale is None else scale.split(sizes)
            views.update(zip(parts, zip(stored, scales, strict=True), strict=True))
        return {name: views[name] for name in shapes}

    def add_low_rank(self, rank: int, alpha: float | None = None) -> None:
        """Put a trainable low-rank update on every projection."""
        self.has_low_rank = True
        shapes = self.spec.tensor_shapes()
        for stored in ("qkv", "o", "up", "down"):
            sizes = [shapes[part][0] for part in self.layout()[f"{stored}_weight"]]
            in_features = shapes[self.layout()[f"{stored}_weight"][0]][1]
            self.low_rank[stored] = LowRankUpdate(in_features, sizes, rank, alpha)

    def make_trainable(self) -> None:
        """Turn the buffers into parameters (the fine-tuned ablation), in memory of their own.

        Raises:
            ValueError: The weights are integers.
        """
        if self.quantize:
            raise ValueError(
                f'A block that is stored as integers cannot be trained: load it without quantize="{self.quantize}".'
            )
        for name in self.layout():
            weight = getattr(self, name)
            del self._buffers[name]
            self._non_persistent_buffers_set.discard(name)
            self.register_parameter(name, nn.Parameter(weight.detach().clone()))

    def weight(self, name: str) -> Tensor | None:
        """A stored tensor by name, or None where this family has none."""
        return getattr(self, name, None)

    def rows(self, name: str) -> tuple[str, slice, slice]:
        """Where a projection is stored: the stored weight, its rows, and which of its parts they are.

        Args:
            name: ``"q"``, ``"k"``, ``"v"``, ``"kv"``, ``"qkv"``; or ``"o"``, ``"up"`` (with the gate), ``"down"``.
        """
        if name in ("o", "up", "down"):
            return name, slice(None), slice(None)
        q, kv = self.spec.q_size, self.spec.kv_size
        edges = (0, q, q + kv, q + 2 * kv)
        first, last = "qkv".index(name[0]), "qkv".index(name[-1])
        return "qkv", slice(edges[first], edges[last + 1]), slice(first, last + 1)

    def bias_of(self, name: str) -> Tensor | None:
        """Bias of a projection (see `rows`), or None."""
        stored, rows, _ = self.rows(name)
        bias = self.weight(f"{stored}_bias")
        return None if bias is None else bias[rows]

    def weight_of(self, name: str) -> Tensor:
        """Weight of a projection (see `rows`), without its low-rank update; unpacked where it is stored as integers."""
        weight, scale = self._stored(name)
        return weight if scale is None else unpack(weight, scale)

    def _stored(self, name: str) -> tuple[Tensor, Tensor | None]:
        stored, rows, _ = self.rows(name)
        weight = getattr(self, f"{stored}_weight")[rows]
        return (weight, getattr(self, f"{stored}_scale")[rows]) if self.quantize else (weight, None)

    def _linear(self, x: Tensor, name: str, bias: Tensor | None) -> Tensor:
        weight, scale = self._stored(name)
        return F.linear(x, weight, bias) if scale is None else packed_linear(x, weight, scale, bias)

    def project(self, x: Tensor, name: str) -> Tensor:
        """Apply a projection (see `rows`): (..., in_features) -> (..., out_features)."""
        y = self._linear(x, name, self.bias_of(name))
        if not self.has_low_rank:
            return y
        stored, _, parts = self.rows(name)
        return y + self.low_rank[stored](x, parts)

    def fold(self, name: str, basis: Tensor) -> Tensor:
        """``W basis``: a projection (see `rows`) of every column of a basis (in_features, m), without the bias."""
        folded = self._linear(basis.T, name, None).T if self.quantize else self.weight_of(name) @ basis
        if not self.has_low_rank:
            return folded
        stored, _, parts = self.rows(name)
        return folded + self.low_rank[stored](basis.T, parts).T

    def norm(self, name: str, x: Tensor) -> Tensor:
        """Apply the norm of that name, or nothing where this family has none."""
        gain = self.weight(f"{name}_weight")
        if gain is None:
            return x
        return normalize(x, gain, self.weight(f"{name}_bias"), self.spec)

    def split_heads(self, x: Tensor) -> Tensor:
        """(B, N, heads * head_dim) -> (B, heads, N, head_dim)."""
        return x.unflatten(-1, (-1, self.spec.head_dim)).transpose(1, 2)

    def norm_heads(self, name: str, x: Tensor) -> Tensor:
        """RMSNorm on projected queries or keys (B, N, size), for families that have it."""
        gain = self.weight(f"{name}_weight")
        if gain is None:
            return x
        if self.spec.qk_norm == "full":
            return normalize(x, gain, None, self.spec, kind="rmsnorm")
        heads = x.unflatten(-1, (-1, self.spec.head_dim))
        return normalize(heads, gain, None, self.spec, kind="rmsnorm").flatten(-2)

    def attention_input(self, h: Tensor) -> Tensor:
        """What the projections read: the normalised stream, or the stream itself in families that norm later."""
        return self.norm("attn_norm", h) if self.spec.norm_placement in ("pre", "sandwich") else h

    def attention_output(self, heads: Tensor) -> Tensor:
        """Output projection of attended heads: (B, H, R, head_dim) -> (B, R, D)."""
        return self.project(heads.transpose(1, 2).flatten(-2), "o")

    def attention_heads(
        self, q: Tensor, k: Tensor, v: Tensor, rows: Tensor, mask: Tensor | None, positions: str, attention: str
    ) -> Tensor:
        """Attend with projected queries (B, R, H * head_dim) and keys, values (B, N, Hkv * head_dim).

        Args:
            q: Queries of the tokens at ``rows``.
            k: Keys of all tokens.
            v: Values of all tokens.
            rows: Positions of the queries, (R,) or (B, R).
            mask: (B, N) bool, False = padding, or None.
            positions: ``"none"`` or ``"rotary"``.
            attention: ``"bidirectional"`` or ``"causal"``.

        Returns:
            (B, H, R, head_dim).
        """
        length = k.shape[1]
        q, k, v = (self.split_heads(t) for t in (self.norm_heads("q_norm", q), self.norm_heads("k_norm", k), v))
        if positions == "rotary":
            cos, sin = rotary_tables(self.spec, length, k.device)
            at = (cos[rows], sin[rows]) if rows.ndim == 1 else (cos[rows][:, None], sin[rows][:, None])
            q, k = apply_rotary(q, *at), apply_rotary(k, cos, sin)
        causal = attention == "causal"
        allowed = allowed_keys(mask, rows, length, causal=causal, window=self.spec.sliding_window)
        return self.attend(q, k, v, allowed)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, allowed: Tensor | None) -> Tensor:
        """Attend with queries, keys and values as they enter the product; see `frozenllm.core.functional.attend`."""
        return attend(q, k, v, allowed, self.spec)

    def feed_forward(self, x: Tensor) -> Tensor:
        """The feed-forward network, (B, N, D) -> (B, N, D)."""
        up = self.project(x, "up")
        if self.spec.gated:
            gate, up = up.chunk(2, dim=-1)
            inner = activate(gate, self.spec.activation) * up
        else:
            inner = activate(up, self.spec.activation)
        return self.project(inner, "down")

    def attention_update(self, attended: Tensor) -> Tensor:
        """What the attention adds to the stream, from `attention_output`: (B, R, D) -> (B, R, D)."""
        return self.norm("attn_out_norm", attended) * self.spec.residual_scale

    def after_attention(self, h: Tensor, update: Tensor) -> Tensor:
        """The stream after the attention's residual sum, normalised where the family norms sums.

        Args:
            h: The layer's input (B, R, D).
            update: What `attention_update` gives (B, R, D).
        """
        h = h + update
        return self.norm("attn_norm", h) if self.spec.norm_placement == "post_residual" else h

    def ffn_update(self, h: Tensor, stream: Tensor) -> Tensor:
        """What the feed-forward network adds to the stream.

        Args:
            h: The layer's input (B, R, D), which it reads in families with a parallel residual.
            stream: What `after_attention` gives (B, R, D), which it reads in all others.
        """
        x = h if self.spec.residual == "parallel" else stream
        update = self.feed_forward(x if self.spec.norm_placement == "post_residual" else self.norm("ffn_norm", x))
        return self.norm("ffn_out_norm", update) * self.spec.residual_scale

    def tail(self, h: Tensor, attended: Tensor) -> Tensor:
        """Everything after the attention, token by token: residual sums, norms, feed-forward network.

        Args:
            h: The layer's input (B, R, D).
            attended: Output of `attention_output` (B, R, D).
        """
        stream = self.after_attention(h, self.attention_update(attended))
        h = stream + self.ffn_update(h, stream)
        return self.norm("ffn_norm", h) if self.spec.norm_placement == "post_residual" else h

    def forward(
        self,
        h: Tensor,
        mask: Tensor | None = None,
        positions: Positions = "none",
        attention: Attention = "bidirectional",
    ) -> Tensor:
        """(B, N, D) -> (B, N, D); ``mask`` is (B, N) bool, False = padding."""
        spec = self.spec
        qkv = self.project(self.attention_input(h), "qkv")
        q, k, v = qkv.split((spec.q_size, spec.kv_size, spec.kv_size), dim=-1)
        rows = torch.arange(h.shape[1], device=h.device)
        heads = self.attention_heads(q, k, v, rows, mask, positions, attention)
        return self.tail(h, self.attention_output(heads))
