"""The language-model part of the official release's checkpoints, at small widths, for the tests of every domain."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


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
