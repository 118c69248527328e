"""Hosts of the same operations: counted against closed forms, and the sizes that the configs state."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from frozenllm.core import BlockSpec, FrozenLLMLayer, random_block
from frozenllm.core.flops import count_flops
from frozenllm.core.training import build_model, compose_config
from frozenllm.core.training.cost import prediction_cost
from frozenllm.vision2d import matched
from frozenllm.vision2d.train import CONFIG

SEVEN_B = "{hidden_size: 4096, num_heads: 32, num_kv_heads: 32, head_dim: 128, intermediate_size: 11008}"


def vit_flops(depth: int, width: int, tokens: int, patches: int, patch: int, classes: int) -> int:
    """Operations of a vision transformer, two for a multiplication and addition."""
    block = 12 * tokens * width * width + 2 * tokens * tokens * width  # q, k, v, o and both MLP layers; attention
    return 2 * (depth * block + patches * width * 3 * patch * patch + width * classes)


def test_counted_operations_of_a_host_are_those_of_the_closed_form() -> None:
    model = build_model(compose_config(CONFIG, ["recipe=digits", "llm=none"])).eval()
    expected = vit_flops(depth=3, width=64, tokens=17, patches=16, patch=8, classes=10)
    with torch.no_grad():  # the fused attention of a CPU, too
        assert count_flops(lambda: model(torch.zeros(1, 3, 32, 32))) == expected
    assert prediction_cost(model, torch.zeros(1, 3, 32, 32))["flops"] == expected
    size = matched._size(compose_config(CONFIG, ["recipe=digits"]))
    assert (size.depth, size.embed_dim, size.num_heads, size.flops) == (3, 64, 2, expected)


def test_counted_operations_of_the_dense_layer_are_those_of_the_closed_form() -> None:
    spec = BlockSpec(hidden_size=64, num_heads=4, num_kv_heads=2, head_dim=16, intermediate_size=96)
    layer = FrozenLLMLayer(8, random_block(spec))
    n, d, width = 12, 64, 8
    kv = 32
    products = n * (2 * d * d + 2 * d * kv + 3 * d * 96) + 2 * n * n * d + 2 * n * d * width
    cost = prediction_cost(layer.train(), torch.zeros(1, n, width))
    assert cost["dense_flops"] == 2 * products
    assert cost["flops"] <= cost["dense_flops"]
    assert cost["latency"] > 0
    assert layer.exact == "auto"
    assert layer.training


def test_sizes_come_as_close_as_they_can() -> None:
    cfg = compose_config(CONFIG, ["recipe=digits"])
    targets = matched.target_flops(cfg)
    host = matched._size(cfg).flops
    assert host < targets["shortcuts"] < targets["official"]
    for target in targets.values():
        found = matched.match_host(cfg, target)
        assert (found.deeper.embed_dim, found.wider.depth) == (64, 3)
        for size, step in ((found.deeper, {"depth": 1}), (found.wider, {"embed_dim": found.wider.num_heads})):
            gap = abs(size.flops - target)
            for sign in (1, -1):
                changed = {key: getattr(size, key) + sign * value for key, value in step.items()}
                assert gap <= abs(matched._resized(cfg, **changed).flops - target)
    small = matched.match_host(cfg, 1)
    assert small.deeper == small.wider == replace(small.host)


def test_the_configs_hold_the_sizes_for_llama_7b() -> None:
    """The real sizes, counted: ViT-S with a block of LLaMA-7B's shape."""
    cfg = compose_config(CONFIG, ["recipe=imagenet_vit_small_llama", f"+llm.spec={SEVEN_B}", "llm.kind=random"])
    targets = matched.target_flops(cfg)
    assert targets["official"] == pytest.approx(2 * (40.2e9 + 4.6e9), rel=0.01)  # 40.2 GMAC of 197 tokens, and ViT-S
    for way, tail in (("shortcuts", ""), ("official", "_official")):
        found = matched.match_host(cfg, targets[way])
        deeper, wider = (
            compose_config(CONFIG, ["recipe=imagenet_vit_small", f"model=vit_small_{kind}{tail}"]).model
            for kind in ("deeper", "wider")
        )
        assert deeper.depth == found.deeper.depth
        assert (wider.embed_dim, wider.num_heads) == (found.wider.embed_dim, found.wider.num_heads)
