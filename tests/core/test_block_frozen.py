"""Frozen by construction: what optimizers, checkpoints, copies and moves may and may not do to a block."""

from __future__ import annotations

import copy
import io
import pickle

import numpy as np
import pytest
import torch
from safetensors.torch import load_model, save_model
from small_layers import FAMILIES, SPEC
from torch import nn
from torch.func import functional_call

from frozenllm.core import (
    BlockSpec,
    FrozenLLMLayer,
    MLPLayer,
    ignore_blocks_in_ddp,
    llm_blocks,
    random_block,
    reload_blocks,
)


def make_model(seed=0, **options):
    torch.manual_seed(seed)
    layer = FrozenLLMLayer(12, random_block(SPEC, seed=seed), **options)
    return nn.Sequential(nn.Linear(12, 12), layer, nn.Linear(12, 3))


def block_bytes(model):
    return [t.clone() for _, block in llm_blocks(model) for t in block.buffers()]


def train_step(model, **kwargs):
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.5)
    model(torch.randn(2, 5, 12)).square().sum().backward()
    optimizer.step()


def test_block_is_no_parameter_and_training_leaves_it_alone():
    model = make_model()
    assert {name for name, _ in model[1].named_parameters()} == {"adapter_in.weight", "adapter_out.weight"}
    before = block_bytes(model)
    adapters = [model[1].adapter_in.weight.clone(), model[1].adapter_out.weight.clone()]
    train_step(model)
    assert all(torch.equal(a, b) for a, b in zip(before, block_bytes(model), strict=True))
    assert not torch.equal(adapters[0], model[1].adapter_in.weight)
    assert not torch.equal(adapters[1], model[1].adapter_out.weight)


def test_state_dict_holds_the_record_alone():
    model = make_model()
    state = model.state_dict()
    assert [key for key in state if "block" in key] == ["1.block._extra_state"]
    assert state["1.block._extra_state"].dtype == torch.uint8
    assert model[1].block.record.sha256.encode() in bytes(state["1.block._extra_state"].tolist())


def test_checkpoint_round_trip(tmp_path):
    model, other = make_model(), make_model()
    train_step(model)
    torch.save(model.state_dict(), tmp_path / "model.pth")
    assert (tmp_path / "model.pth").stat().st_size < 20_000 + 4 * sum(p.numel() for p in model.parameters())
    other.load_state_dict(torch.load(tmp_path / "model.pth", weights_only=True))
    tokens = torch.randn(2, 5, 12)
    assert torch.equal(model(tokens), other(tokens))
    save_model(model, tmp_path / "model.safetensors")
    third = make_model()
    assert load_model(third, tmp_path / "model.safetensors") == (set(), [])
    assert torch.equal(model(tokens), third(tokens))


def test_checkpoint_of_another_block_is_refused():
    model, other = make_model(seed=0), make_model(seed=1)
    with pytest.raises(ValueError, match=r"made with the block random:1 .* holds random:0"):
        model.load_state_dict(other.state_dict())
    with pytest.raises(ValueError, match="record of its language-model block cannot be read"):
        model.load_state_dict({**model.state_dict(), "1.block._extra_state": torch.zeros(4, dtype=torch.uint8)})
    del (state := other.state_dict())["1.block._extra_state"]
    with pytest.raises(RuntimeError, match="Missing key"):
        model.load_state_dict(state)


def test_trainable_block_is_trained_and_stored():
    block = random_block(SPEC)
    frozen = FrozenLLMLayer(12, block)
    model = nn.Sequential(FrozenLLMLayer(12, block, trainable=True))
    assert not list(block.parameters()), "the block that was given stays frozen, and so does another layer's"
    assert sum(p.numel() for p in frozen.parameters()) == 2 * 12 * SPEC.hidden_size
    assert sum(p.numel() for p in model[0].block.parameters()) == SPEC.num_parameters()
    before = model[0].block.layers[0].down_weight.clone()
    train_step(model)
    assert not torch.equal(before, model[0].block.layers[0].down_weight)
    assert torch.equal(before, block.layers[0].down_weight), "the block that was given keeps its weights"
    other = nn.Sequential(FrozenLLMLayer(12, random_block(SPEC, seed=5), trainable=True))
    other.load_state_dict(model.state_dict())
    tokens = torch.randn(2, 5, 12)
    assert torch.equal(model(tokens), other(tokens))


