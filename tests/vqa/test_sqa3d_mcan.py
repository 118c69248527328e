"""MCAN's layers against dense references written here from its definition."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from frozenllm.vqa.scenes.mcan import LAYER_NORM_EPS, AttentionPool, GuidedAttention, SelfAttention

WIDTH, HEADS = 24, 4


def attend(layer: nn.MultiheadAttention, x: Tensor, y: Tensor, mask: Tensor) -> Tensor:
    """Multi-head attention of queries x (N, d) to the places of y (M, d) where mask (M,) is True, head by head."""
    weights, biases = layer.in_proj_weight.chunk(3), layer.in_proj_bias.chunk(3)
    q, k, v = (t @ w.T + b for t, w, b in zip((x, y, y), weights, biases, strict=True))
    size = WIDTH // HEADS
    heads = []
    for h in range(HEADS):
        part = slice(h * size, (h + 1) * size)
        scores = q[:, part] @ k[mask][:, part].T / math.sqrt(size)
        heads.append(scores.exp() / scores.exp().sum(1, keepdim=True) @ v[mask][:, part])
    return layer.out_proj(torch.cat(heads, dim=1))


def norm(layer: nn.LayerNorm, x: Tensor) -> Tensor:
    centred = x - x.mean(1, keepdim=True)
    return layer.weight * centred / (centred.square().mean(1, keepdim=True) + LAYER_NORM_EPS).sqrt() + layer.bias


def feed(layer: nn.Module, x: Tensor) -> Tensor:
    return layer.linear2(F.gelu(layer.linear1(x)))


def scatter(module: nn.Module) -> nn.Module:
    """Gains and biases that are not 1 and 0."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return module.eval()


def lengths(batch: int, most: int) -> Tensor:
    return torch.arange(most) < torch.randint(1, most + 1, (batch, 1))


@pytest.mark.parametrize("train", [False, True])
def test_self_attention_equals_its_definition(train: bool) -> None:
    torch.manual_seed(0)
    module = scatter(SelfAttention(WIDTH, HEADS, 2, dropout=0.0)).train(train)
    x, mask = torch.randn(3, 7, WIDTH), lengths(3, 7)
    out = module(x, mask)
    for row in range(3):
        y = x[row]
        for layer in module.layers:
            y = norm(layer.norm1, y + attend(layer.self_attn, y, y, mask[row]))
            y = norm(layer.norm2, y + feed(layer, y))
        torch.testing.assert_close(out[row][mask[row]], y[mask[row]], rtol=1e-4, atol=1e-5)


def test_guided_attention_equals_its_definition() -> None:
    torch.manual_seed(1)
    module = scatter(GuidedAttention(WIDTH, HEADS, 2, dropout=0.0))
    x, guide, mask, guide_mask = torch.randn(3, 6, WIDTH), torch.randn(3, 5, WIDTH), lengths(3, 6), lengths(3, 5)
    out = module(x, guide, mask, guide_mask)
    for row in range(3):
        y = x[row]
        for layer in module.layers:
            y = norm(layer.norm1, y + attend(layer.self_attn, y, y, mask[row]))
            y = norm(layer.norm2, y + attend(layer.multihead_attn, y, guide[row], guide_mask[row]))
            y = norm(layer.norm3, y + feed(layer, y))
        torch.testing.assert_close(out[row][mask[row]], y[mask[row]], rtol=1e-4, atol=1e-5)


def test_pool_equals_its_definition_and_ignores_what_is_masked() -> None:
    torch.manual_seed(2)
    pool = scatter(AttentionPool(WIDTH, 16, 10))
    x, mask = torch.randn(4, 6, WIDTH), lengths(4, 6)
    out, weights = pool(x, mask), pool.weights(x, mask)
    assert torch.equal(weights > 0, mask)
    torch.testing.assert_close(weights.sum(1), torch.ones(4))
    for row in range(4):
        kept = x[row][mask[row]]
        score = pool.score[3](F.gelu(pool.score[0](kept)))[:, 0].exp()
        torch.testing.assert_close(out[row], pool.merge((score / score.sum()) @ kept), rtol=1e-4, atol=1e-5)
    assert torch.equal(pool(x.masked_fill(~mask[..., None], float("nan")), mask), out)


def test_sizes_that_do_not_fit() -> None:
    for kind in (SelfAttention, GuidedAttention):
        with pytest.raises(ValueError, match="heads that divide its width"):
            kind(10, 4, 1)
