"""Small random frozen layers of every shape, and their comparison with the dense reference."""

from __future__ import annotations

import torch
from dense_reference import reference_layer

from frozenllm.core import BlockRecord, BlockSpec, FrozenLLMLayer, LLMBlock
from frozenllm.core.plan import Plan
from frozenllm.core.record import hash_tensors

SPEC = BlockSpec(hidden_size=48, num_heads=4, num_kv_heads=4, head_dim=8, intermediate_size=64)

FAMILIES = {
    "llama": {},
    "gqa": dict(num_kv_heads=2),
    "wide_heads": dict(head_dim=20),
    "opt": dict(
        norm="layernorm",
        norm_eps=1e-5,
        gated=False,
        activation="relu",
        qkv_bias=True,
        out_bias=True,
        ffn_bias=True,
        rotary_base=None,
    ),
    "qwen2": dict(num_kv_heads=1, qkv_bias=True),
    "qwen3": dict(num_kv_heads=2, qk_norm="head"),
    "gemma2": dict(
        norm_offset=1.0,
        norm_placement="sandwich",
        activation="gelu_tanh",
        attn_softcap=2.0,
        query_scale=0.2,
        num_kv_heads=2,
        qkv_bias=True,
    ),
    "olmo2": dict(norm_placement="post_sublayer", qk_norm="full"),
    "opt_350m": dict(
        norm="layernorm",
        norm_placement="post_residual",
        gated=False,
        activation="relu",
        qkv_bias=True,
        out_bias=True,
        ffn_bias=True,
        rotary_base=None,
        final_norm=False,
    ),
    "neox": dict(
        norm="layernorm",
        residual="parallel",
        gated=False,
        activation="gelu",
        qkv_bias=True,
        out_bias=True,
        ffn_bias=True,
        rotary_fraction=0.25,
    ),
    "scaled": dict(residual_scale=0.3, query_scale=0.5),
}

# Every way in which the first layer may be computed, whether it would pay here or not.
PLANS = {
    "formed": Plan(False, False, False, False, 0.0),
    "folded_gram": Plan(True, True, True, False, 0.0),
    "folded_direct_norm": Plan(False, False, True, False, 0.0),
    "absorbed": Plan(True, False, False, True, 0.0),
    "absorbed_folded": Plan(True, True, True, True, 0.0),
}


def make_tensors(spec, seed, layers):
    generator = torch.Generator().manual_seed(seed)

    def tensor(name, shape):
        values = torch.randn(shape, generator=generator)
        if name.endswith("norm.weight"):
            return 1 + 0.3 * values - spec.norm_offset
        return values * (0.3 if len(shape) == 1 else shape[-1] ** -0.5)

    return [{n: tensor(n, s) for n, s in spec.tensor_shapes().items()} for _ in range(layers)]


def make_layer(spec, dim, layers=1, seed=0, dtype=torch.float32, **options):
    tensors = make_tensors(spec, seed, layers)
    specs = [spec] * layers
    record = BlockRecord("test", None, tuple(range(layers)), "float32", hash_tensors(specs, tensors, {}))
    torch.manual_seed(seed)
    layer = FrozenLLMLayer(dim, LLMBlock(specs, tensors, {}, record, dtype=dtype), **options)
    return layer, tensors


def reference(layer, tensors, tokens, **options):
    double = [{name: tensor.double() for name, tensor in one.items()} for one in tensors]
    adapters = [a.weight.detach().double().requires_grad_() for a in (layer.adapter_in, layer.adapter_out)]
    tokens = tokens.detach().double().requires_grad_()
    output = reference_layer(tokens, *adapters, double, layer.block.specs, **options)
    return output, (tokens, *adapters)


def relative_error(a, b):
    return ((a.double() - b.double()).norm() / b.double().norm().clamp_min(1e-30)).item()


def compare(layer, tensors, tokens, readout=None, mask=None, forward=1e-5, backward=1e-4, **options):
    """Output and the gradients of input and both adapters, against the reference."""
    tokens = tokens.clone().requires_grad_()
    output = layer(tokens, mask=mask, readout=readout)
    expected, leaves = reference(layer, tensors, tokens, mask=mask, **options)
    if readout is not None:
        expected = (
            expected[torch.arange(len(expected))[:, None], readout]
            if isinstance(readout, torch.Tensor) and readout.ndim == 2
            else expected[:, readout]
        )
    assert output.shape == expected.shape
    weights = torch.randn(expected.shape, generator=torch.Generator().manual_seed(1))
    assert relative_error(output.detach(), expected.detach()) < forward
    got = torch.autograd.grad((output * weights).sum(), [tokens, layer.adapter_in.weight, layer.adapter_out.weight])
    want = torch.autograd.grad((expected * weights).sum(), leaves)
    for name, a, b in zip(("tokens", "adapter_in", "adapter_out"), got, want, strict=True):
        assert relative_error(a, b) < backward, name


def padding(batch, length, seed=0):
    """A mask with a valid first token in each sample and arbitrary padding behind it."""
    mask = torch.rand(batch, length, generator=torch.Generator().manual_seed(seed)) > 0.4
    mask[:, 0] = True
    return mask
