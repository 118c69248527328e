"""The hosts: masks, order, readout, and their parts against torch's own and against loops."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from frozenllm.core import FrozenLLMLayer
from frozenllm.motion.models import MMTransformer, MotionHost, VectorNet
from frozenllm.motion.models.attention import DecoderLayer, EncoderLayer
from frozenllm.motion.models.mmtransformer import last_position
from frozenllm.motion.models.polyline import PolylineEncoder
from frozenllm.motion.testing import random_inputs

SPEC = {"hidden_size": 48, "num_heads": 4, "num_kv_heads": 2, "head_dim": 12, "intermediate_size": 96}
LLM = {"kind": "random", "spec": SPEC, "seed": 3}
SIZES: dict[type[MotionHost], dict[str, Any]] = {
    VectorNet: {"dim": 24, "width": 16, "hidden": 16},
    MMTransformer: {"dim": 16, "hidden": 24, "width": 8, "layers": 1, "position_dim": 8},
}
HOSTS = [(kind, insert) for kind in SIZES for insert in ("before_decoder", "after_subgraph")]


def build(kind: type[MotionHost], **options: Any) -> MotionHost:
    torch.manual_seed(0)
    return kind(12, **{"modes": 3, "llm": LLM, **SIZES[kind], **options}).eval()


MODELS = {case: build(case[0], insert=case[1]) for case in HOSTS}


def sample(inputs: dict[str, Tensor], index: int, agents: int, lanes: int) -> dict[str, Tensor]:
    """One sample as a batch of its own, cut to what it has."""
    own = {name: x[index : index + 1] for name, x in inputs.items()}
    return {name: x[:, : lanes if name.startswith("lane") else agents] for name, x in own.items()}


def assert_equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    assert a.keys() == b.keys()
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("case", HOSTS, ids=lambda case: f"{case[0].__name__}-{case[1]}")
@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_a_sample_is_the_same_alone_and_in_any_batch(case: tuple[type[MotionHost], str], data: st.DataObject) -> None:
    batch = data.draw(st.integers(2, 4), "batch")
    inputs = random_inputs(batch, 5, 6, history=6, points=4, seed=data.draw(st.integers(0, 10_000), "seed"))
    index = data.draw(st.integers(0, batch - 1), "sample")
    agents, lanes = (int(inputs[n][index].any(-1).sum()) for n in ("agents_valid", "lanes_valid"))
    at_all = {n: int((inputs[n][index].any(-1) * torch.arange(1, inputs[n].shape[1] + 1)).max()) for n in
              ("agents_valid", "lanes_valid")}  # fmt: skip
    assert agents <= at_all["agents_valid"]
    assert lanes <= at_all["lanes_valid"]
    alone = sample(inputs, index, at_all["agents_valid"], at_all["lanes_valid"])
    with torch.no_grad():
        together = MODELS[case](**inputs)
        assert_equal(MODELS[case](**alone), {name: x[index : index + 1] for name, x in together.items()})


@pytest.mark.parametrize("case", HOSTS, ids=lambda case: f"{case[0].__name__}-{case[1]}")
@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_the_order_of_others_does_not_matter(case: tuple[type[MotionHost], str], seed: int) -> None:
    inputs = random_inputs(2, 5, 6, history=6, points=4, seed=seed)
    draw = torch.Generator().manual_seed(seed)
    agents = torch.cat([torch.tensor([0]), 1 + torch.randperm(4, generator=draw)])
    lanes = torch.randperm(6, generator=draw)
    moved = {name: x[:, lanes if name.startswith("lane") else agents] for name, x in inputs.items()}
    with torch.no_grad():
        assert_equal(MODELS[case](**inputs), MODELS[case](**moved))


@pytest.mark.parametrize("kind", SIZES)
@pytest.mark.parametrize("llm", [LLM, {"kind": "mlp", "hidden_size": 32}], ids=["block", "mlp"])
def test_readout_equals_all_tokens(kind: type[MotionHost], llm: dict[str, Any]) -> None:
    """The target's token alone, against the layer's whole output: values and gradients."""
    inputs = random_inputs(3, 4, 5, history=6, points=4)
    fast, whole = build(kind, llm=llm), build(kind, llm=llm)
    seen = {}
    fast.llm.register_forward_hook(lambda module, args, out: seen.update(fast=out.shape[1]))
    whole.llm.register_forward_hook(lambda module, args, out: seen.update(whole=out.shape[1]))
    whole.__class__ = type("Whole", (kind,), {"reads_target_token": False})
    outputs = [model(**inputs) for model in (fast, whole)]
    assert seen == {"fast": 1, "whole": 9}
    assert_equal(*outputs)
    for output in outputs:
        sum(x.square().mean() for x in output.values()).backward()
    for (name, a), b in zip(fast.named_parameters(), whole.parameters(), strict=True):
        assert (a.grad - b.grad).norm() <= 1e-3 * b.grad.norm() + 1e-7, name


@pytest.mark.parametrize("case", HOSTS, ids=lambda case: f"{case[0].__name__}-{case[1]}")
def test_the_layer_reads_one_token_per_polyline_and_the_mask(case: tuple[type[MotionHost], str]) -> None:
    model, inputs, seen = build(case[0], insert=case[1]), random_inputs(3, 4, 5, history=6, points=4), {}
    model.llm.register_forward_pre_hook(lambda m, args, kwargs: seen.update(tokens=args[0], **kwargs), with_kwargs=True)
    model(**inputs)
    per_agent = 3 if case == (MMTransformer, "after_subgraph") else 1
    agents = inputs["agents_valid"].any(-1).repeat_interleave(per_agent, dim=1)
    wanted = torch.cat([agents, inputs["lanes_valid"].any(-1)], dim=1)
    assert seen["tokens"].shape == (3, 4 * per_agent + 5, model.dim)
    assert torch.equal(seen["mask"], wanted)
    assert not wanted.all()
    torch.testing.assert_close(build(case[0], insert=case[1], llm=None).tokens(**inputs), seen["tokens"])
    values = model.per_polyline(torch.arange(4.0 * per_agent + 5)[None], 4)
    assert values.shape == (1, 9)
    if per_agent > 1:
        assert values[0, :4].tolist() == [1.0, 4.0, 7.0, 10.0]


@pytest.mark.parametrize("case", HOSTS, ids=lambda case: f"{case[0].__name__}-{case[1]}")
@pytest.mark.parametrize("llm", [None, LLM], ids=["alone", "layer"])
def test_no_map_and_no_history_stay_finite(case: tuple[type[MotionHost], str], llm: Any) -> None:
    model = build(case[0], insert=case[1], llm=llm)
    inputs = random_inputs(2, 3, 4, history=6, points=4)
    bare = {**inputs, "lanes": torch.zeros(2, 0, 0, 4), "lanes_valid": torch.zeros(2, 0, 0, dtype=torch.bool)}
    bare["lane_attributes"] = torch.zeros(2, 0, 8)
    padded = {**inputs, "lanes_valid": torch.zeros_like(inputs["lanes_valid"])}
    assert_equal(model(**bare), model(**padded))
    unread = {name: torch.zeros_like(x) for name, x in inputs.items()}
    for output in (model(**bare), model(**unread)):
        loss = sum(x.square().mean() for x in output.values())
        loss.backward()
        assert loss.isfinite()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


def test_hosts_start_equal_with_and_without_the_layer() -> None:
    for kind in SIZES:
        alone, layered = build(kind, llm=None), build(kind)
        assert isinstance(layered.llm, FrozenLLMLayer)
        own = dict(layered.named_parameters())
        assert all(torch.equal(p, own[name]) for name, p in alone.named_parameters())


def test_encoder_and_decoder_layers_equal_torchs_own() -> None:
    """Against torch's forward with the same weights, the memory repeated for every group of queries."""
    torch.manual_seed(0)
    tokens, memory = torch.randn(2, 3, 4, 16), torch.randn(2, 7, 16)
    valid = torch.tensor([[True] * 7, [True] * 3 + [False] * 4])
    ours, torchs = (
        EncoderLayer(16, 2, 24),
        nn.TransformerEncoderLayer(16, 2, 24, 0.0, batch_first=True, norm_first=True),
    )
    torchs.load_state_dict(ours.state_dict())
    torch.testing.assert_close(ours(memory, valid), torchs(memory, src_key_padding_mask=~valid))
    ours, torchs = (
        DecoderLayer(16, 2, 24),
        nn.TransformerDecoderLayer(16, 2, 24, 0.0, batch_first=True, norm_first=True),
    )
    torchs.load_state_dict(ours.state_dict())
    wanted = torchs(
        tokens.flatten(0, 1), memory.repeat_interleave(3, 0), memory_key_padding_mask=~valid.repeat_interleave(3, 0)
    )
    torch.testing.assert_close(ours(tokens, memory, valid), wanted.view(2, 3, 4, 16))


