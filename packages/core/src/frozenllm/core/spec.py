"""What one decoder layer of a language model computes, as data.

`BlockSpec` holds everything that the model families differ in; `block.py` computes any of them from it, and
`families.py` reads it off a model's ``config.json``. The defaults describe LLaMA.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

Norm = Literal["rmsnorm", "layernorm"]
NormPlacement = Literal["pre", "post_sublayer", "sandwich", "post_residual"]
Residual = Literal["sequential", "parallel"]
QKNorm = Literal["none", "head", "full"]
Activation = Literal["silu", "gelu", "gelu_tanh", "relu"]

_CHOICES: dict[str, tuple[str, ...]] = {
    "norm": ("rmsnorm", "layernorm"),
    "norm_placement": ("pre", "post_sublayer", "sandwich", "post_residual"),
    "residual": ("sequential", "parallel"),
    "qk_norm": ("none", "head", "full"),
    "activation": ("silu", "gelu", "gelu_tanh", "relu"),
}


@dataclass(frozen=True, kw_only=True)
class BlockSpec:
    """One decoder layer of a language model.

    Attributes:
        hidden_size: Width D of the residual stream.
        num_heads: Query heads H.
        num_kv_heads: Key and value heads; each serves ``num_heads // num_kv_heads`` query heads.
        head_dim: Width of one head; ``num_heads * head_dim`` need not equal ``hidden_size``.
        intermediate_size: Width F of the feed-forward network.
        norm: ``"rmsnorm"`` or ``"layernorm"``.
        norm_eps: Added to the mean square (or variance) under the root.
        norm_offset: Added to every norm weight; 1.0 for Gemma, whose files hold ``weight - 1``.
        norm_placement: ``"pre"``: on the input of each sub-layer (LLaMA). ``"post_sublayer"``: on its output, before
            the residual sum (OLMo 2). ``"sandwich"``: both (Gemma 2). ``"post_residual"``: after the residual sum
            (OPT-350M).
        residual: ``"parallel"``: attention and feed-forward both read the block's input (GPT-NeoX).
        qk_norm: RMSNorm on queries and keys, per ``"head"`` (Qwen3) or over the ``"full"`` projection (OLMo 2).
        activation: Nonlinearity of the feed-forward network.
        gated: Whether the feed-forward network is ``down(act(gate(x)) * up(x))`` instead of ``down(act(up(x)))``.
        qkv_bias: Whether the query, key and value projections have biases.
        out_bias: Whether the attention's output projection has a bias.
        ffn_bias: Whether the feed-forward projections have biases.
        query_scale: Factor on the attention scores; None means ``head_dim ** -0.5``.
        attn_softcap: Scores become ``cap * tanh(score / cap)`` (Gemma 2).
        residual_scale: Factor on each sub-layer's output before the residual sum.
        sliding_window: Tokens that a query sees, itself included; used with ``attention="causal"`` only.
        rotary_base: Base of the rotary frequencies; None for families without rotary positions.
        rotary_fraction: Share of each head that is rotated, from its front.
        rotary_scaling: The ``rope_scaling`` entry of the model's config, or None.
        max_positions: Positions that the model was trained on; rotary scalings refer to it.
        final_norm: Whether the model normalises after its last block (OPT-350M does not).
    """

    hidden_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_size: int
    norm: Norm = "rmsnorm"
    norm_eps: float = 1e-6
    norm_offset: float = 0.0
    norm_placement: NormPlacement = "pre"
    residual: Residual = "sequential"
    qk_norm: QKNorm = "none"
    activation: Activation = "silu"
    gated: bool = True
    qkv_bias: bool = False
    out_bias: bool = False
    ffn_bias: bool = False
    query_scale: float | None = None
    attn_softcap: float | None = None
    residual_scale: float = 1.0
    sliding_window: int | None = None
    rotary_base: float | None = 10000.0
    rotary_fraction: float = 1.0
    rotary_scaling: dict[str, Any] | None = None
    max_positions: int | None = None
    final_norm: bool = True

    def __post_init__(self) -> None:
        for name, allowed in _CHOICES.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} must be one of {', '.join(allowed)}, not {getattr(self, name)!r}.")
        for name in ("hidden_size", "num_heads", "num_kv_heads", "head_dim", "intermediate_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be positive, not {getattr(self, name)}.")
        if self.num_heads % self.num_kv_heads:
            raise ValueError(f"num_heads ({self.num_heads}) must be a multiple of num_kv_heads ({self.num_kv_heads}).")
        if self.residual == "parallel" and self.norm_placement != "pre":
            raise ValueError('residual="parallel" is defined for norm_placement="pre" only.')

    @property
    def q_size(self) -> int:
        """Width of all query heads together."""
        return self.num_heads * self.head_dim

    @property
    def kv_size(self) -> int:
        """Width of all key (or value) heads together."""
        return self.num_kv_heads * self.head_dim

    @property
    def score_scale(self) -> float:
        """Factor on the attention scores."""
        return self.head_dim**-0.5 if self.query_scale is None else self.query_scale

    def tensor_shapes(self) -> dict[str, tuple[int, ...]]:
        """Canonical name and shape of every tensor that one block has.

        Projections are stored ``(out_features, in_features)``, and queries and keys in Hugging Face's row order (the
        two halves of a head are the rotary pair). Order is the order in which the record's SHA-256 reads them.
        """
        d, f = self.hidden_size, self.intermediate_size
        shapes: dict[str, tuple[int, ...]] = {}

        def norm(name: str, size: int, kind: str = self.norm) -> None:
            shapes[f"{name}.weight"] = (size,)
            if kind == "layernorm":
                shapes[f"{name}.bias"] = (size,)

        def linear(name: str, out_size: int, in_size: int, bias: bool) -> None:
            shapes[f"{name}.weight"] = (out_size, in_size)
            if bias:
                shapes[f"{name}.bias"] = (out_size,)

        has_input_norms = self.norm_placement != "post_sublayer"
        has_output_norms = self.norm_placement in ("post_sublayer", "sandwich")
        if has_input_norms:
            norm("attn_norm", d)
        linear("attn.q", self.q_size, d, self.qkv_bias)
        linear("attn.k", self.kv_size, d, self.qkv_bias)
        linear("attn.v", self.kv_size, d, self.qkv_bias)
        if self.qk_norm != "none":
            per_head = self.qk_norm == "head"
            norm("attn.q_norm", self.head_dim if per_head else self.q_size, "rmsnorm")
            norm("attn.k_norm", self.head_dim if per_head else self.kv_size, "rmsnorm")
        linear("attn.o", d, self.q_size, self.out_bias)
        if has_output_norms:
            norm("attn_out_norm", d)
        if has_input_norms:
            norm("ffn_norm", d)
        if self.gated:
            linear("ffn.gate", f, d, self.ffn_bias)
        linear("ffn.up", f, d, self.ffn_bias)
        linear("ffn.down", d, f, self.ffn_bias)
        if has_output_norms:
            norm("ffn_out_norm", d)
        return shapes

    def final_norm_shapes(self) -> dict[str, tuple[int, ...]]:
        """Canonical name and shape of the model's norm after its last block; empty where it has none."""
        if not self.final_norm:
            return {}
        names = ("weight", "bias") if self.norm == "layernorm" else ("weight",)
        return {f"final_norm.{name}": (self.hidden_size,) for name in names}

    def num_parameters(self) -> int:
        """Number of weights in one block, the final norm not counted."""
        total = 0
        for shape in self.tensor_shapes().values():
            size = 1
            for n in shape:
                size *= n
            total += size
        return total

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON can hold them."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> BlockSpec:
        """Inverse of `to_dict`.

        Raises:
            ValueError: A field is unknown (the file was written by a newer release) or missing.
        """
        known = {field.name for field in dataclasses.fields(cls)}
        unknown = sorted(set(fields) - known)
        if unknown:
            raise ValueError(f"Unknown block field(s) {', '.join(unknown)}: written by a newer frozenllm-core?")
        try:
            return cls(**fields)
        except TypeError as error:
            raise ValueError(f"Incomplete block description: {error}.") from error
