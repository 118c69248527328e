"""Dense path and every shortcut against the dense reference, forward and backward."""

from __future__ import annotations

import dataclasses
from unittest import mock

import pytest
import torch
from dense_reference import reference_layer
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from frozenllm.core import BlockRecord, BlockSpec, FrozenLLMLayer, LLMBlock
from frozenllm.core import layer as layer_module
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


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("exact", ["dense", "auto"])
def test_layer_equals_reference(family, masked, exact):
    spec = dataclasses.replace(SPEC, **FAMILIES[family])
    layer, tensors = make_layer(spec, 12, exact=exact)
    tokens = torch.randn(3, 7, 12)
    mask = padding(3, 7) if masked else None
    compare(layer, tensors, tokens, mask=mask)
    compare(layer, tensors, tokens, mask=mask, readout=slice(0, 1))
    compare(layer, tensors, tokens, mask=mask, readout=[2, -1, 0])


# A norm on keys switches absorbing off: test_absorbing_is_switched_off_where_it_does_not_hold.
COMBINATIONS = [(f, p) for f in FAMILIES for p in PLANS if "qk_norm" not in FAMILIES[f] or not PLANS[p].absorb]


@pytest.mark.parametrize(("family", "chosen"), COMBINATIONS)
@pytest.mark.parametrize("readout", [None, slice(0, 2)], ids=["all", "two"])
def test_every_plan_equals_reference(family, chosen, readout):
    spec = dataclasses.replace(SPEC, **FAMILIES[family])
    layer, tensors = make_layer(spec, 12)
    with mock.patch.object(layer_module, "plan", return_value=PLANS[chosen]):
        compare(layer, tensors, torch.randn(3, 7, 12), mask=padding(3, 7), readout=readout)
        layer.eval()
        with torch.no_grad():
            tokens = torch.randn(2, 5, 12)
            expected, _ = reference(layer, tensors, tokens)
            for _ in range(2):  # the second call reads the cache
                assert relative_error(layer(tokens, readout=readout), expected[:, readout or slice(None)]) < 1e-5


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_random_problems(data):
    draw = data.draw
    kv, groups = draw(st.integers(1, 3), "kv"), draw(st.integers(1, 3), "groups")
    kind = draw(st.sampled_from(["rmsnorm", "layernorm"]), "norm")
    bias = draw(st.booleans(), "bias")
    spec = BlockSpec(
        hidden_size=draw(st.integers(8, 64), "D"),
        num_heads=kv * groups,
        num_kv_heads=kv,
        head_dim=2 * draw(st.integers(1, 8), "head"),
        intermediate_size=draw(st.integers(4, 64), "F"),
        norm=kind,
        qkv_bias=bias,
        out_bias=bias,
        ffn_bias=bias,
        gated=draw(st.booleans(), "gated"),
        norm_placement=draw(st.sampled_from(["pre", "post_sublayer", "sandwich", "post_residual"]), "placement"),
        attn_softcap=draw(st.sampled_from([None, 3.0]), "softcap"),
    )
    seed = draw(st.integers(0, 2**20), "seed")
    layers, dim = draw(st.integers(1, 3), "layers"), draw(st.integers(2, 40), "d")
    batch, length = draw(st.integers(1, 3), "B"), draw(st.integers(1, 9), "N")
    output_norm = draw(st.sampled_from(["unit", "none"]), "output_norm")
    layer, tensors = make_layer(
        spec, dim, layers, seed, output_norm=output_norm, checkpoint_activations=draw(st.booleans(), "checkpoint")
    )
    mask = padding(batch, length, seed) if draw(st.booleans(), "masked") else None
    rows = st.lists(st.integers(0, length - 1), min_size=1, max_size=length)
    readout = draw(st.one_of(st.none(), rows, rows.map(lambda r: torch.tensor([r] * batch))), "readout")
    tokens = torch.randn(batch, length, dim, generator=torch.Generator().manual_seed(seed))
    # The reference itself is ill-conditioned where few channels are normalised: tokens stay of unit scale, D >= 8.
    compare(layer, tensors, tokens, readout, mask, forward=2e-5, backward=2e-4, output_norm=output_norm)


@pytest.mark.parametrize("family", ["llama", "gqa", "gemma2", "neox", "opt"])
@pytest.mark.parametrize("exact", ["dense", "auto"])
@pytest.mark.parametrize("readout", [None, slice(0, 1)], ids=["all", "one"])
def test_bfloat16(family, exact, readout):
    spec = dataclasses.replace(SPEC, **FAMILIES[family])
    layer, tensors = make_layer(spec, 12, dtype=torch.bfloat16, exact=exact)
    tensors = [{name: tensor.bfloat16() for name, tensor in one.items()} for one in tensors]
    tokens = torch.randn(3, 17, 12, generator=torch.Generator().manual_seed(3))
    # A unit that rounding moves over the kink of a ReLU flips its gradient, on any path.
    backward = 5e-2 if spec.activation == "relu" else 2e-2
    compare(layer, tensors, tokens, readout, forward=2e-2, backward=backward)


