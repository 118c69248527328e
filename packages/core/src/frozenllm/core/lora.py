"""Low-rank updates of a frozen block (LoRA, Hu et al., 2022): what follow-up work trains in place of the block."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


class LowRankUpdate(nn.Module):
    """``W + scale * B A`` for every part of a stored weight, without forming the sum.

    A starts random and B at zero, so that the block starts unchanged.

    Args:
        in_features: Columns of the weight.
        part_sizes: Rows of each part (queries, keys, values, for one), each with an A and a B of its own.
        rank: Rank of each update.
        alpha: The update's scale is ``alpha / rank``; the rank itself (scale 1) by default.
    """

    def __init__(self, in_features: int, part_sizes: list[int], rank: int, alpha: float | None = None) -> None:
        super().__init__()
        if not 1 <= rank <= min(in_features, *part_sizes):
            raise ValueError(f"lora_rank must lie between 1 and {min(in_features, *part_sizes)}, not {rank}.")
        self.scale = (rank if alpha is None else alpha) / rank
        self.down = nn.ParameterList(torch.empty(rank, in_features) for _ in part_sizes)
        self.up = nn.ParameterList(torch.zeros(size, rank) for size in part_sizes)
        for weight in self.down:
            nn.init.kaiming_uniform_(weight, a=math.sqrt(5))  # as nn.Linear starts

    def forward(self, x: Tensor, parts: slice) -> Tensor:
        """The update's share of a projection, (..., in_features) -> (..., rows of the parts)."""
        # As lists: torch.compile cannot take slices of a ParameterList.
        pairs = zip(list(self.down)[parts], list(self.up)[parts], strict=True)
        pieces = [(x @ down.to(x.dtype).T) @ up.to(x.dtype).T for down, up in pairs]
        return torch.cat(pieces, dim=-1) * self.scale

    def products(self) -> list[Tensor]:
        """What is added to the rows of each part, (rows, in_features) in float32."""
        return [up.float() @ down.float() * self.scale for down, up in zip(self.down, self.up, strict=True)]
