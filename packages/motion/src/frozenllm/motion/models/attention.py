"""Pre-norm transformer layers out of torch's parts, with masks that never leave a query without a key."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


def attend(attention: nn.MultiheadAttention, queries: Tensor, memory: Tensor, valid: Tensor) -> Tensor:
    """Attention of some tokens to others.

    Where a memory holds no valid token at all, all of them are read: they are padding and therefore equal, so that the
    result does not depend on their number.

    Args:
        attention: With ``batch_first``.
        queries: (B, Q, d).
        memory: (B, M, d).
        valid: (B, M) bool, False = padding.

    Returns:
        (B, Q, d).
    """
    # A view, since torch's shortcut for three times the same tensor hides its operations from the counter of `cost`.
    keys = memory.view_as(memory)
    return attention(queries, keys, keys, key_padding_mask=~at_least_one(valid), need_weights=False)[0]


def at_least_one(valid: Tensor) -> Tensor:
    """The mask (..., M), all True in the rows that have no True."""
    return valid | ~valid.any(dim=-1, keepdim=True)


class EncoderLayer(nn.TransformerEncoderLayer):
    """torch's encoder layer, norms first, ReLU, no dropout.

    Args:
        dim: Width of the tokens.
        heads: Attention heads.
        hidden: Width of the feed-forward part.
    """

    def __init__(self, dim: int, heads: int, hidden: int) -> None:
        super().__init__(dim, heads, hidden, dropout=0.0, batch_first=True, norm_first=True)

    def forward(self, tokens: Tensor, valid: Tensor) -> Tensor:  # type: ignore[override]
        """Tokens (B, N, d) that read those of each other which are ``valid``, (B, N)."""
        normed = self.norm1(tokens)
        tokens = tokens + attend(self.self_attn, normed, normed, valid)
        return tokens + self._ff_block(self.norm2(tokens))


class DecoderLayer(nn.TransformerDecoderLayer):
    """torch's decoder layer, norms first, ReLU, no dropout, for groups of queries that share a memory.

    Queries see those of their own group, and the memory of their scene: as if the memory were repeated for every group,
    without the copies.

    Args:
        dim: Width of the tokens.
        heads: Attention heads.
        hidden: Width of the feed-forward part.
    """

    def __init__(self, dim: int, heads: int, hidden: int) -> None:
        super().__init__(dim, heads, hidden, dropout=0.0, batch_first=True, norm_first=True)

    def forward(self, queries: Tensor, memory: Tensor, valid: Tensor) -> Tensor:  # type: ignore[override]
        """Apply the layer.

        Args:
            queries: (B, G, K, d): G groups of K.
            memory: (B, M, d).
            valid: (B, M) bool, False = padding.

        Returns:
            (B, G, K, d).
        """
        batch, groups, size, dim = queries.shape
        own = queries.reshape(batch * groups, size, dim)
        normed = self.norm1(own)
        everyone = torch.ones(normed.shape[:2], dtype=torch.bool, device=normed.device)
        own = own + attend(self.self_attn, normed, normed, everyone)
        tokens = own.reshape(batch, groups * size, dim)
        tokens = tokens + attend(self.multihead_attn, self.norm2(tokens), memory, valid)
        tokens = tokens + self._ff_block(self.norm3(tokens))
        return tokens.reshape(batch, groups, size, dim)


class Stack(nn.ModuleList):
    """Layers one after another, with a norm at the end."""

    def __init__(self, kind: type[nn.Module], count: int, dim: int, heads: int, hidden: int) -> None:
        super().__init__([kind(dim, heads, hidden) for _ in range(count)])
        self.append(nn.LayerNorm(dim))

    def forward(self, tokens: Tensor, *arguments: Tensor) -> Tensor:
        """Apply the layers; the arguments go to each of them."""
        *layers, norm = self
        for layer in layers:
            tokens = layer(tokens, *arguments)
        return norm(tokens)


def step_encoding(steps: int, dim: int, like: Tensor) -> Tensor:
    """Sines and cosines of the step's number, (steps, dim): the positions of the original transformer.

    The last step is number 0, so that a history of another length gives the steps that both have the same code.
    """
    numbers = torch.arange(steps - 1, -1, -1, device=like.device, dtype=torch.float32)
    rates = torch.exp(torch.arange(0, dim, 2, device=like.device) * (-math.log(10000.0) / dim))
    angles = numbers[:, None] * rates
    return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(1)[:, :dim].to(like.dtype)
