"""Co-attention: METER's fusion of text and image tokens (its ``BertCrossLayer``; paper section 4.5 builds on it).

Every layer of either modality is self-attention, cross-attention to the other modality, feed-forward, each followed by
the residual sum and a LayerNorm (post-norm): exactly torch's `TransformerDecoderLayer`, in both directions at once.
"""

from __future__ import annotations

from torch import Tensor, nn

INIT_STD = 0.02  # METER's objectives.py
LAYER_NORM_EPS = 1e-12  # METER builds its layers from transformers' RobertaConfig with this default


class CoAttention(nn.Module):
    """Two stacks of transformer layers that read each other's previous output.

    Args:
        width: Width of both modalities' tokens.
        heads: Attention heads.
        layers: Layers of each modality.
        ffn_width: Width inside the feed-forward networks; None for four times ``width``.
        dropout: Of attention probabilities and of every sublayer's output; as in BERT, none inside the feed-forward
            network.

    Raises:
        ValueError: The heads do not divide the width, or a size is not positive.
    """

    def __init__(
        self, width: int, heads: int, layers: int, *, ffn_width: int | None = None, dropout: float = 0.1
    ) -> None:
        super().__init__()
        if min(width, heads, layers) < 1 or width % heads:
            raise ValueError(f"Fusion needs positive sizes and heads that divide its width, not {heads} for {width}.")
        ffn_width = 4 * width if ffn_width is None else ffn_width

        def stack() -> nn.ModuleList:
            return nn.ModuleList(_layer(width, heads, ffn_width, dropout) for _ in range(layers))

        self.text_layers = stack()
        self.image_layers = stack()
        init_like_bert(self)

    def forward(
        self, text: Tensor, image: Tensor, text_mask: Tensor | None = None, image_mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Fuse.

        Args:
            text: (B, L, width).
            image: (B, N, width).
            text_mask: (B, L) bool, False = padding, which nobody attends to.
            image_mask: (B, N) bool; None where all tokens count.

        Returns:
            Text and image tokens, shaped as they came; what stands at padding is unspecified.
        """
        no_text = None if text_mask is None else ~text_mask
        no_image = None if image_mask is None else ~image_mask
        for read, look in zip(self.text_layers, self.image_layers, strict=True):
            text, image = (
                read(text, image, tgt_key_padding_mask=no_text, memory_key_padding_mask=no_image),
                look(image, text, tgt_key_padding_mask=no_image, memory_key_padding_mask=no_text),
            )
        return text, image


def init_like_bert(root: nn.Module, std: float = INIT_STD) -> None:
    """METER's start for everything but the pretrained encoders: N(0, std) weights, biases 0, LayerNorm 1 and 0."""
    for module in root.modules():
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, std=std)
        if isinstance(module, nn.MultiheadAttention):
            nn.init.normal_(module.in_proj_weight, std=std)
            nn.init.zeros_(module.in_proj_bias)
        if isinstance(module, nn.LayerNorm):
            nn.init.ones_(module.weight)
        if isinstance(getattr(module, "bias", None), nn.Parameter):
            nn.init.zeros_(module.bias)


def _layer(width: int, heads: int, ffn_width: int, dropout: float) -> nn.TransformerDecoderLayer:
    layer = nn.TransformerDecoderLayer(
        width, heads, ffn_width, dropout, "gelu", layer_norm_eps=LAYER_NORM_EPS, batch_first=True
    )
    layer.dropout.p = 0.0  # torch's dropout inside the feed-forward network, which BERT's layers do not have
    return layer
