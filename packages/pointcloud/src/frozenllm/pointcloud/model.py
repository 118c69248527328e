"""Point-BERT with a frozen language-model block: timm's transformer blocks over groups of points.

The layer stands between the blocks and the final norm (Pang et al., ICLR 2024, section 4.3, and the official
``pointcloud_classification/models/Point_BERT.py``): groups, mini-PointNet, blocks, adapter in, language-model block,
adapter out, norm, class token beside the maximum over the groups, head.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from timm.models.vision_transformer import Block
from torch import Tensor, nn
from torch.nn import functional as F

from frozenllm.core import FrozenLLMLayer, LLMBlock, build_llm_layer
from frozenllm.pointcloud.ops import farthest_point_sample, gather, knn

__all__ = ["Groups", "MiniPointNet", "PointBERT", "group_points"]

LLM = str | Mapping[str, Any] | nn.Module | None


class Groups(NamedTuple):
    """A cloud in overlapping groups.

    Attributes:
        neighbours: Points relative to their group's centre, ``(B, G, K, 3)``.
        centers: ``(B, G, 3)``.
        index: Which points these are, ``(B, G, K)`` int64.
    """

    neighbours: Tensor
    centers: Tensor
    index: Tensor


def group_points(points: Tensor, num_groups: int, group_size: int) -> Groups:
    """Centres by farthest point sampling from the first point on, and the nearest points of each.

    Args:
        points: ``(B, N, 3)``.
        num_groups: Number of centres G. A cloud with fewer points has its first point for a centre again and again.
        group_size: Points of a group K, the centre itself among them.

    Raises:
        ValueError: The clouds have no points, fewer than a group, or other values than finite coordinates.
    """
    if points.ndim == 3 and 0 < points.shape[1] < group_size:
        raise ValueError(f"Clouds of {points.shape[1]} points are smaller than a group of {group_size}.")
    centers = gather(points, farthest_point_sample(points, num_groups))
    index = knn(centers, points, group_size)
    return Groups(gather(points, index) - centers.unsqueeze(2), centers, index)


class MiniPointNet(nn.Module):
    """The points of a group to a token: 3 -> 128 -> 256, the maximum beside each, 512 -> 512 -> ``dim``, maximum.

    Widths and names are those of the official checkpoints (``models/dvae.py``).

    Args:
        dim: Width of the tokens.
        widths: Widths inside: of the first layer, of the second, of the third.
    """

    def __init__(self, dim: int = 256, widths: tuple[int, int, int] = (128, 256, 512)) -> None:
        super().__init__()
        first, local, second = widths
        self.first_conv = nn.Sequential(
            nn.Conv1d(3, first, 1), nn.BatchNorm1d(first), nn.ReLU(inplace=True), nn.Conv1d(first, local, 1)
        )
        self.second_conv = nn.Sequential(
            nn.Conv1d(2 * local, second, 1), nn.BatchNorm1d(second), nn.ReLU(inplace=True), nn.Conv1d(second, dim, 1)
        )

    def forward(self, neighbours: Tensor) -> Tensor:
        """Tokens ``(B, G, dim)`` from points ``(B, G, K, 3)``."""
        batch, groups, size, _ = neighbours.shape
        first, norm_first, act_first, local = self.first_conv
        mix, norm_mix, act_mix, last = self.second_conv
        # Convolutions of length 1 are linear: all points of all groups are rows of one matrix.
        x = act_first(norm_first(_linear(neighbours.flatten(0, 2), first.weight, first.bias)))
        x = _linear(x, local.weight, local.bias)
        common = x.view(batch * groups, size, -1).max(dim=1).values
        # The layer on both side by side, without repeating the maximum for every point.
        of_common, of_local = mix.weight.split(common.shape[1], dim=1)
        shared = _linear(common, of_common, mix.bias).unsqueeze(1)
        x = (_linear(x, of_local).view(batch * groups, size, -1) + shared).flatten(0, 1)
        x = _linear(act_mix(norm_mix(x)), last.weight, last.bias)
        return x.view(batch, groups, size, -1).max(dim=2).values


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """A convolution of length 1, weight ``(out, in, 1)``, on rows."""
    return F.linear(x, weight.squeeze(-1), bias)


class PointBERT(nn.Module):
    """Classifier of point clouds. Defaults are the paper's (appendix C.2; 1024 points).

    Host weights are drawn before the frozen layer is built: under one seed, hosts with and without it start equal.

    Args:
        num_classes: Outputs. The official code has 40 for every data set.
        embed_dim: Width of the tokens.
        depth: Number of transformer blocks.
        num_heads: Their attention heads.
        num_groups: Groups of a cloud, each of which becomes a token.
        group_size: Points of a group.
        encoder_dim: Width of the mini-PointNet's output.
        encoder_widths: Widths inside the mini-PointNet.
        pos_dim: Width inside the MLP that makes position embeddings of the centres.
        head_dim: Width inside the head.
        drop_path_rate: Stochastic depth of the last block; rises linearly from 0.
        head_dropout: Dropout inside the head.
        llm: What stands in the layer's place: a source of weights (``"bundled"``, a path, a hub repository), the
            mapping of the ``llm`` config group, a block, a ready layer with the forward signature of
            `frozenllm.core.FrozenLLMLayer`, or ``"none"``/None for the host alone. Adapters start as PyTorch's linear
            layers do, unless the mapping says otherwise (official code).

    Attributes:
        llm: The layer, or None.
    """

    def __init__(
        self,
        num_classes: int = 40,
        embed_dim: int = 384,
        depth: int = 12,
        num_heads: int = 6,
        num_groups: int = 64,
        group_size: int = 32,
        encoder_dim: int = 256,
        encoder_widths: tuple[int, int, int] = (128, 256, 512),
        pos_dim: int = 128,
        head_dim: int = 256,
        drop_path_rate: float = 0.1,
        head_dropout: float = 0.5,
        llm: LLM = None,
    ) -> None:
        super().__init__()
        _check_sizes(
            num_classes=num_classes, embed_dim=embed_dim, depth=depth, num_heads=num_heads, num_groups=num_groups,
            group_size=group_size, encoder_dim=encoder_dim, pos_dim=pos_dim, head_dim=head_dim,
        )  # fmt: skip
        if embed_dim % num_heads:
            raise ValueError(f"embed_dim must be a multiple of num_heads, but {embed_dim} is not one of {num_heads}.")
        if not isinstance(encoder_widths, Sequence) or len(encoder_widths) != 3:
            raise ValueError(f"encoder_widths must be three numbers, not {encoder_widths!r}.")
        for name, rate in (("drop_path_rate", drop_path_rate), ("head_dropout", head_dropout)):
            if not isinstance(rate, int | float) or not 0 <= rate < 1:
                raise ValueError(f"{name} must be a number from 0 to below 1, not {rate!r}.")
        self.num_classes, self.embed_dim = num_classes, embed_dim
        self.num_groups, self.group_size = num_groups, group_size
        self.encoder = MiniPointNet(encoder_dim, tuple(encoder_widths))
        self.reduce_dim = nn.Linear(encoder_dim, embed_dim)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, embed_dim))
        self.cls_pos = nn.Parameter(torch.randn(1, 1, embed_dim))
        self.pos_embed = nn.Sequential(nn.Linear(3, pos_dim), nn.GELU(), nn.Linear(pos_dim, embed_dim))
        rates = [drop_path_rate * i / max(1, depth - 1) for i in range(depth)]
        # torch's norm, as in the official code: timm's own divides with an epsilon of 1e-6, and not in every version.
        self.blocks = nn.ModuleList(
            Block(embed_dim, num_heads, drop_path=rate, norm_layer=nn.LayerNorm) for rate in rates
        )
        self.norm = nn.LayerNorm(embed_dim)
        self.head = nn.Sequential(
            nn.Linear(2 * embed_dim, head_dim),
            nn.ReLU(inplace=True),
            nn.Dropout(head_dropout),
            nn.Linear(head_dim, num_classes),
        )
        self.llm = _build_layer(embed_dim, llm)

    def group(self, points: Tensor) -> Groups:
        """The cloud's groups, in the order of the tokens."""
        return group_points(points, self.num_groups, self.group_size)

    def tokens(self, points: Tensor, groups: Groups | None = None) -> Tensor:
        """The tokens where the frozen layer stands: after the blocks, class token first.

        Args:
            points: ``(B, N, 3)``; any N from ``group_size`` on.
            groups: Those of `group`, where they are known.

        Returns:
            ``(B, 1 + num_groups, embed_dim)``.

        Raises:
            ValueError: See `group_points`.
        """
        groups = self.group(points) if groups is None else groups
        x = self.reduce_dim(self.encoder(groups.neighbours))
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], dim=1)
        positions = torch.cat([self.cls_pos.expand(len(x), -1, -1), self.pos_embed(groups.centers)], dim=1)
        for block in self.blocks:
            x = block(x + positions)
        return x

    def forward_features(self, points: Tensor) -> Tensor:
        """All tokens after the frozen layer and the final norm, ``(B, 1 + num_groups, embed_dim)``."""
        x = self.tokens(points)
        return self.norm(x if self.llm is None else self.llm(x))

    def forward(self, points: Tensor) -> Tensor:
        """Class scores ``(B, num_classes)`` of clouds ``(B, N, 3)``."""
        x = self.forward_features(points)
        return self.head(torch.cat([x[:, 0], x[:, 1:].max(dim=1).values], dim=-1))


def _check_sizes(**sizes: Any) -> None:
    for name, size in sizes.items():
        if isinstance(size, bool) or not isinstance(size, int) or size < 1:
            raise ValueError(f"{name} must be a whole number from 1, not {size!r}.")


def _build_layer(dim: int, llm: LLM) -> nn.Module | None:
    if isinstance(llm, LLMBlock):
        return FrozenLLMLayer(dim, llm, adapter_init="default")
    if isinstance(llm, nn.Module):
        return llm
    return build_llm_layer(dim, llm, adapter_init="default")
