"""Taps of frozen layers against the dense reference, and that tapping changes nothing."""

from __future__ import annotations

import copy
import dataclasses

import pytest
import torch
from dense_reference import linear, norm, reference_block, reference_layer
from small_layers import FAMILIES, SPEC, make_layer, padding, relative_error
from torch import nn

from frozenllm.core import FrozenLLMLayer, MLPLayer, random_block
from frozenllm.core.analysis import magnitude, tapped

NAMES = ("host", "adapter_in", "attention", "attention_residual", "ffn", "ffn_residual", "adapter_out")


def samples(function, x, mask):
    """A function of one sample (N, D) and its valid tokens, on a batch."""
    return torch.stack([function(one, None if mask is None else mask[i]) for i, one in enumerate(x.double())])


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("masked", [False, True])
def test_taps_equal_the_reference(family, masked):
    spec = dataclasses.replace(SPEC, **FAMILIES[family])
    layer, (tensors,) = make_layer(spec, 12)
    tokens, mask = torch.randn(3, 7, 12), padding(3, 7) if masked else None
    with torch.no_grad(), tapped(layer, attention_weights=True) as taps:
        layer(tokens, mask, readout=slice(0, 1))
    tensors = {name: tensor.double() for name, tensor in tensors.items()}
    adapters = [layer.adapter_in.weight.detach().double(), layer.adapter_out.weight.detach().double()]

    def close(name, expected):
        assert relative_error(taps[name], expected) < 2e-5, name

    assert taps["host"] is tokens
    assert taps["mask"] is mask
    entered = tokens.double() @ adapters[0].T
    close("adapter_in", entered)
    # With a feed-forward network that gives zero, the block ends after its attention.
    silent = {name: torch.zeros_like(t) if name.startswith("ffn.down") else t for name, t in tensors.items()}
    stream = samples(lambda one, valid: reference_block(one, silent, spec, valid), entered, mask)
    if spec.norm_placement == "post_residual":  # such a block normalises once more at its end
        assert relative_error(norm(taps["attention_residual"].double(), tensors, "ffn_norm", spec), stream) < 2e-5
        assert relative_error(norm(entered + taps["attention"], tensors, "attn_norm", spec),
                              taps["attention_residual"]) < 2e-5  # fmt: skip
    else:
        close("attention_residual", stream)
        close("attention", stream - entered)
    left = samples(lambda one, valid: reference_block(one, tensors, spec, valid), entered, mask)
    close("ffn_residual", left)
    stream = taps["attention_residual"].double()
    if spec.norm_placement == "post_residual":
        assert relative_error(norm(stream + taps["ffn"], tensors, "ffn_norm", spec), left) < 2e-5
    else:
        close("ffn", left - stream)
    close("adapter_out", reference_layer(tokens.double(), *adapters, [tensors], [spec], mask=mask))