@pytest.mark.parametrize("family", ["llama", "gqa", "gemma2", "neox"])
@pytest.mark.parametrize("chosen", PLANS)
def test_bfloat16_plans(family, chosen):
    layer, tensors = make_layer(dataclasses.replace(SPEC, **FAMILIES[family]), 12, dtype=torch.bfloat16)
    tensors = [{name: tensor.bfloat16() for name, tensor in one.items()} for one in tensors]
    tokens = torch.randn(3, 17, 12, generator=torch.Generator().manual_seed(3))
    with mock.patch.object(layer_module, "plan", return_value=PLANS[chosen]):
        compare(layer, tensors, tokens, slice(0, 2), forward=2e-2, backward=2e-2)


@pytest.mark.parametrize("family", ["llama", "neox", "olmo2", "qwen3"])
@pytest.mark.parametrize("positions", ["none", "rotary"])
@pytest.mark.parametrize("attention", ["bidirectional", "causal"])
@pytest.mark.parametrize("exact", ["dense", "auto"])
def test_switches(family, positions, attention, exact):
    spec = dataclasses.replace(SPEC, **FAMILIES[family], sliding_window=4)
    layer, tensors = make_layer(spec, 12, 2, positions=positions, attention=attention, exact=exact)
    tokens = torch.randn(2, 9, 12)
    options = dict(positions=positions, attention=attention)
    compare(layer, tensors, tokens, **options)
    compare(layer, tensors, tokens, readout=torch.tensor([[3, 8], [0, 5]]), **options)


def test_absorbing_is_switched_off_where_it_does_not_hold():
    problems = []
    for family, options in (("qwen3", {}), ("llama", {"positions": "rotary"})):
        layer, _ = make_layer(dataclasses.replace(SPEC, **FAMILIES[family]), 12, **options)
        with mock.patch.object(layer_module, "plan", side_effect=layer_module.plan) as spy:
            layer(torch.randn(2, 50, 12), readout=slice(0, 1))
        problems.append(spy.call_args.args[0])
    assert [problem.can_absorb for problem in problems] == [False, False]
    assert not any(layer_module.plan(problem).absorb for problem in problems)


@pytest.mark.parametrize("condition", [30, 300, 1e4])
def test_ill_conditioned_adapter(condition):
    """Norms from the Gram matrix stay exact where its condition number is the square of a bad one."""
    layer, tensors = make_layer(SPEC, 12)
    u, _, v = torch.linalg.svd(torch.randn(48, 12), full_matrices=False)
    with torch.no_grad():
        layer.adapter_in.weight.copy_(u @ torch.diag(torch.logspace(0, -torch.log10(torch.tensor(condition)), 12)) @ v)
    worst = v[-1].expand(2, 5, 12) * torch.rand(2, 5, 1) * condition
    with mock.patch.object(layer_module, "plan", return_value=PLANS["absorbed"]):
        output = layer(worst, readout=slice(0, 1))
    expected, _ = reference(layer, tensors, worst)
    # float32 products with such an adapter lose eps * condition, on the dense path too.
    dense, _ = make_layer(SPEC, 12, exact="dense")
    dense.load_state_dict(layer.state_dict())
    bound = max(1e-5, 4 * relative_error(dense(worst)[:, :1].detach(), expected[:, :1].detach()))
    assert relative_error(output.detach(), expected[:, :1].detach()) < bound


def test_rank_deficient_adapter():
    layer, tensors = make_layer(SPEC, 12)
    with torch.no_grad():
        layer.adapter_in.weight[:, 5:] = 0
    with mock.patch.object(layer_module, "plan", return_value=PLANS["absorbed"]):
        compare(layer, tensors, torch.randn(2, 5, 12), readout=slice(0, 1))


@pytest.mark.parametrize("chosen", PLANS)
def test_padding_never_leaks(chosen):
    layer, _ = make_layer(dataclasses.replace(SPEC, **FAMILIES["opt"]), 12)
    tokens, mask = torch.randn(3, 9, 12), padding(3, 9)
    noisy = torch.where(mask[..., None], tokens, 1e3 * torch.randn(3, 9, 12))
    with mock.patch.object(layer_module, "plan", return_value=PLANS[chosen]):
        for readout in (None, slice(0, 1)):
            valid = mask if readout is None else mask[:, readout]
            a, b = layer(tokens, mask, readout)[valid], layer(noisy, mask, readout)[valid]
            assert torch.equal(a, b) or relative_error(a, b) < 1e-6


@pytest.mark.parametrize("chosen", PLANS)
@pytest.mark.parametrize("family", ["llama", "qwen2", "gemma2"])
def test_all_padding_is_finite(chosen, family):
    """A sample without a valid token attends to nothing: zeros from the attention, finite output and gradients."""
    layer, tensors = make_layer(dataclasses.replace(SPEC, **FAMILIES[family]), 12)
    mask = torch.tensor([[True] * 5, [False] * 5])
    with mock.patch.object(layer_module, "plan", return_value=PLANS[chosen]):
        compare(layer, tensors, torch.randn(2, 5, 12), mask=mask)
        compare(layer, tensors, torch.randn(2, 5, 12), mask=mask, readout=slice(0, 1))
