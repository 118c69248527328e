"""Co-attention against a dense reference written from METER's description, and padding that must not leak."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from frozenllm.vqa.meter.fusion import CoAttention

HEADS, WIDTH = 2, 8


def make(layers: int = 3, dropout: float = 0.0) -> CoAttention:
    torch.manual_seed(0)
    fusion = CoAttention(WIDTH, HEADS, layers, dropout=dropout)
    for parameter in fusion.parameters():
        nn.init.normal_(parameter, std=0.5)
    return fusion.eval()


def attend(module: nn.MultiheadAttention, x: Tensor, y: Tensor, mask: Tensor) -> Tensor:
    """x (L, w) attends to those of y (M, w) where mask (M,) is True; head by head, row by row."""
    wq, wk, wv = module.in_proj_weight.chunk(3)
    bq, bk, bv = module.in_proj_bias.chunk(3)
    q, k, v = F.linear(x, wq, bq), F.linear(y, wk, bk), F.linear(y, wv, bv)
    size = WIDTH // HEADS
    heads = []
    for h in range(HEADS):
        part = slice(h * size, (h + 1) * size)
        scores = q[:, part] @ k[:, part].T / math.sqrt(size)
        scores[:, ~mask] = -math.inf
        heads.append(scores.softmax(-1) @ v[:, part])
    return F.linear(torch.cat(heads, -1), module.out_proj.weight, module.out_proj.bias)


def norm(x: Tensor, module: nn.LayerNorm) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + 1e-12).sqrt() * module.weight + module.bias


def layer(module: nn.TransformerDecoderLayer, x: Tensor, y: Tensor, x_mask: Tensor, y_mask: Tensor) -> Tensor:
    x = norm(x + attend(module.self_attn, x, x, x_mask), module.norm1)
    x = norm(x + attend(module.multihead_attn, x, y, y_mask), module.norm2)
    inner = F.linear(x, module.linear1.weight, module.linear1.bias)
    inner = 0.5 * inner * (1 + torch.erf(inner / math.sqrt(2)))
    return norm(x + F.linear(inner, module.linear2.weight, module.linear2.bias), module.norm3)


def reference(fusion: CoAttention, text: Tensor, image: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """One sample at a time; both modalities read what the other was before the layer."""
    texts, images = [], []
    for t, v, m in zip(text, image, mask, strict=True):
        every = torch.ones(len(v), dtype=torch.bool)
        for a, b in zip(fusion.text_layers, fusion.image_layers, strict=True):
            t, v = layer(a, t, v, m, every), layer(b, v, t, every, m)
        texts.append(t)
        images.append(v)
    return torch.stack(texts), torch.stack(images)


@torch.no_grad()
def test_equals_the_dense_reference() -> None:
    fusion = make()
    text, image = torch.randn(3, 5, WIDTH), torch.randn(3, 4, WIDTH)
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [1, 1, 1, 1, 0]], dtype=torch.bool)
    wanted_text, wanted_image = reference(fusion, text, image, mask)
    found_text, found_image = fusion(text, image, mask)
    torch.testing.assert_close(found_image, wanted_image, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found_text[mask], wanted_text[mask], rtol=1e-4, atol=1e-5)


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(1, 6), min_size=1, max_size=4), st.integers(0, 3))
@torch.no_grad()
def test_padding_does_not_leak(lengths: list[int], more: int) -> None:
    """A text gives the same alone and in a batch with longer ones, whatever stands at its padding."""
    fusion = make(2)
    longest = max(lengths) + more
    text, image = torch.randn(len(lengths), longest, WIDTH), torch.randn(len(lengths), 3, WIDTH)
    mask = torch.arange(longest)[None] < torch.tensor(lengths)[:, None]
    batch_text, batch_image = fusion(text.masked_fill(~mask[..., None], 1e3), image, mask)
    for i, length in enumerate(lengths):
        alone_text, alone_image = fusion(text[i : i + 1, :length], image[i : i + 1], mask[i : i + 1, :length])
        torch.testing.assert_close(batch_text[i, :length], alone_text[0], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(batch_image[i], alone_image[0], rtol=1e-4, atol=1e-5)


def test_dropout_is_where_bert_has_it() -> None:
    """After every sublayer and on attention probabilities, not inside the feed-forward network."""
    for module in make(1, dropout=0.3).text_layers:
        assert module.dropout.p == 0.0
        assert {module.dropout1.p, module.dropout2.p, module.dropout3.p, module.self_attn.dropout} == {0.3}


def test_start_and_wrong_sizes() -> None:
    fusion = CoAttention(64, 4, 1)
    first = fusion.image_layers[0]
    for weight in (first.self_attn.in_proj_weight, first.multihead_attn.out_proj.weight, first.linear1.weight):
        assert weight.std().item() == pytest.approx(0.02, rel=0.1)
    assert not first.linear2.bias.any()
    assert not first.self_attn.in_proj_bias.any()
    with pytest.raises(ValueError, match="heads that divide"):
        CoAttention(10, 3, 1)
