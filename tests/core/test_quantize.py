"""Blocks stored as 8-bit and 4-bit integers: error, memory, exact shortcuts, moves, and what they refuse."""

from __future__ import annotations

import pytest
import torch
from gguf import GGMLQuantizationType
from gguf_files import write_gguf
from hypothesis import given, settings
from hypothesis import strategies as st
from small_models import make_model, save_model

from frozenllm.core import FrozenLLMLayer, LLMBlock, load_block, packed, reload_blocks, save_block
from frozenllm.core.int4 import dequantize_groups, group_size, quantize_groups
from frozenllm.core.int8 import dequantize_rows, quantize_rows
from frozenllm.core.packed import pack, packed_linear, unpack

FAMILIES = ["llama", "qwen2", "gemma2", "phi3", "opt", "gpt2", "gpt_neox", "olmo2"]
ERRORS = {"int8": 0.008, "int4": 0.09}  # of normally distributed weights, relative: a twelfth of the scale's square


@pytest.fixture(scope="module", params=FAMILIES)
def folder(request, tmp_path_factory):
    """A small model, saved."""
    return save_model(make_model(request.param), tmp_path_factory.mktemp(request.param))


@pytest.fixture(params=ERRORS)
def pair(request, folder):
    """A block as it is, and as integers."""
    return load_block(folder, [0, 1]), load_block(folder, [0, 1], quantize=request.param)


def kind(block):
    return block.decoder_layers[0].quantize