def test_polyline_encoder_equals_a_loop() -> None:
    """VectorNet's recursion, one polyline at a time and only over its valid vectors."""
    torch.manual_seed(0)
    encoder = PolylineEncoder(5, 8, 3, 12)
    vectors, valid = torch.randn(2, 3, 6, 5), torch.rand(2, 3, 6) < 0.6
    valid[0, 0], valid[1, 2] = False, torch.arange(6) == 2
    result = encoder(vectors, valid)
    assert result.shape == (2, 3, 12)
    for b in range(2):
        for n in range(3):
            x = vectors[b, n][valid[b, n]]
            if not len(x):
                assert not result[b, n].any()
                continue
            for layer in encoder.layers[:-1]:
                x = layer(x)
                x = torch.cat([x, x.max(dim=0).values.expand_as(x)], dim=-1)
            torch.testing.assert_close(result[b, n], encoder.layers[-1](x).max(dim=0).values)


def test_last_position_skips_gaps() -> None:
    positions = torch.arange(24.0).view(1, 3, 4, 2)
    valid = torch.tensor([[[1, 1, 1, 1], [1, 0, 1, 0], [0, 0, 0, 0]]], dtype=torch.bool)
    assert last_position(positions * valid[..., None], valid).tolist() == [[[6, 7], [12, 13], [0, 0]]]


def test_trajectories_are_sums_of_steps_from_the_origin() -> None:
    model = build(VectorNet, scales=True, llm=None)
    with torch.no_grad():
        model.decoder.regression.weight.zero_()
        model.decoder.regression.bias.copy_(torch.tensor([1.0, -0.5, 0.0, 0.0]).repeat(3 * 12))
    output = model(**random_inputs(1, 2, 2, history=6, points=4))
    steps = torch.arange(1, 13.0)
    torch.testing.assert_close(output["trajectories"][0, 1], torch.stack([steps, -0.5 * steps], dim=-1))
    torch.testing.assert_close(output["scales"], torch.full_like(output["scales"], 0.01 + 0.6931472))


@pytest.mark.parametrize("kind", SIZES)
def test_bfloat16_trajectories_come_out_in_float32(kind: type[MotionHost]) -> None:
    model = build(kind, llm=None)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = model(**random_inputs(2, 3, 4, history=6, points=4))
    assert {x.dtype for x in output.values()} == {torch.float32}


def test_wrong_options_give_one_sentence() -> None:
    with pytest.raises(ValueError, match="insert must be one of before_decoder, after_subgraph"):
        VectorNet(12, insert="middle")
