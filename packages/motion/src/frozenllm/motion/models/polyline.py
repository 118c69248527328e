"""From the vectors of a polyline to one token: VectorNet's sub-graph network (Gao et al., CVPR 2020)."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class PolylineEncoder(nn.Module):
    """Linear, LayerNorm and ReLU on every vector, joined with their maximum over the polyline, several times.

    The published network ends with one more join before the last maximum, which repeats every number once: left out.

    Args:
        features: Numbers per vector.
        width: Numbers per vector after each layer but the last.
        layers: Number of layers.
        dim: Width of the token.
    """

    def __init__(self, features: int, width: int, layers: int, dim: int) -> None:
        super().__init__()
        if layers < 1:
            raise ValueError(f"A polyline encoder needs at least one layer, not {layers}.")
        widths = [features, *[2 * width] * (layers - 1)]
        self.layers = nn.ModuleList(
            nn.Sequential(nn.Linear(size, out), nn.LayerNorm(out), nn.ReLU())
            for size, out in zip(widths, [width] * (layers - 1) + [dim], strict=True)
        )

    def forward(self, vectors: Tensor, valid: Tensor) -> Tensor:
        """Encode polylines.

        Args:
            vectors: (B, N, S, features).
            valid: (B, N, S) bool; what stands elsewhere is not read.

        Returns:
            (B, N, dim); zeros for a polyline without a valid vector.
        """
        padding = ~valid[..., None]
        x = vectors.masked_fill(padding, 0.0)
        for index, layer in enumerate(self.layers):
            x = layer(x).masked_fill(padding, 0.0)  # nothing is below zero here, so padding never is the maximum
            summary = x.amax(dim=-2, keepdim=True)
            if index + 1 < len(self.layers):
                x = torch.cat([x, summary.expand_as(x)], dim=-1)
        return summary.squeeze(-2)


def with_attributes(vectors: Tensor, attributes: Tensor) -> Tensor:
    """What describes a polyline (B, N, C), put behind the numbers of each of its vectors (B, N, S, F)."""
    spread = attributes[:, :, None].expand(*vectors.shape[:3], attributes.shape[-1])
    return torch.cat([vectors, spread.to(vectors.dtype)], dim=-1)
