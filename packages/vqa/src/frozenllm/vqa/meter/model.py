"""METER with a frozen language-model block: CLIP and RoBERTa, co-attention, the block, poolers and heads.

The paper has the block after the fusion, on the visual tokens (section 4.5, appendix C.5), and no more detail. Here it
stands between the last co-attention layer and the image pooler, which reads the class token alone: so only that token's
output is computed (``readout``), with all others as context.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from frozenllm.core import build_llm_layer
from frozenllm.vqa.answers import AnswerSpace
from frozenllm.vqa.meter.encoders import ImageEncoder, TextEncoder
from frozenllm.vqa.meter.fusion import INIT_STD, CoAttention, init_like_bert

LLM = Mapping[str, Any] | str | None
INSERTS = {"visual": ("visual",), "text": ("text",), "both": ("visual", "text")}
FIRST = slice(0, 1)


class Pooler(nn.Module):
    """tanh of a linear map of the first token."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.dense = nn.Linear(width, width)

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, N, width) -> (B, width)."""
        return self.dense(tokens[:, 0]).tanh()


class MeterTrunk(nn.Module):
    """From image and text to one vector.

    The host's weights are drawn before the frozen layer is built: under one seed, hosts with and without start equal.

    Args:
        image_encoder: The image encoder.
        text_encoder: The text encoder.
        width: Width of the fusion.
        heads: Its attention heads.
        layers: Its layers, per modality.
        dropout: Its dropout.
        init_std: Deviation of all weights but the encoders' and the frozen layer's at the start.
        llm: The frozen layer, see `frozenllm.core.build_llm_layer`; None for the host alone. Adapters start from a
            truncated normal distribution of std 0.02, unless it says otherwise: METER starts its own layers so.
        insert: Whose tokens pass through it, ``"visual"``, ``"text"`` or ``"both"``.
        blind: Replace every image by zeros: the question-only model, which says what questions alone give away.

    Attributes:
        llm: The frozen layers by modality, ``llm.visual`` and ``llm.text``; empty for the host alone.

    Raises:
        ValueError: An option is unknown.
    """

    def __init__(
        self,
        image_encoder: ImageEncoder,
        text_encoder: TextEncoder,
        *,
        width: int = 768,
        heads: int = 12,
        layers: int = 6,
        dropout: float = 0.1,
        init_std: float = INIT_STD,
        llm: LLM = None,
        insert: str = "visual",
        blind: bool = False,
    ) -> None:
        super().__init__()
        if insert not in INSERTS:
            raise ValueError(f"insert must be one of {', '.join(INSERTS)}, not {insert!r}.")
        self.width = width
        self.blind = blind
        self.image_encoder = image_encoder
        self.text_encoder = text_encoder
        self.image_map = nn.Linear(image_encoder.width, width)
        self.text_map = nn.Linear(text_encoder.width, width)
        self.type_embedding = nn.Embedding(2, width)  # 0: text, 1: image
        self.fusion = CoAttention(width, heads, layers, dropout=dropout)
        self.image_pooler = Pooler(width)
        self.text_pooler = Pooler(width)
        self.init_std = init_std
        poolers = (self.image_pooler, self.text_pooler)
        for module in (self.image_map, self.text_map, self.type_embedding, self.fusion, *poolers):
            init_like_bert(module, init_std)
        self.llm = nn.ModuleDict()
        for place in INSERTS[insert]:
            layer = build_llm_layer(width, llm, adapter_init="trunc_normal")
            if layer is not None:
                self.llm[place] = layer

    def encode_image(self, pixel_values: Tensor) -> Tensor:
        """Images (B, 3, H, W) -> tokens (B, N, width), as they enter the fusion."""
        size = self.image_encoder.image_size
        if pixel_values.ndim != 4 or tuple(pixel_values.shape[1:]) != (3, size, size):
            raise ValueError(f"Images must have shape (batch, 3, {size}, {size}), not {tuple(pixel_values.shape)}.")
        if self.blind:
            pixel_values = torch.zeros_like(pixel_values)
        return self.image_map(self.image_encoder(pixel_values)) + self.type_embedding.weight[1]

    def encode_text(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Token ids (B, L) and mask (B, L) bool -> tokens (B, L, width), as they enter the fusion."""
        return self.text_map(self.text_encoder(input_ids, attention_mask)) + self.type_embedding.weight[0]

    def join(self, image: Tensor, text: Tensor, attention_mask: Tensor) -> Tensor:
        """Encoded image (B, N, width) and text (B, L, width) -> (B, 2 * width): pooled text, pooled image."""
        text, image = self.fusion(text, image, attention_mask)
        if "visual" in self.llm:
            image = self.llm["visual"](image, readout=FIRST)
        if "text" in self.llm:
            text = self.llm["text"](text, mask=attention_mask, readout=FIRST)
        return torch.cat([self.text_pooler(text), self.image_pooler(image)], dim=-1)

    def tokens(self, pixel_values: Tensor, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """The visual tokens (B, N, width) after the fusion: what the frozen layer reads, the class token first."""
        text = self.encode_text(input_ids, attention_mask)
        return self.fusion(text, self.encode_image(pixel_values), attention_mask)[1]

    def forward(self, pixel_values: Tensor, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Images (B, 3, H, W), token ids (B, L), mask (B, L) bool -> (B, 2 * width)."""
        text = self.encode_text(input_ids, attention_mask)
        return self.join(self.encode_image(pixel_values), text, attention_mask)


class MeterVQA(nn.Module):
    """Question answering as classification over an answer vocabulary.

    Args:
        trunk: The trunk.
        answers: The vocabulary, which checkpoints carry with them.
    """

    def __init__(self, trunk: MeterTrunk, answers: Sequence[str]) -> None:
        super().__init__()
        self.trunk = trunk
        self.answers = AnswerSpace(answers)
        width = 2 * trunk.width
        self.head = nn.Sequential(
            nn.Linear(width, width), nn.LayerNorm(width), nn.GELU(), nn.Linear(width, len(answers))
        )
        init_like_bert(self.head, trunk.init_std)

    def forward(self, pixel_values: Tensor, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Logits (B, answers) of images (B, 3, H, W) and questions (B, L); mask (B, L) bool, False = padding."""
        return self.head(self.trunk(pixel_values, input_ids, attention_mask))

    def tokens(self, pixel_values: Tensor, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """See `MeterTrunk.tokens`."""
        return self.trunk.tokens(pixel_values, input_ids, attention_mask)


class MeterRetrieval(nn.Module):
    """How well images and texts go together.

    Args:
        trunk: The trunk.
        freeze_match: Do not train the matching head. METER's fine-tuning keeps it frozen, as its pre-training left it;
            without pre-training it would stay random.
        pair_chunk: Most pairs that are fused at a time when all images meet all texts of a gallery.
    """

    def __init__(self, trunk: MeterTrunk, *, freeze_match: bool = False, pair_chunk: int = 256) -> None:
        super().__init__()
        if pair_chunk < 1:
            raise ValueError(f"pair_chunk must be positive, not {pair_chunk}.")
        self.trunk = trunk
        self.pair_chunk = pair_chunk
        self.match = nn.Linear(2 * trunk.width, 2)
        self.rank = nn.Linear(2 * trunk.width, 1)
        init_like_bert(self.match, trunk.init_std)
        self.start_rank()
        if freeze_match:
            self.match.requires_grad_(False)

    def start_rank(self) -> None:
        """Start the ranking head as the matching head's row for "they belong together" (METER's choice)."""
        with torch.no_grad():
            self.rank.weight.copy_(self.match.weight[1:])
            self.rank.bias.copy_(self.match.bias[1:])

    def forward(
        self,
        pixel_values: Tensor,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        gallery_ids: Tensor | None = None,
        gallery_mask: Tensor | None = None,
        match_with: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Scores; every image is encoded once, whatever the number of texts it meets.

        Args:
            pixel_values: (B, 3, H, W).
            input_ids: (B, T, L), T texts for every image.
            attention_mask: (B, T, L) bool, False = padding.
            gallery_ids: (G, L), texts that every image meets, in place of texts of its own.
            gallery_mask: (G, L) bool.
            match_with: (B,) index of the image in the batch that the first text of every row is matched with.

        Returns:
            ``rank``: (B, T) or (B, G); with ``match_with`` also ``match``: (B, 2) logits of "no" and "yes".
        """
        image = self.trunk.encode_image(pixel_values)
        if gallery_ids is not None:
            if gallery_mask is None:
                raise ValueError("A gallery needs its gallery_mask.")
            text = self.trunk.encode_text(gallery_ids, gallery_mask)
            return {"rank": self.score_all(image, text, gallery_mask)}
        if input_ids is None or attention_mask is None:
            raise ValueError("Give texts (input_ids and attention_mask), or a gallery.")
        batch, number, length = input_ids.shape
        mask = attention_mask.reshape(-1, length)
        text = self.trunk.encode_text(input_ids.reshape(-1, length), mask)
        pooled = self.trunk.join(image.repeat_interleave(number, dim=0), text, mask)
        scores = {"rank": self.rank(pooled).view(batch, number)}
        if match_with is not None:
            first = text.view(batch, number, length, -1)[:, 0]
            scores["match"] = self.match(self.trunk.join(image[match_with], first, attention_mask[:, 0]))
        return scores

    def score_all(self, image: Tensor, text: Tensor, mask: Tensor) -> Tensor:
        """Rank scores (B, T) of encoded images (B, N, width) with encoded texts (T, L, width), in chunks of pairs."""
        rows, columns = len(image), len(text)
        scores = []
        for start in range(0, rows * columns, self.pair_chunk):
            pair = torch.arange(start, min(start + self.pair_chunk, rows * columns), device=image.device)
            i, j = pair // columns, pair % columns
            scores.append(self.rank(self.trunk.join(image[i], text[j], mask[j]))[:, 0])
        return torch.cat(scores).view(rows, columns)

    def tokens(self, pixel_values: Tensor, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """See `MeterTrunk.tokens`."""
        return self.trunk.tokens(pixel_values, input_ids, attention_mask)