def test_copies_share_frozen_memory_only():
    model = make_model()
    clone = copy.deepcopy(model)
    shared = zip(model[1].block.buffers(), clone[1].block.buffers(), strict=True)
    assert all(a.data_ptr() == b.data_ptr() for a, b in shared)
    assert clone[1].adapter_in.weight.data_ptr() != model[1].adapter_in.weight.data_ptr()
    assert clone[1].block.is_loaded
    ema = torch.optim.swa_utils.AveragedModel(model)
    train_step(model)
    ema.update_parameters(model)
    assert torch.isfinite(ema(torch.randn(1, 4, 12))).all()


def test_pickle_keeps_the_block_loaded():
    model = make_model()
    clone = pickle.loads(pickle.dumps(model))
    tokens = torch.randn(2, 5, 12)
    assert torch.equal(model(tokens), clone(tokens))
    buffer = io.BytesIO()
    torch.save(model, buffer)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_casts_and_moves_keep_the_block_loaded(dtype):
    model = make_model()
    expected = model(tokens := torch.randn(2, 5, 12))
    model.to(dtype).float() if dtype == torch.float64 else model.to(dtype)
    assert model[1].block.is_loaded
    output = model(tokens.to(model[0].weight.dtype))
    assert (output.float() - expected).norm() / expected.norm() < 3e-2
    model.share_memory()
    assert model[1].block.is_loaded


@pytest.mark.parametrize("how", ["meta", "to_empty", "meta_to_empty", "replaced"])
def test_lost_weights_are_never_used(how):
    model = make_model()
    expected = model(tokens := torch.randn(2, 5, 12))
    state = model.state_dict()
    if how == "meta":
        model.to("meta")
        tokens = tokens.to("meta")
    elif how == "to_empty":
        model.to_empty(device="cpu")
    elif how == "meta_to_empty":
        model.to("meta").to_empty(device="cpu")
    else:
        model[1].block.layers[0].qkv_weight = torch.zeros_like(model[1].block.layers[0].qkv_weight)
    assert not model[1].block.is_loaded
    if how != "meta":
        model.load_state_dict(state)  # "all keys matched"
    with pytest.raises(RuntimeError, match="reload_blocks"):
        model(tokens)
    if how == "meta":
        model.to_empty(device="cpu").load_state_dict(state)
    reload_blocks(model)
    assert torch.equal(
        model(torch.as_tensor(tokens.cpu() if how != "meta" else torch.zeros(2, 5, 12))).isfinite(),
        torch.ones(2, 5, 3, dtype=torch.bool),
    )
    if how != "meta":
        assert torch.equal(model(tokens), expected)


def test_refilling_with_other_weights_is_refused():
    block, other = random_block(SPEC, seed=0), random_block(SPEC, seed=1)
    block.to("meta")
    with pytest.raises(ValueError, match="source now gives random:1"):
        block.fill(other.canonical_tensors(), other.final_norm_tensors(), other.record)


def test_built_under_a_meta_device_and_materialised():
    with torch.device("meta"):
        model = make_model()
    assert model[0].weight.is_meta
    state = make_model().state_dict()
    model.to_empty(device="cpu").load_state_dict(state)
    tokens = torch.randn(2, 5, 12)
    if not model[1].block.is_loaded:
        with pytest.raises(RuntimeError, match="reload_blocks"):
            model(tokens)
        reload_blocks(model)
    assert torch.equal(model(tokens), make_model()(tokens))