def unpacked(block):
    """A plain block with the numbers of one that is stored as integers."""
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
@given(
    how=st.sampled_from(list(ERRORS)),
    rows=st.integers(1, 9),
    half=st.integers(1, 40),
    power=st.integers(-12, 12),
    seed=st.integers(0, 999),
)
def test_rounding_is_within_half_a_step(how, rows, half, power, seed):
    generator = torch.Generator().manual_seed(seed)
    columns = 2 * half
    weight = torch.randn(rows, columns, generator=generator) * 10.0**power
    weight[0] = 0
    integers, scale = pack(weight, how)
    stored = unpack(integers, scale)
    each = scale.repeat_interleave(columns // scale.shape[1], dim=1)
    error, steps = (stored - weight).abs(), weight / each
    assert (error[0] == 0).all()
    if how == "int8":
        assert integers.dtype == torch.int8
        assert integers.abs().max() <= 127
        assert (error <= 0.5001 * each).all()
    else:
        assert integers.dtype == torch.uint8
        assert integers.shape == (rows, half)
        clipped = steps > 7.5  # as large as the largest, and of the other sign
        assert (error <= torch.where(clipped, 1.0001, 0.5001) * each.abs()).all()
        assert not (clipped & (weight.sign() == -each.sign())).any()
    x, bias = torch.randn(3, columns, generator=generator), torch.ones(rows)
    expected = torch.nn.functional.linear(x, stored, bias)
    assert torch.equal(packed_linear(x, integers, scale, bias), expected)


def test_bytes_of_four_bits_by_hand():
    """The largest of a group is -8; columns 0 and 2 share a byte, 0 in its lower half."""
    weight = torch.tensor([[-4.0, 1.0, 0.5, 3.9], [0.0, 0.0, 0.0, 0.0], [0.1, 0.2, -0.3, 0.8]])
    integers, scale = quantize_groups(weight)
    assert scale.tolist() == [[0.5], [0.0], [pytest.approx(-0.1)]]
    assert integers.tolist() == [[0 + 16 * 9, 10 + 16 * 15], [8 + 16 * 8] * 2, [7 + 16 * 11, 6 + 16 * 0]]
    expected = torch.tensor([[-4.0, 1.0, 0.5, 3.5], [0.0] * 4, [0.1, 0.2, -0.3, 0.8]])
    torch.testing.assert_close(dequantize_groups(integers, scale), expected)
    assert [group_size(columns) for columns in (4096, 11008, 48, 80, 2, 74)] == [32, 32, 24, 20, 2, 2]
    with pytest.raises(ValueError, match="has 45"):
        group_size(45)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_q4_0_files_are_stored_without_loss(dtype, tmp_path):
    path = tmp_path / "model.gguf"
    write_gguf(make_model("llama", hidden_size=64, intermediate_size=96), path, GGMLQuantizationType.Q4_0)
    plain, four = (load_block(path, [1], dtype=dtype, quantize=how) for how in (None, "int4"))
    for name, tensor in plain.canonical_tensors()[0].items():
        assert torch.equal(four.canonical_tensors()[0][name], tensor), name


@pytest.mark.parametrize("how", ERRORS)
def test_large_weights_are_unpacked_in_parts(how, monkeypatch):
    generator = torch.Generator().manual_seed(0)
    x, grad = (torch.randn(2, 3, size, generator=generator, dtype=torch.float64) for size in (8, 10))
    integers, scale = pack(torch.randn(10, 8, generator=generator, dtype=torch.float64), how)
    results = []
    for limit in (2**24, 8 * 4, 1):  # all rows at once, 4 + 4 + 2, one by one
        monkeypatch.setattr(packed, "_UNPACKED", limit)
        inner = x.clone().requires_grad_()
        out = packed_linear(inner, integers, scale)
        out.backward(grad)
        results.append((out.detach(), inner.grad))
    for out, gradient in results[1:]:
        torch.testing.assert_close(out, results[0][0])
        torch.testing.assert_close(gradient, results[0][1])


def test_error_of_the_output(pair):
    exact, small = pair
    h = torch.randn(2, 10, exact.hidden_size, generator=torch.Generator().manual_seed(0))
    for one, other in zip(small.canonical_tensors(), exact.canonical_tensors(), strict=True):
        for name, tensor in one.items():
            assert tensor.ndim == 2 or torch.equal(tensor, other[name])
            assert (tensor - other[name]).norm() <= ERRORS[kind(small)] * other[name].norm()
    update, expected = small(h) - h, exact(h) - h
    assert 0 < (update - expected).norm() < 4 * ERRORS[kind(small)] * expected.norm()


@pytest.mark.parametrize("positions", ["none", "rotary"])
@pytest.mark.parametrize("readout", [None, slice(0, 1)])
def test_shortcuts_are_exact_for_the_stored_numbers(pair, positions, readout):
    small = pair[1]
    if positions == "rotary" and small.specs[0].rotary_base is None:
        with pytest.raises(ValueError, match="rotary"):
            FrozenLLMLayer(12, small, positions=positions)
        return
    tokens = torch.randn(2, 9, 12, generator=torch.Generator().manual_seed(0))
    mask = torch.ones(2, 9, dtype=torch.bool)
    mask[1, 6:] = False
    results = []
    for block, exact in ((small, "auto"), (small, "dense"), (unpacked(small), "dense")):
        torch.manual_seed(0)
        layer = FrozenLLMLayer(12, block, positions=positions, exact=exact)
        results.append(run(layer, tokens, mask=mask, readout=readout))
    close(results[0], results[2], 1e-4)
    close(results[1], results[2], 1e-5)


def test_memory(pair):
    exact, small = pair
    matrices = [t for layer in exact.canonical_tensors() for t in layer.values() if t.ndim == 2]
    sizes = [sum(buffer.nbytes for buffer in block.buffers()) for block in pair]
    if kind(small) == "int8":
        expected = sum(t.numel() + 4 * t.shape[0] for t in matrices)
    else:
        expected = sum(t.numel() // 2 + 4 * t.numel() // group_size(t.shape[1]) for t in matrices)
    assert sizes[0] - sizes[1] == 4 * sum(t.numel() for t in matrices) - expected
    saved = []

    def pack(tensor):
        saved.append(tensor)
        return tensor

    h = torch.randn(1, 2, small.hidden_size, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        small(h).sum().backward()
    smallest = min(t.numel() for t in matrices)
    assert any(tensor.dtype in (torch.int8, torch.uint8) for tensor in saved)
    assert all(tensor.numel() < smallest for tensor in saved if tensor.is_floating_point())


def test_moves_keep_the_integers(pair):
    small = pair[1]
    before = [buffer.clone() for buffer in small.buffers() if not buffer.is_floating_point()]
    small.to(torch.bfloat16)
    assert small.dtype == torch.bfloat16
    assert small.is_loaded
    after = [buffer for buffer in small.buffers() if not buffer.is_floating_point()]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    h = torch.randn(1, 3, small.hidden_size).bfloat16()
    assert small(h).dtype == torch.bfloat16


def test_lost_integers_are_read_again(pair):
    small = pair[1]
    before = [buffer.clone() for buffer in small.buffers()]
    model = FrozenLLMLayer(12, small).to("meta")
    model.to_empty(device="cpu")
    assert not small.is_loaded
    assert reload_blocks(model) == ["block"]
    assert all(torch.equal(a, b) for a, b in zip(before, small.buffers(), strict=True))


def test_checkpoints_fit_either_storage(pair):
    exact, small = (FrozenLLMLayer(12, block) for block in pair)
    assert small.state_dict().keys() == exact.state_dict().keys()
    exact.load_state_dict(small.state_dict())
    small.load_state_dict(exact.state_dict())


def test_saved_integers_are_written_as_the_numbers_they_stand_for(pair, tmp_path):
    small = pair[1]
    save_block(small, tmp_path / "block.safetensors")
    again = load_block(tmp_path / "block.safetensors")
    for one, other in zip(again.canonical_tensors(), small.canonical_tensors(), strict=True):
        assert all(torch.equal(one[name], other[name]) for name in one)
    assert again.record.sha256 != small.record.sha256


@pytest.mark.parametrize("how", ERRORS)
def test_half_precision_scales(how, folder):
    exact = load_block(folder, [0])
    for dtype in (torch.float16, torch.bfloat16):
        small = load_block(folder, [0], dtype=dtype, quantize=how)
        (one,), (other,) = small.canonical_tensors(), exact.canonical_tensors()
        assert all(
            (one[name].float() - other[name]).norm() <= (ERRORS[how] + 0.004) * other[name].norm() for name in one
        )


@pytest.mark.parametrize("how", ERRORS)
def test_low_rank_updates_of_integers_train(how):
    layer = FrozenLLMLayer(12, load_block("bundled", quantize=how), lora_rank=2)
    layer(torch.randn(2, 5, 12)).square().sum().backward()
    assert all(p.grad is not None for p in layer.block.parameters())
    for name, part in layer.block.decoder_layers[0].low_rank.items():
        expected = {"qkv": 256, "o": 256, "up": 256, "down": 688}[name]
        assert {tuple(down.shape) for down in part.down} == {(2, expected)}


def test_refusals():
    for how in ERRORS:
        with pytest.raises(ValueError, match=f'cannot be trained: load it without quantize="{how}"'):
            load_block("bundled", quantize=how).make_trainable()
    for wrong in ("int2", "fp8", 8):
        with pytest.raises(ValueError, match="quantize must be None, int8 or int4, not"):
            load_block("bundled", quantize=wrong)


def test_no_worse_than_torchao():
    quantization = pytest.importorskip("torchao.quantization")
    linear = torch.nn.Linear(256, 512, bias=False)
    weight = linear.weight.detach().clone()
    quantization.quantize_(linear, quantization.Int8WeightOnlyConfig())
    theirs = (linear.weight.dequantize() - weight).norm()
    assert (dequantize_rows(*quantize_rows(weight)) - weight).norm() <= 1.02 * theirs
