"""The language-model part of the official release's checkpoints, at small widths, for the tests of every domain."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

State = dict[str, Tensor]


def llama_state(
    weight: Callable[..., Tensor], width: int, llm_width: int, intermediate: int, layer: int = 0
) -> dict[str, Tensor]:
    """Block, norm and adapters under the official names.

    Args:
        weight: Draws a tensor of a shape.
        width: Of the host.
        llm_width: Of the block.
        intermediate: Of its feed-forward network.
        layer: The block's number in the file.
    """
    prefix = f"llama.layers.{layer}."
    state = {f"{prefix}attention.{name}.weight": weight(llm_width, llm_width) for name in ("wq", "wk", "wv", "wo")}
    state |= {f"{prefix}feed_forward.{name}.weight": weight(intermediate, llm_width) for name in ("w1", "w3")}
    state[f"{prefix}feed_forward.w2.weight"] = weight(llm_width, intermediate)
    for name in ("attention_norm", "ffn_norm"):
        state[f"{prefix}{name}.weight"] = 1 + 0.3 * weight(llm_width)
    state["llama.norm.weight"] = torch.ones(llm_width)
    state["llama_dim_mapper1.weight"] = weight(llm_width, width)
    state["llama_dim_mapper2.weight"] = weight(width, llm_width)
    return state


def attend(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    """Softmax over all tokens; q, k, v (B, N, width) -> (B, N, width)."""
    batch, length, _ = q.shape
    q, k, v = (t.view(batch, length, heads, -1).transpose(1, 2) for t in (q, k, v))
    scores = q @ k.transpose(2, 3) / math.sqrt(q.shape[-1])
    return (scores.softmax(-1) @ v).transpose(1, 2).reshape(batch, length, -1)


def llama_forward(s: State, x: Tensor, heads: int, layer: int = 0) -> Tensor:
    """Mapper, block without positions or mask, RMSNorm, mapper, on (B, N, width); without a block in ``s``, ``x``."""
    if "llama_dim_mapper1.weight" not in s:
        return x

    def linear(x: Tensor, name: str) -> Tensor:
        return F.linear(x, s[f"{name}.weight"])

    def rms_norm(x: Tensor, name: str) -> Tensor:
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6) * s[f"{name}.weight"]

    h, p = linear(x, "llama_dim_mapper1"), f"llama.layers.{layer}"
    y = rms_norm(h, f"{p}.attention_norm")
    q, k, v = (linear(y, f"{p}.attention.{w}") for w in ("wq", "wk", "wv"))
    h = h + linear(attend(q, k, v, heads), f"{p}.attention.wo")
    y = rms_norm(h, f"{p}.ffn_norm")
    gate = F.silu(linear(y, f"{p}.feed_forward.w1")) * linear(y, f"{p}.feed_forward.w3")
    h = h + linear(gate, f"{p}.feed_forward.w2")
    return linear(rms_norm(h, "llama.norm"), "llama_dim_mapper2")


def drop(name: str) -> Callable[[State], None]:
    """Take a tensor away."""
    return lambda state: state.__delitem__(name)


def put(name: str, *shape: int) -> Callable[[State], None]:
    """Put a tensor of a shape there."""
    return lambda state: state.__setitem__(name, torch.ones(shape))


FAULTS: dict[str, tuple[Callable[[State], None], str]] = {
    "block tensor missing": (drop("llama.layers.0.feed_forward.w3.weight"), r"feed_forward\.w3\.weight is missing"),
    "block tensor misshapen": (put("llama.layers.0.attention.wo.weight", 3, 3), r"wo\.weight has the shape \(3, 3\)"),
    "output norm missing": (drop("llama.norm.weight"), r"llama\.norm\.weight is missing"),
    "more of the language model": (put("llama.output.weight", 5, 9), r"also holds llama\.output\.weight"),
    "adapter missing": (drop("llama_dim_mapper2.weight"), r"no llama_dim_mapper2\.weight"),
    "adapter misshapen": (put("llama_dim_mapper1.weight", 9, 9), r"another shape llm\.adapter_in\.weight"),
}
"""What may be wrong with layer 0 in a file: its name, what makes it, and what is said."""
