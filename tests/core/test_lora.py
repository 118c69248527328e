"""Low-rank updates: the same as adding ``B A`` to the weights, on every path."""

from __future__ import annotations

import copy
import dataclasses
from unittest import mock

import pytest
import torch
from small_layers import FAMILIES, PLANS, SPEC, compare, make_layer, padding

from frozenllm.core import FrozenLLMLayer, load_block, random_block, reload_blocks, save_block
from frozenllm.core import layer as layer_module


def add_updates(layer, tensors):
    """The tensors with the layer's updates added, as a merged checkpoint would hold them."""
    merged = []
    for decoder, one in zip(layer.block.decoder_layers, tensors, strict=True):
        one = dict(one)
        for stored, update in decoder.low_rank.items():
            for name, down, up in zip(decoder.layout()[f"{stored}_weight"], update.down, update.up, strict=True):
                one[name] = one[name] + update.scale * (up @ down).detach()
        merged.append(one)
    return merged


def randomise(layer):
    for name, parameter in layer.block.named_parameters():
        if ".up." in name:
            torch.nn.init.normal_(parameter, std=0.3)


@pytest.mark.parametrize("family", ["llama", "opt", "gqa", "qwen3", "gemma2"])
@pytest.mark.parametrize("readout", [None, slice(0, 1)], ids=["all", "one"])
@pytest.mark.parametrize("chosen", ["auto", *(name for name, plan in PLANS.items() if not plan.absorb)])
def test_update_equals_merged_weights(family, readout, chosen):
    spec = dataclasses.replace(SPEC, **FAMILIES[family])
    layer, tensors = make_layer(spec, 12, layers=2, lora_rank=3, lora_alpha=6)
    randomise(layer)
    pick = layer_module.plan if chosen == "auto" else lambda problem: PLANS["formed" if problem.dim is None else chosen]
    with mock.patch.object(layer_module, "plan", side_effect=pick):
        compare(layer, add_updates(layer, tensors), torch.randn(2, 6, 12), readout, padding(2, 6))


def test_update_starts_at_nothing_and_trains_alone():
    block = random_block(SPEC)
    plain = FrozenLLMLayer(12, block)
    layer = FrozenLLMLayer(12, block, lora_rank=2)
    layer.load_state_dict({**layer.state_dict(), **plain.state_dict()})
    tokens = torch.randn(2, 5, 12)
    torch.testing.assert_close(layer(tokens), plain(tokens))
    assert not list(block.parameters()), "the block that was given stays as it was"
    assert layer.block.layers[0].qkv_weight.data_ptr() == block.layers[0].qkv_weight.data_ptr()
    before = [t.clone() for t in block.buffers()]
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    for _ in range(2):
        layer(tokens).square().sum().backward()
        optimizer.step()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in layer.parameters())
    assert all(torch.equal(a, b) for a, b in zip(before, block.buffers(), strict=True))
    other = FrozenLLMLayer(12, block, lora_rank=2)
    other.load_state_dict(copy.deepcopy(layer.state_dict()))
    torch.testing.assert_close(other(tokens), layer(tokens))


def test_cached_folds_follow_the_updates():
    layer = FrozenLLMLayer(12, random_block(SPEC), lora_rank=2).eval()
    tokens = torch.randn(2, 5, 12)
    with torch.no_grad():
        before = layer(tokens)
        randomise(layer)
        after = layer(tokens)
        layer.clear_cache()
        torch.testing.assert_close(layer(tokens), after)
    assert not torch.allclose(before, after)


def test_compiles_without_graph_breaks():
    layer, tokens = FrozenLLMLayer(12, random_block(SPEC), lora_rank=2), torch.randn(2, 5, 12)
    randomise(layer)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(tokens), layer(tokens), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("quantize", [None, "int8"])
def test_a_block_is_saved_with_its_updates(quantize, tmp_path):
    layer = FrozenLLMLayer(12, load_block("bundled", quantize=quantize), lora_rank=2)
    untouched = save_block(layer.block, tmp_path / "block.safetensors")
    randomise(layer)
    record = save_block(layer.block, tmp_path / "merged.safetensors")
    merged = FrozenLLMLayer(12, load_block(tmp_path / "merged.safetensors"))
    merged.load_state_dict({k: v for k, v in layer.state_dict().items() if "adapter" in k}, strict=False)
    tokens = torch.randn(2, 5, 12)
    torch.testing.assert_close(merged(tokens), layer(tokens), rtol=1e-3, atol=1e-4)
    assert record.source == "bundled (trained)"
    assert quantize or untouched == layer.block.record, "updates of nothing change nothing"


def test_refilling_a_block_leaves_loaded_updates_alone():
    layer = FrozenLLMLayer(12, random_block(SPEC), lora_rank=2)
    randomise(layer)
    other = FrozenLLMLayer(12, random_block(SPEC), lora_rank=2).to("meta")
    other.load_state_dict(layer.state_dict(), assign=True)
    reload_blocks(other)
    tokens = torch.randn(2, 5, 12)
    assert torch.equal(other(tokens), layer(tokens))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(lora_rank=0), "lora_rank must lie between 1 and"),
        (dict(lora_rank=1000), "lora_rank must lie between 1 and"),
        (dict(lora_rank=2, trainable=True), "leave out trainable"),
        (dict(lora_alpha=2.0), "needs a lora_rank"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        FrozenLLMLayer(12, random_block(SPEC), **options)
