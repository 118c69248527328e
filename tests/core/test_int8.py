"""Blocks stored as 8-bit integers: error, memory, exact shortcuts, moves, and what they refuse."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_models import make_model, save_model

from frozenllm.core import FrozenLLMLayer, LLMBlock, int8, load_block, reload_blocks, save_block
from frozenllm.core.int8 import dequantize_rows, int8_linear, quantize_rows


@pytest.fixture(params=["llama", "qwen2", "gemma2", "phi3", "opt", "gpt2", "gpt_neox", "olmo2"])
def pair(request, tmp_path):
    """A block as it is, and as integers."""
    folder = save_model(make_model(request.param), tmp_path / "model")
    return load_block(folder, [0, 1]), load_block(folder, [0, 1], quantize="int8")


def unpacked(block):
    """A plain block with the numbers of an int8 one."""
    return LLMBlock(block.specs, block.canonical_tensors(), block.final_norm_tensors(), block.record)


def run(layer, tokens, **options):
    """Output, and gradients of tokens and adapters."""
    tokens = tokens.clone().requires_grad_()
    layer.zero_grad()
    out = layer(tokens, **options)
    out.square().sum().backward()
    return [out.detach(), tokens.grad, layer.adapter_in.weight.grad.clone(), layer.adapter_out.weight.grad.clone()]


def close(one, other, tolerance):
    for a, b in zip(one, other, strict=True):
        assert (a - b).norm() <= tolerance * b.norm()


@settings(max_examples=50, deadline=None)
@given(rows=st.integers(1, 9), columns=st.integers(1, 40), power=st.integers(-12, 12), seed=st.integers(0, 999))
def test_rounding_is_within_half_a_step(rows, columns, power, seed):
    weight = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)) * 10.0**power
    weight[0] = 0
    integers, scale = quantize_rows(weight)
    assert integers.dtype == torch.int8
    assert integers.abs().max() <= 127
    error = (dequantize_rows(integers, scale) - weight).abs()
    assert (error <= 0.5001 * scale).all()
    assert (error[0] == 0).all()
    x = torch.randn(3, columns, generator=torch.Generator().manual_seed(seed))
    bias = torch.ones(rows)
    expected = torch.nn.functional.linear(x, dequantize_rows(integers, scale), bias)
    assert torch.equal(int8_linear(x, integers, scale, bias), expected)


def test_large_weights_are_unpacked_in_parts(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    x, grad = (torch.randn(2, 3, size, generator=generator, dtype=torch.float64) for size in (7, 10))
    integers, scale = quantize_rows(torch.randn(10, 7, generator=generator, dtype=torch.float64))
    results = []
    for limit in (2**24, 7 * 4, 1):  # all rows at once, 4 + 4 + 2, one by one
        monkeypatch.setattr(int8, "_UNPACKED", limit)
        inner = x.clone().requires_grad_()
        out = int8_linear(inner, integers, scale)
        out.backward(grad)
        results.append((out.detach(), inner.grad))
    for out, gradient in results[1:]:
        torch.testing.assert_close(out, results[0][0])
        torch.testing.assert_close(gradient, results[0][1])


def test_error_of_the_output(pair):
    exact, packed = pair
    h = torch.randn(2, 10, exact.hidden_size, generator=torch.Generator().manual_seed(0))
    for one, other in zip(packed.canonical_tensors(), exact.canonical_tensors(), strict=True):
        for name, tensor in one.items():
            assert tensor.ndim == 2 or torch.equal(tensor, other[name])
            assert (tensor - other[name]).norm() <= 0.008 * other[name].norm()
    update, expected = packed(h) - h, exact(h) - h
    assert 0 < (update - expected).norm() < 0.03 * expected.norm()


@pytest.mark.parametrize("positions", ["none", "rotary"])
@pytest.mark.parametrize("readout", [None, slice(0, 1)])
def test_shortcuts_are_exact_for_the_stored_numbers(pair, positions, readout):
    packed = pair[1]
    if positions == "rotary" and packed.specs[0].rotary_base is None:
        pytest.skip("the family has no rotary positions")
    tokens = torch.randn(2, 9, 12, generator=torch.Generator().manual_seed(0))
    mask = torch.ones(2, 9, dtype=torch.bool)
    mask[1, 6:] = False
    results = []
    for block, exact in ((packed, "auto"), (packed, "dense"), (unpacked(packed), "dense")):
        torch.manual_seed(0)
        layer = FrozenLLMLayer(12, block, positions=positions, exact=exact)
        results.append(run(layer, tokens, mask=mask, readout=readout))
    close(results[0], results[2], 1e-4)
    close(results[1], results[2], 1e-5)


def test_memory(pair):
    exact, packed = pair
    weights = sum(t.numel() for layer in exact.canonical_tensors() for t in layer.values() if t.ndim == 2)
    rows = sum(t.shape[0] for layer in exact.canonical_tensors() for t in layer.values() if t.ndim == 2)
    sizes = [sum(buffer.numel() * buffer.element_size() for buffer in block.buffers()) for block in pair]
    assert sizes[0] - sizes[1] == 3 * weights - 4 * rows
    saved = []

    def pack(tensor):
        saved.append(tensor)
        return tensor

    h = torch.randn(1, 2, packed.hidden_size, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        packed(h).sum().backward()
    smallest = min(t.numel() for layer in exact.canonical_tensors() for t in layer.values() if t.ndim == 2)
    assert any(tensor.dtype == torch.int8 for tensor in saved)
    assert all(tensor.numel() < smallest for tensor in saved if tensor.is_floating_point())


def test_moves_keep_the_integers(pair):
    packed = pair[1]
    before = [buffer.clone() for buffer in packed.buffers() if buffer.dtype == torch.int8]
    packed.to(torch.bfloat16)
    assert packed.dtype == torch.bfloat16
    assert packed.is_loaded
    after = [buffer for buffer in packed.buffers() if buffer.dtype == torch.int8]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    h = torch.randn(1, 3, packed.hidden_size).bfloat16()
    assert packed(h).dtype == torch.bfloat16


def test_lost_integers_are_read_again(pair):
    packed = pair[1]
    before = [buffer.clone() for buffer in packed.buffers()]
    model = FrozenLLMLayer(12, packed).to("meta")
    model.to_empty(device="cpu")
    assert not packed.is_loaded
    assert reload_blocks(model) == ["block"]
    assert all(torch.equal(a, b) for a, b in zip(before, packed.buffers(), strict=True))


def test_checkpoints_fit_either_storage(pair):
    exact, packed = (FrozenLLMLayer(12, block) for block in pair)
    assert packed.state_dict().keys() == exact.state_dict().keys()
    exact.load_state_dict(packed.state_dict())
    packed.load_state_dict(exact.state_dict())


def test_saved_integers_are_written_as_the_numbers_they_stand_for(pair, tmp_path):
    packed = pair[1]
    save_block(packed, tmp_path / "block.safetensors")
    again = load_block(tmp_path / "block.safetensors")
    for one, other in zip(again.canonical_tensors(), packed.canonical_tensors(), strict=True):
        assert all(torch.equal(one[name], other[name]) for name in one)
    assert again.record.sha256 != packed.record.sha256


def test_half_precision_scales(pair, tmp_path):
    exact = pair[0]
    save_block(exact, tmp_path / "block.safetensors")
    for dtype in (torch.float16, torch.bfloat16):
        packed = load_block(tmp_path / "block.safetensors", dtype=dtype, quantize="int8")
        for one, other in zip(packed.canonical_tensors(), exact.canonical_tensors(), strict=True):
            assert all((one[name].float() - other[name]).norm() <= 0.012 * other[name].norm() for name in one)


def test_refusals():
    with pytest.raises(ValueError, match=r'cannot be trained: load it without quantize="int8"'):
        load_block("bundled", quantize="int8").make_trainable()
    for wrong in ("int4", "fp8", 8):
        with pytest.raises(ValueError, match=r'quantize must be None or "int8"'):
            load_block("bundled", quantize=wrong)


def test_no_worse_than_torchao():
    quantization = pytest.importorskip("torchao.quantization")
    linear = torch.nn.Linear(256, 512, bias=False)
    weight = linear.weight.detach().clone()
    quantization.quantize_(linear, quantization.Int8WeightOnlyConfig())
    theirs = (linear.weight.dequantize() - weight).norm()
    assert (dequantize_rows(*quantize_rows(weight)) - weight).norm() <= 1.02 * theirs
