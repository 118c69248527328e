"""Dense path and every shortcut against the dense reference, forward and backward."""

from __future__ import annotations

import dataclasses
from unittest import mock

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from small_layers import FAMILIES, PLANS, SPEC, compare, make_layer, padding, reference, relative_error

from frozenllm.core import BlockSpec
from frozenllm.core import layer as layer_module


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