def test_nested_in_a_transformers_model(tmp_path):
    transformers = pytest.importorskip("transformers")

    class Config(transformers.PretrainedConfig):
        model_type = "nested_frozen"

    class Nested(transformers.PreTrainedModel):
        config_class = Config

        def __init__(self, config):
            super().__init__(config)
            self.stem = nn.Linear(12, 12)
            self.frozen = FrozenLLMLayer(12, random_block(SPEC))
            self.post_init()

        def forward(self, x):
            return self.frozen(self.stem(x))

    model = Nested(Config())
    tokens = torch.randn(2, 5, 12)
    expected = model(tokens)
    model.save_pretrained(tmp_path)
    again = Nested.from_pretrained(tmp_path)
    if not again.frozen.block.is_loaded:
        with pytest.raises(RuntimeError, match="reload_blocks"):
            again(tokens)
        reload_blocks(again)
    assert torch.equal(again(tokens), expected)


def test_ddp_ignores_blocks():
    model = make_model()
    ignore_blocks_in_ddp(model)
    ignore_blocks_in_ddp(model)
    names = model._ddp_params_and_buffers_to_ignore
    assert sorted(names) == sorted(name for name, _ in model.named_buffers())


def test_folded_cache_follows_the_adapter():
    model = make_model().eval()
    tokens = torch.randn(2, 5, 12)
    with torch.no_grad():
        first = model[1](tokens)
        model[1].adapter_in.weight.mul_(0.5)
        changed = model[1](tokens)
        dense = FrozenLLMLayer(12, model[1].block, exact="dense")
        dense.load_state_dict(model[1].state_dict())
        assert not torch.allclose(first, changed)
        torch.testing.assert_close(changed, dense(tokens), rtol=1e-4, atol=1e-5)
    model[1].adapter_in.weight.grad = None
    model(tokens).sum().backward()  # gradients flow in eval mode too
    assert model[1].adapter_in.weight.grad.abs().sum() > 0


def test_folded_cache_follows_weights_that_take_each_others_place():
    # A tensor that is gone gives its `id` to one of the next.
    layer = make_model()[1].eval()
    dense = FrozenLLMLayer(12, layer.block, exact="dense").eval()
    tokens = torch.randn(2, 5, 12)
    with torch.no_grad():
        for _ in range(100):
            weights = {name: torch.randn_like(p) for name, p in layer.named_parameters()}
            output = functional_call(layer, weights, (tokens,))
            torch.testing.assert_close(output, functional_call(dense, weights, (tokens,)), rtol=1e-3, atol=1e-3)
            del weights


def test_weights_made_in_inference_mode_are_used():
    with torch.inference_mode():
        layer = make_model()[1].eval()
        tokens = torch.randn(2, 5, 12)
        first = layer(tokens)
        layer.adapter_out.weight.mul_(2.0)
        torch.testing.assert_close(layer(tokens), 2 * first)
        layer.adapter_in.weight.mul_(-1.0)
        dense = FrozenLLMLayer(12, layer.block, exact="dense")
        dense.load_state_dict(layer.state_dict())
        torch.testing.assert_close(layer(tokens), dense(tokens), rtol=1e-4, atol=1e-4)


def test_cache_of_inference_mode_stays_there():
    layer = make_model()[1].eval().requires_grad_(False)
    tokens = torch.randn(2, 5, 12)
    with torch.inference_mode():
        expected = layer(tokens)
    tokens.requires_grad_()
    output = layer(tokens)
    output.sum().backward()
    assert torch.equal(output, expected)
    assert tokens.grad.abs().sum() > 0


@pytest.mark.parametrize("readout", [None, slice(0, 1)], ids=["all", "one"])
@pytest.mark.parametrize("family", ["llama", "opt"])
def test_compiles_without_graph_breaks(readout, family):
    import dataclasses

    layer = FrozenLLMLayer(12, random_block(dataclasses.replace(SPEC, **FAMILIES[family])))
    tokens = torch.randn(2, 5, 12)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(tokens, readout=readout), layer(tokens, readout=readout), rtol=1e-4, atol=1e-5)


