"""The hosts of this package, at tiny widths: what the contract of hosts with a frozen layer is checked on."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from frozenllm.core.testing import TINY_LLM, Host, Recipe
from frozenllm.pointcloud.detection.neck import FrozenLLMNeck, at_size
from frozenllm.pointcloud.train import build_point_bert

_SIZES: dict[str, Any] = {
    "num_classes": 5, "embed_dim": 24, "depth": 2, "num_heads": 2, "num_groups": 6, "group_size": 8,
    "encoder_dim": 16, "encoder_widths": (8, 12, 20), "pos_dim": 8, "head_dim": 16,
    "drop_path_rate": 0.0, "head_dropout": 0.0, "llm": TINY_LLM,
}  # fmt: skip
_CHANNELS = 12  # of the map that the neck works on


def _noise(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _point_bert(compiled: bool = False, **options: Any) -> Host:
    return Host(build=Recipe(build_point_bert, {**_SIZES, **options}), inputs=(_noise(4, 40, 3),), compiled=compiled)


class Maps(nn.Module):
    """A detector's way through the neck: a list of maps in, the changed one out."""

    def __init__(self, neck: nn.Module) -> None:
        super().__init__()
        self.neck = neck

    def forward(self, fine: Tensor, coarse: Tensor, filled: Tensor) -> Tensor:
        """The coarse map, (B, C, H, W)."""
        return self.neck([fine, coarse, filled])[1]


class Seeds(nn.Module):
    """The seeds of VoteNet on their way through the neck."""

    def __init__(self, neck: nn.Module) -> None:
        super().__init__()
        self.neck = neck

    def forward(self, features: Tensor) -> Tensor:
        """Their features, (B, C, N)."""
        return self.neck({"fp_xyz": [None], "fp_features": [features]})["fp_features"][-1]


def _neck(**options: Any) -> Recipe:
    return Recipe(FrozenLLMNeck, {"dim": _CHANNELS, "llm": TINY_LLM, **options}, Maps)


def _cells() -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Maps of three scenes with their occupancy, and the same with noise in empty cells."""
    filled = (torch.rand(3, 1, 8, 8, generator=torch.Generator().manual_seed(2)) < 0.3).float()
    fine, coarse = _noise(3, 5, 8, 8), _noise(3, _CHANNELS, 4, 4)
    occupied = at_size(filled, (4, 4)).unsqueeze(1)
    other = torch.where(occupied, coarse, 100 * _noise(3, _CHANNELS, 4, 4, seed=5))
    return (fine, coarse, filled), (fine, other, filled)


_MAPS, _OTHER_MAPS = _cells()
# How many cells are occupied is read from the data, so that the maps' hosts are not compiled.
HOSTS = {
    "point_bert": _point_bert(compiled=True),
    "point_bert two blocks": _point_bert(llm={**TINY_LLM, "layers": [0, 1]}),
    "point_bert one group": _point_bert(num_groups=1),
    "neck cells": Host(build=_neck(empty="occupancy"), inputs=_MAPS, padded=_OTHER_MAPS, compiled=False),
    "neck residual": Host(build=_neck(empty="occupancy", residual=True), inputs=_MAPS, compiled=False),
    "neck seeds": Host(
        build=Recipe(FrozenLLMNeck, {"dim": _CHANNELS, "llm": TINY_LLM}, Seeds), inputs=(_noise(2, _CHANNELS, 9),)
    ),
}
