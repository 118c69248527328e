"""Ratios, ranks, outputs by depth and gradient coherence against direct computation."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from frozenllm.core.analysis import block_outputs, effective_rank, gradient_coherence, inside_outside


def test_ratio_of_hand_made_activations():
    active = torch.tensor([[4.0, 2.0, 1.0, 1.0], [1.0, 0.0, 0.0, 0.0], [1.0, 2.0, 3.0, 4.0]])
    relevant = torch.tensor([[True, True, False, False], [True, False, False, False], [True] * 4])
    ratio = inside_outside(active, relevant)
    assert ratio[0] == 3.0
    assert ratio[1:].isnan().all()
    counted = torch.tensor([[True, False, True, True]] * 3)
    assert inside_outside(active, relevant, counted)[0] == 4.0


def test_rank_of_known_spectra():
    directions = torch.linalg.qr(torch.randn(12, 4, dtype=torch.float64)).Q
    scores = torch.linalg.qr(torch.randn(9, 4, dtype=torch.float64)).Q
    values = torch.tensor([4.0, 2.0, 1.0, 1.0], dtype=torch.float64)
    tokens = ((scores * values) @ directions.T)[None]
    shares = values.numpy() / 8
    expected = math.exp(-(shares * np.log(shares)).sum())
    assert effective_rank(tokens, centred=False).item() == pytest.approx(expected, rel=1e-5)
    line = torch.arange(6.0)[:, None] * torch.randn(1, 8)
    assert effective_rank(line[None] + 100).item() == pytest.approx(1.0, abs=1e-3)
    assert effective_rank(torch.full((1, 5, 8), 3.7)).item() == 0.0
    assert effective_rank(torch.eye(6)[None], centred=False).item() == pytest.approx(6.0)


def test_padding_has_no_rank():
    tokens = torch.randn(2, 7, 5)
    mask = torch.tensor([[True] * 4 + [False] * 3, [True] * 7])
    filled = tokens.masked_fill(~mask[..., None], 1e5)
    assert torch.allclose(effective_rank(filled, mask)[0], effective_rank(tokens[:1, :4])[0])
    assert torch.allclose(effective_rank(filled, mask)[1], effective_rank(tokens[1:])[0])


def test_outputs_by_depth_are_timms_intermediates():
    timm = pytest.importorskip("timm", reason="timm is the oracle")
    host = timm.create_model("vit_tiny_patch16_224", img_size=32, depth=3, embed_dim=24, num_heads=2).eval()
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        plain = host(images)
        with block_outputs(host.blocks) as depth:
            assert torch.equal(host(images), plain)
        expected = host.forward_intermediates(
            images, output_fmt="NLC", return_prefix_tokens=True, intermediates_only=True
        )
    assert list(depth) == [0, 1, 2]
    for found, (patches, prefix) in zip(depth.values(), expected, strict=True):
        assert torch.equal(found, torch.cat([prefix, patches], dim=1))
    assert not host.blocks[0]._forward_hooks


def test_coherence_is_the_mean_cosine_of_pairs():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3))
    inputs, targets = torch.randn(7, 6), torch.randint(3, (7,))

    def losses():
        return (nn.functional.cross_entropy(model(x[None]), y[None]) for x, y in zip(inputs, targets, strict=True))

    found = gradient_coherence(losses(), model[0].parameters())
    assert all(p.grad is None for p in model.parameters())
    gradients = []
    for loss in losses():
        model.zero_grad()
        loss.backward()
        gradients.append(torch.cat([p.grad.flatten() for p in model[0].parameters()]).double().numpy())
    cosines = [
        float(a @ b / np.linalg.norm(a) / np.linalg.norm(b)) for i, a in enumerate(gradients) for b in gradients[:i]
    ]
    assert found.value == pytest.approx(np.mean(cosines), abs=1e-6)
    np.testing.assert_allclose(found.norms, [np.linalg.norm(g) for g in gradients], rtol=1e-5)
    interval = found.interval()
    assert interval.low < interval.value < interval.high
    assert interval == found.interval()


def test_coherence_of_gradients_that_are_known():
    weight = nn.Parameter(torch.zeros(2))
    unused = nn.Parameter(torch.zeros(3))
    same = gradient_coherence((weight @ torch.tensor([1.0, 2.0]) * k for k in (1, 2, 3)), [weight, unused])
    assert same.value == pytest.approx(1.0)
    assert (same.interval().low, same.interval().high) == pytest.approx((1.0, 1.0))
    directions = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, 0.0]])
    mixed = gradient_coherence((weight @ d for d in directions), [weight])
    assert mixed.value == pytest.approx(-1 / 3)  # 0, -1 and 0; the gradient of zero has no direction
    with pytest.raises(ValueError, match="two gradients"):
        gradient_coherence([weight.sum()], [weight])
    with pytest.raises(ValueError, match="trained"):
        gradient_coherence([weight.sum()], [weight.detach()])
