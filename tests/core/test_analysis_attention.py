"""Attention probabilities of hosts from several libraries, against transformers' own and torch's fused product."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from frozenllm.core.analysis import attention_of, class_attention
from frozenllm.core.analysis.attention import probabilities


@settings(max_examples=40, deadline=None)
@given(
    groups=st.integers(1, 3),
    queries=st.integers(1, 5),
    keys=st.integers(1, 5),
    mask=st.sampled_from(["none", "bool", "added", "causal"]),
    scale=st.sampled_from([None, 0.3]),
    seed=st.integers(0, 999),
)
def test_probabilities_explain_the_fused_product(groups, queries, keys, mask, scale, seed):
    generator = torch.Generator().manual_seed(seed)
    query = torch.randn(2, 2 * groups, queries, 4, generator=generator)
    key, value = torch.randn(2, 2, 2, keys, 4, generator=generator)
    options = {"scale": scale, "enable_gqa": groups > 1, "is_causal": mask == "causal"}
    if mask == "bool":
        options["attn_mask"] = torch.rand(2, 1, queries, keys, generator=generator) > 0.4
        options["attn_mask"][..., 0] = True
    if mask == "added":
        options["attn_mask"] = torch.randn(queries, keys, generator=generator)
    weights = probabilities(query, key, value, **options)
    expected = F.scaled_dot_product_attention(query, key, value, **options)
    torch.testing.assert_close(weights @ value.repeat_interleave(groups, dim=1), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_transformers_host(implementation):
    """Its eager attention hands out the probabilities itself."""
    sizes = dict(hidden_size=24, num_hidden_layers=3, num_attention_heads=2, intermediate_size=48)

    def build(attention: str) -> transformers.ViTModel:
        torch.manual_seed(0)
        config = transformers.ViTConfig(**sizes, image_size=16, patch_size=8, attn_implementation=attention)
        return transformers.ViTModel(config).eval()

    oracle, model = build("eager"), build(implementation)
    images = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        plain = model(images).last_hidden_state
        expected = oracle(images, output_attentions=True).attentions
        with attention_of(model) as seen:
            watched = model(images).last_hidden_state
    assert torch.equal(watched, plain)
    assert len(seen) == 3
    for ours, theirs in zip(seen, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("fused", [True, False])
def test_timm_host(fused):
    timm = pytest.importorskip("timm", reason="timm is the oracle")
    torch.manual_seed(0)
    model = timm.create_model("vit_tiny_patch16_224", img_size=32, depth=2, num_classes=3).eval()
    for block in model.blocks:
        block.attn.fused_attn = fused
    with torch.no_grad(), attention_of(model.blocks[-1]) as seen:
        model(torch.randn(2, 3, 32, 32))
    assert [tuple(weights.shape) for weights in seen] == [(2, 3, 5, 5)]
    torch.testing.assert_close(seen[0].sum(-1), torch.ones(2, 3, 5))
    assert class_attention(seen[0][..., 1:]).shape == (2, 4)
    assert "forward" not in vars(model.blocks[-1])


def test_a_query_that_sees_nothing():
    nothing = torch.zeros(1, 1, 2, 3, dtype=torch.bool)
    assert (probabilities(torch.randn(1, 1, 2, 4), *torch.randn(2, 1, 1, 3, 4), attn_mask=nothing) == 0).all()