def test_autocast_leaves_the_block_alone_and_says_so():
    layer = FrozenLLMLayer(12, random_block(SPEC))
    tokens = torch.randn(2, 5, 12)
    with torch.autocast("cpu", dtype=torch.bfloat16), pytest.warns(UserWarning, match="load it with dtype"):
        output = layer(tokens)
    assert torch.equal(output, layer(tokens))


def test_random_block_is_the_same_everywhere():
    a, b = random_block(SPEC, seed=3, num_blocks=2), random_block(SPEC, seed=3, num_blocks=2)
    assert a.record == b.record
    assert a.record.sha256 != random_block(SPEC, seed=4, num_blocks=2).record.sha256


def test_mlp_in_the_blocks_place():
    layer = MLPLayer(12, 48)
    tokens = torch.randn(2, 5, 12)
    h = nn.functional.layer_norm(nn.functional.gelu(tokens @ layer.adapter_in.weight.T), (48,))
    torch.testing.assert_close(layer(tokens), h @ layer.adapter_out.weight.T)
    torch.testing.assert_close(layer(tokens, readout=[0, 3]), layer(tokens)[:, [0, 3]])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: FrozenLLMLayer(12, random_block(SPEC), output_norm="learned"), "output_norm must be one of"),
        (lambda: FrozenLLMLayer(12, "bundled"), "see frozenllm.core.load_block"),
        (lambda: FrozenLLMLayer(0, random_block(SPEC)), "dim must be positive"),
        (
            lambda: FrozenLLMLayer(
                12, random_block(BlockSpec(**{**SPEC.to_dict(), "final_norm": False})), output_norm="pretrained"
            ),
            "has no norm after its last layer",
        ),
        (
            lambda: FrozenLLMLayer(
                12, random_block(BlockSpec(**{**SPEC.to_dict(), "rotary_base": None})), positions="rotary"
            ),
            "has no rotary positions",
        ),
        (lambda: BlockSpec(hidden_size=8, num_heads=3, num_kv_heads=2, head_dim=4, intermediate_size=8), "multiple"),
        (lambda: BlockSpec.from_dict({"hidden_size": 8, "colour": 3}), "Unknown block field.s. colour"),
        (lambda: BlockSpec.from_dict({"hidden_size": 8}), "Incomplete block description"),
    ],
)
def test_bad_options(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(tokens=torch.zeros(2, 5, 11)), r"tokens must have shape \(batch, tokens, 12\)"),
        (dict(tokens=torch.zeros(5, 12)), "tokens must have shape"),
        (dict(mask=torch.ones(2, 4, dtype=torch.bool)), r"mask must be bool of shape \(2, 5\)"),
        (dict(mask=torch.ones(2, 5)), "mask must be bool"),
        (dict(readout=[5]), "out of range for 5 tokens"),
        (dict(readout=[]), "selects no token"),
        (dict(readout=slice(3, 3)), "selects no token"),
        (dict(readout=torch.ones(5, dtype=torch.bool)), "integer positions"),
        (dict(readout=torch.zeros(3, 2, dtype=torch.long)), "3 rows for a batch of 2"),
        (dict(readout=torch.tensor([0, 5])), "positions from 0 to 5, out of range for 5 tokens"),
        (dict(readout=torch.tensor([[0], [5]])), "out of range for 5 tokens"),
        (dict(readout=torch.tensor([[0], [-6]])), "out of range for 5 tokens"),
        (dict(readout=[True, False, False, False, False]), "must be a slice, positions"),
        (dict(readout=np.array([True, False])), "integer positions"),
        (dict(readout=0), "integer positions"),
    ],
)
def test_bad_input(arguments, message):
    layer = FrozenLLMLayer(12, random_block(SPEC))
    with pytest.raises(ValueError, match=message):
        layer(**{"tokens": torch.zeros(2, 5, 12), **arguments})