@pytest.mark.parametrize("family", ["llama", "gqa", "gemma2", "qwen3", "neox"])
def test_attention_weights_explain_the_attention(family):
    """Weights times values, through the output projection, are what the attention adds."""
    spec = dataclasses.replace(SPEC, **FAMILIES[family])
    layer, (tensors,) = make_layer(spec, 12)
    mask = padding(3, 7)
    with torch.no_grad(), tapped(layer, attention_weights=True) as taps:
        layer(torch.randn(3, 7, 12), mask)
    weights = taps["attention_weights"]
    assert weights.shape == (3, spec.num_heads, 7, 7)
    torch.testing.assert_close(weights.sum(-1), torch.ones(3, spec.num_heads, 7))
    assert (weights.masked_select(~mask[:, None, None].expand_as(weights)) == 0).all()
    read = norm(taps["adapter_in"], tensors, "attn_norm", spec)
    values = linear(read, tensors, "attn.v").unflatten(-1, (spec.num_kv_heads, -1)).transpose(1, 2)
    heads = weights @ values.repeat_interleave(spec.num_heads // spec.num_kv_heads, dim=1)
    update = linear(heads.transpose(1, 2).flatten(-2), tensors, "attn.o")
    if spec.norm_placement == "sandwich":
        update = norm(update, tensors, "attn_out_norm", spec)
    assert relative_error(taps["attention"], update) < 1e-5


@pytest.mark.parametrize("readout", [None, slice(0, 1), [2, -1], torch.tensor([[1, 2], [3, 0], [5, 6]])])
@pytest.mark.parametrize("options", [{}, {"checkpoint_activations": True}, {"lora_rank": 2}, {"trainable": True}])
def test_a_tapped_run_gives_the_results_of_an_untapped_one(readout, options):
    layer, _ = make_layer(SPEC, 12, layers=2, **options)
    tokens, mask = torch.randn(3, 7, 12), padding(3, 7)
    before = dict(vars(layer))

    def run():
        layer.zero_grad()
        output = layer(tokens, mask, readout)
        output.square().sum().backward()
        return [output.detach(), *(p.grad.clone() for p in layer.parameters() if p.grad is not None)]

    plain = run()
    with tapped(layer) as taps:
        seen = run()
    for a, b in zip(plain, seen, strict=True):
        assert relative_error(b, a) < 1e-5
    assert taps["adapter_out"].shape == (3, 7, 12)
    assert vars(layer) == before
    assert not set(vars(layer.block.decoder_layers[0])) & {"tail", "attend", "ffn_update"}
    for a, b in zip(plain, run(), strict=True):  # and nothing stays behind
        assert torch.equal(a, b)


def test_gradients_reach_the_taps():
    layer, _ = make_layer(SPEC, 12)
    with tapped(layer) as taps:
        output = layer(torch.randn(2, 5, 12), readout=slice(0, 1))
        grads = torch.autograd.grad(output.sum(), [taps["adapter_in"], taps["adapter_out"]])
    assert grads[0].abs().max() > 0
    assert (grads[1][:, 1:] == 0).all()
    assert (grads[1][:, 0] == 1).all()


def test_every_block_of_several():
    layer, tensors = make_layer(SPEC, 12, layers=3)
    with torch.no_grad(), tapped(layer) as taps:
        layer(torch.randn(2, 5, 12))
    for index in range(2):
        h = taps[f"blocks.{index}.ffn_residual"].double()
        assert relative_error(taps[f"blocks.{index}.attention_residual"] + taps[f"blocks.{index}.ffn"], h) < 1e-5
        double = {name: tensor.double() for name, tensor in tensors[index + 1].items()}
        after = samples(lambda one, _, t=double: reference_block(one, t, SPEC), h, None)
        assert relative_error(taps[f"blocks.{index + 1}.ffn_residual"], after) < 1e-5
    assert taps["ffn"] is taps["blocks.2.ffn"]
    assert [name for name in taps.names if not name.startswith("blocks.")] == ["mask", *NAMES]


def test_an_mlp_in_the_blocks_place():
    torch.manual_seed(0)
    layer, tokens = MLPLayer(12, 48), torch.randn(2, 5, 12)
    with torch.no_grad(), tapped(layer) as taps:
        output = layer(tokens, readout=[3])
        assert torch.equal(taps["adapter_in"], tokens @ layer.adapter_in.weight.T)
    assert taps.names == ("mask", "host", "adapter_in", "adapter_out")
    assert torch.equal(taps["adapter_out"], layer(tokens))
    assert torch.equal(output, taps["adapter_out"][:, 3:4])
    with pytest.raises(ValueError, match="has no tap 'attention'; it has mask, host, adapter_in, adapter_out"):
        taps["attention"]


class Amid(nn.Module):
    """A host of a user's own: timm's vision transformer with the layer after its first block."""

    def __init__(self, block):
        super().__init__()
        timm = pytest.importorskip("timm", reason="timm is the oracle")
        self.vit = timm.create_model("vit_tiny_patch16_224", img_size=32, patch_size=8, depth=2, num_classes=3)
        self.vit.blocks[0] = nn.Sequential(self.vit.blocks[0], FrozenLLMLayer(192, block))

    def forward(self, images):
        return self.vit(images)


def test_a_model_of_a_users_own_with_the_layer_in_the_middle():
    torch.manual_seed(0)
    model, images = Amid(random_block(SPEC)).eval(), torch.randn(2, 3, 32, 32)
    with torch.no_grad(), tapped(model) as taps:
        logits = model(images)
        assert torch.equal(taps["host"], model.vit.blocks[0][0](model.vit.norm_pre(
            model.vit._pos_embed(model.vit.patch_embed(images)))))  # fmt: skip
        torch.testing.assert_close(model.vit.forward_head(model.vit.norm(model.vit.blocks[1](taps["adapter_out"]))),
                                   logits)  # fmt: skip
    with torch.no_grad():
        torch.testing.assert_close(model(images), logits)
    assert magnitude(taps["adapter_out"][:, 1:]).shape == (2, 16)


class Two(nn.Module):
    """Two layers that share one block, one after the other."""

    def __init__(self):
        super().__init__()
        block = random_block(SPEC)
        self.first, self.second = FrozenLLMLayer(12, block), FrozenLLMLayer(12, block)

    def forward(self, tokens):
        return self.second(self.first(tokens))


def test_several_layers_are_asked_by_name():
    model, tokens = Two(), torch.randn(2, 5, 12)
    with torch.no_grad(), tapped(model) as taps:
        model(tokens)
    first, second = taps.layers["first"], taps.layers["second"]
    assert second["host"] is first["adapter_out"]
    assert torch.equal(first["adapter_in"], tokens @ model.first.adapter_in.weight.T)
    assert torch.equal(second["adapter_in"], first["adapter_out"] @ model.second.adapter_in.weight.T)
    with pytest.raises(ValueError, match=r"several frozen layers \(first, second\)"):
        taps["host"]


def test_taps_may_be_nested_and_survive_errors():
    layer, _ = make_layer(SPEC, 12)
    tokens = torch.randn(2, 5, 12)
    with torch.no_grad(), tapped(layer) as outer:
        with tapped(layer, attention_weights=True) as inner:
            layer(tokens)
        assert torch.equal(inner["ffn"], outer["ffn"])
        first = outer["adapter_out"]
        layer(2 * tokens)
        assert inner["adapter_out"] is first
        assert outer["host"] is not inner["host"]
        with pytest.raises(ValueError, match="attention_weights=True"):
            outer["attention_weights"]
    with pytest.raises(ValueError, match="must have shape"), tapped(layer):
        layer(torch.randn(2, 5, 13))
    assert "forward" not in vars(layer)
    copy.deepcopy(layer)


def test_compiled_models_are_tapped():
    torch.compiler.reset()
    layer, _ = make_layer(SPEC, 12)
    compiled, tokens = torch.compile(layer, backend="eager"), torch.randn(2, 5, 12)
    with torch.no_grad():
        plain = compiled(tokens)
        with tapped(compiled) as taps:
            seen = compiled(tokens)
        assert relative_error(seen, plain) < 1e-5
        assert taps["adapter_out"].shape == plain.shape
        assert torch.equal(compiled(tokens), plain)


def test_models_without_a_layer_and_taps_before_a_run():
    with pytest.raises(ValueError, match="Linear has no frozen layer to tap"), tapped(nn.Linear(3, 3)):
        pass
    layer, _ = make_layer(SPEC, 12)
    with tapped(layer) as taps, pytest.raises(ValueError, match="run the model inside"):
        taps["host"]
