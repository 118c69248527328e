"""MCAN: words attend to words, objects to objects and words, and every set of tokens is pooled by its own attention.

Self-attention and guided attention are torch's post-norm encoder and decoder layers: (self-attention, feed-forward) and
(self-attention, attention to the guide, feed-forward), each with a residual sum and a LayerNorm behind it, the
feed-forward network four times as wide, with a GELU. SQA3D's own LayerNorm divides by the sample deviation, which
differs from torch's by a factor that its gain takes up.
"""

from __future__ import annotations

from torch import Tensor, nn

LAYER_NORM_EPS = 1e-6  # SQA3D's MCAN


class SelfAttention(nn.Module):
    """Layers in which tokens attend to each other (MCAN's SA).

    Args:
        width: Of the tokens.
        heads: Attention heads.
        layers: How many.
        dropout: Of attention probabilities, inside the feed-forward network, and of every sublayer's output.

    Raises:
        ValueError: The heads do not divide the width, or a size is not positive.
    """

    def __init__(self, width: int, heads: int, layers: int, dropout: float = 0.1) -> None:
        super().__init__()
        _check(width, heads, layers)
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(
                width, heads, 4 * width, dropout, "gelu", layer_norm_eps=LAYER_NORM_EPS, batch_first=True
            )
            for _ in range(layers)
        )

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """(B, N, width) with mask (B, N) bool, False = nobody attends to it; shaped as it came."""
        for layer in self.layers:
            tokens = layer(tokens, src_key_padding_mask=~mask)
        return tokens


class GuidedAttention(nn.Module):
    """Layers in which tokens attend to each other, then to a guide (MCAN's SGA).

    Args:
        width: Of the tokens and of the guide.
        heads: Attention heads.
        layers: How many.
        dropout: See `SelfAttention`.

    Raises:
        ValueError: See `SelfAttention`.
    """

    def __init__(self, width: int, heads: int, layers: int, dropout: float = 0.1) -> None:
        super().__init__()
        _check(width, heads, layers)
        self.layers = nn.ModuleList(
            nn.TransformerDecoderLayer(
                width, heads, 4 * width, dropout, "gelu", layer_norm_eps=LAYER_NORM_EPS, batch_first=True
            )
            for _ in range(layers)
        )

    def forward(self, tokens: Tensor, guide: Tensor, mask: Tensor, guide_mask: Tensor) -> Tensor:
        """(B, N, width) guided by (B, L, width), with masks (B, N) and (B, L) bool; shaped as it came."""
        for layer in self.layers:
            tokens = layer(tokens, guide, tgt_key_padding_mask=~mask, memory_key_padding_mask=~guide_mask)
        return tokens


class AttentionPool(nn.Module):
    """One vector from a set of tokens: their mean, weighted by what a small network says of each (MCAN's AttFlat).

    Args:
        width: Of the tokens.
        hidden: Inside the network.
        out: Of the vector.
        dropout: Inside the network.
    """

    def __init__(self, width: int, hidden: int, out: int, dropout: float = 0.1) -> None:
        super().__init__()
        self.score = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Dropout(dropout), nn.Linear(hidden, 1))
        self.merge = nn.Linear(width, out)

    def weights(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """(B, N): weights of (B, N, width), which sum to 1 over the places where mask (B, N) bool is True."""
        return self.score(tokens)[..., 0].float().masked_fill(~mask, float("-inf")).softmax(dim=1)

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """(B, out). Every row of the mask must have a True."""
        weights = self.weights(tokens, mask).to(tokens.dtype)
        tokens = tokens.masked_fill(~mask.unsqueeze(-1), 0.0)
        return self.merge((weights.unsqueeze(-1) * tokens).sum(dim=1))


def _check(width: int, heads: int, layers: int) -> None:
    if min(width, heads) < 1 or layers < 0 or width % heads:
        raise ValueError(f"MCAN needs positive sizes and heads that divide its width, not {heads} for {width}.")
