"""Every family against transformers' own layers, untouched and as used here."""

from __future__ import annotations

import math
import subprocess
import sys
from unittest import mock

import pytest
import torch
import torch.nn.functional as F
import transformers
from small_models import (
    MODELS,
    decoder_layers,
    layer_inputs_and_outputs,
    make_model,
    save_model,
    update_error,
    write_config,
)

from frozenllm.core import BlockSpec, FrozenLLMLayer, load_block
from frozenllm.core import layer as layer_module
from frozenllm.core.families import FAMILIES, find_family
from frozenllm.core.plan import Plan
from frozenllm.core.weights import read_specs


@pytest.fixture(scope="module", params=MODELS)
def saved(request, tmp_path_factory):
    model = make_model(request.param)
    return request.param, model, save_model(model, tmp_path_factory.mktemp(request.param))


def test_untouched_layers_equal_transformers(saved):
    name, model, folder = saved
    rotary = "rotary" if MODELS[name][0] not in ("opt", "gpt2") else "none"
    for index, (h, expected) in enumerate(layer_inputs_and_outputs(model)):
        block = load_block(folder, [index])
        got = block(h, positions=rotary, attention="causal")
        assert update_error(got, expected, h) < 1e-5


def test_longrope_beyond_the_trained_length(tmp_path):
    model = make_model("phi3_long")
    folder = save_model(model, tmp_path)
    for index, (h, expected) in enumerate(layer_inputs_and_outputs(model, length=30)):
        got = load_block(folder, [index])(h, positions="rotary", attention="causal")
        assert update_error(got, expected, h) < 1e-5


def test_consecutive_layers_and_final_norm_equal_the_model(saved):
    name, model, folder = saved
    rotary = "rotary" if MODELS[name][0] not in ("opt", "gpt2") else "none"
    passes = layer_inputs_and_outputs(model)
    block = load_block(folder, range(len(passes)))
    h = block(passes[0][0], positions=rotary, attention="causal")
    assert update_error(h, passes[-1][1], passes[0][0]) < 1e-5
    base = getattr(model.base_model, "decoder", model.base_model)
    norms = [getattr(base, n) for n in ("norm", "ln_f", "final_layer_norm") if getattr(base, n, None) is not None]
    assert block.has_final_norm == bool(norms)
    if norms:
        torch.testing.assert_close(block.apply_final_norm(h, "pretrained"), norms[0](h), rtol=1e-5, atol=1e-5)


def attend(q, k, v, head_dim, scale=None, softcap=None, allowed=None):
    """Softmax attention of every token to all that are allowed; no positions."""
    q, k, v = (t.unflatten(-1, (-1, head_dim)).transpose(1, 2) for t in (q, k, v))
    k, v = (t.repeat_interleave(q.shape[1] // k.shape[1], dim=1) for t in (k, v))
    scores = q @ k.transpose(-1, -2) * (head_dim**-0.5 if scale is None else scale)
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    scores = scores.masked_fill(~allowed[:, None, None, :], -math.inf)
    return (scores.softmax(-1) @ v).transpose(1, 2).flatten(-2)


def dense_layer(model, index, h, allowed):
    """A decoder layer without positions and causal mask, written out from transformers' own submodules."""
    layer, config = decoder_layers(model)[index], model.config
    kind = config.model_type
    width = config.hidden_size // config.num_attention_heads
    if kind == "gpt2":
        q, k, v = layer.attn.c_attn(layer.ln_1(h)).chunk(3, dim=-1)
        scale = width**-0.5 / (index + 1 if config.scale_attn_by_inverse_layer_idx else 1)
        h = h + layer.attn.c_proj(attend(q, k, v, width, scale, allowed=allowed))
        return h + layer.mlp.c_proj(F.gelu(layer.mlp.c_fc(layer.ln_2(h)), approximate="tanh"))
    if kind == "gpt_neox":
        qkv = layer.attention.query_key_value(layer.input_layernorm(h)).unflatten(-1, (-1, 3, width))
        q, k, v = (qkv[..., i, :].flatten(-2) for i in range(3))
        update = layer.attention.dense(attend(q, k, v, width, allowed=allowed))
        read = h if config.use_parallel_residual else h + update
        return h + update + layer.mlp(layer.post_attention_layernorm(read))
    attn = layer.self_attn
    if kind == "opt":
        pre = config.do_layer_norm_before
        act = {"relu": F.relu, "gelu": F.gelu}[config.activation_function]
        x = layer.self_attn_layer_norm(h) if pre else h
        heads = attend(attn.q_proj(x), attn.k_proj(x), attn.v_proj(x), width, allowed=allowed)
        h = h + attn.out_proj(heads)
        h = h if pre else layer.self_attn_layer_norm(h)
        h = h + layer.fc2(act(layer.fc1(layer.final_layer_norm(h) if pre else h)))
        return h if pre else layer.final_layer_norm(h)
    width = getattr(config, "head_dim", None) or width
    x = h if kind == "olmo2" else layer.input_layernorm(h)
    if kind == "phi3":
        kv = config.num_key_value_heads * width
        q, k, v = attn.qkv_proj(x).split((config.num_attention_heads * width, kv, kv), dim=-1)
    else:
        q, k, v = attn.q_proj(x), attn.k_proj(x), attn.v_proj(x)
    if kind == "olmo2":
        q, k = attn.q_norm(q), attn.k_norm(k)
    if kind == "qwen3":
        q, k = (norm(t.unflatten(-1, (-1, width))).flatten(-2) for norm, t in ((attn.q_norm, q), (attn.k_norm, k)))
    scale = {"gemma2": 30**-0.5, "granite": 0.5}.get(kind)
    update = attn.o_proj(attend(q, k, v, width, scale, {"gemma2": 2.0}.get(kind), allowed))
    factor = {"granite": 0.3}.get(kind, 1.0)
    if kind == "olmo2":
        h = h + layer.post_attention_layernorm(update)
        return h + layer.post_feedforward_layernorm(layer.mlp(h))
    if kind == "gemma2":
        h = h + layer.post_attention_layernorm(update)
        return h + layer.post_feedforward_layernorm(layer.mlp(layer.pre_feedforward_layernorm(h)))
    h = h + factor * update
    return h + factor * layer.mlp(layer.post_attention_layernorm(h))


@torch.no_grad()
def test_as_used_here_equals_a_dense_computation(saved):
    _, model, folder = saved
    h = torch.randn(2, 9, 48, generator=torch.Generator().manual_seed(2))
    valid = torch.tensor([[True] * 9, [True] * 6 + [False] * 3])
    for index in range(len(decoder_layers(model))):
        expected = dense_layer(model, index, h, valid)
        got = load_block(folder, [index])(h, valid)
        for sample, length in ((0, 9), (1, 6)):
            rows = (sample, slice(0, length))
            assert update_error(got[rows], expected[rows], h[rows]) < 1e-5


ABSORBED_AND_FOLDED = Plan(gram=True, fold_queries=True, fold_context=True, absorb=True, operations=0.0)
FOLDED = Plan(gram=True, fold_queries=True, fold_context=True, absorb=False, operations=0.0)


def test_readout_shortcuts_equal_dense(saved):
    _, _, folder = saved
    torch.manual_seed(3)
    block = load_block(folder, [1])
    tokens = torch.randn(2, 11, 12)
    valid = torch.tensor([[True] * 11, [True] * 7 + [False] * 4])
    auto, dense = FrozenLLMLayer(12, block), FrozenLLMLayer(12, block, exact="dense")
    dense.load_state_dict(auto.state_dict())
    plans = [layer_module.plan, lambda _problem: FOLDED]
    if block.specs[0].qk_norm == "none":
        plans.append(lambda _problem: ABSORBED_AND_FOLDED)
    expected = dense(tokens, valid)
    for plan in plans:
        with mock.patch.object(layer_module, "plan", plan):
            for readout in (slice(0, 1), [0, 5], None):
                got = auto(tokens, valid, readout)
                wanted = expected if readout is None else expected[:, readout]
                if readout is None:  # what comes out at padding is unspecified
                    got, wanted = got[valid], wanted[valid]
                assert ((got - wanted).norm() / wanted.norm()).item() < 1e-5


@pytest.mark.parametrize("name", ["qwen3", "olmo2"])
def test_keys_with_a_norm_are_never_absorbed(name, tmp_path):
    block = load_block(save_model(make_model(name), tmp_path), [0])
    layer = FrozenLLMLayer(4, block)
    problem = layer._problem(block.layers[0], torch.randn(1, 500, 4), torch.tensor([0]), 4, cached=True)
    assert not problem.can_absorb
    assert not layer_module.plan(problem).absorb


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_defaults_are_those_of_transformers(family):
    """A config.json that says nothing but its model type gives what transformers would build from it."""
    own = transformers.AutoConfig.for_model(family.model_types[0])
    full = {**own.to_dict(), "model_type": family.model_types[0]}
    bare = {"model_type": family.model_types[0]}
    assert family.layer_count(bare) == own.num_hidden_layers
    for layer in (0, 1, own.num_hidden_layers - 1):
        assert family.spec(bare, layer) == family.spec(full, layer)
    assert find_family(bare) is family
    for architecture in family.architectures:
        assert find_family({"architectures": [architecture]}) is family


@pytest.mark.parametrize("architectures", [True, 3, "LlamaForCausalLM", [], [{"a": 1}], None])
def test_architectures_that_say_nothing_are_an_unknown_family(architectures):
    with pytest.raises(ValueError, match="is not in the table of families"):
        find_family({"architectures": architectures})


def test_older_rotary_keys_mean_the_same_as_rope_parameters():
    old = {"model_type": "llama", "rope_theta": 500.0, "rope_scaling": {"type": "linear", "factor": 2.0}}
    new = {"model_type": "llama", "rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 500.0}}
    family = find_family(old)
    assert family.spec(old, 0) == family.spec(new, 0)
    assert family.spec(old, 0).rotary_base == 500.0
    assert family.spec(old, 0).rotary_scaling == {"rope_type": "linear", "factor": 2.0}
    old = {"model_type": "gpt_neox", "rotary_pct": 0.5, "rotary_emb_base": 700}
    new = {"model_type": "gpt_neox", "rope_parameters": {"rope_theta": 700.0, "partial_rotary_factor": 0.5}}
    assert find_family(old).spec(old, 0) == find_family(old).spec(new, 0)
    assert find_family(old).spec(old, 0).rotary_fraction == 0.5


def test_a_layer_type_may_have_its_own_rotary_entry():
    config = {
        "model_type": "qwen3",
        "layer_types": ["full_attention", "sliding_attention"],
        "num_hidden_layers": 2,
        "use_sliding_window": True,
        "sliding_window": 7,
        "rope_parameters": {"full_attention": {"rope_theta": 5.0}, "sliding_attention": {"rope_theta": 9.0}},
    }
    family = find_family(config)
    assert [family.spec(config, i).rotary_base for i in (0, 1)] == [5.0, 9.0]
    assert [family.spec(config, i).sliding_window for i in (0, 1)] == [None, 7]


def test_older_gemma_configs_mean_the_tanh_gelu():
    config = {"model_type": "gemma", "hidden_act": "gelu"}
    assert find_family(config).spec(config, 0).activation == "gelu_tanh"


def test_unknown_architecture_lists_the_known_ones():
    with pytest.raises(ValueError, match=r"'bloom'.*llama.*gpt_neox.*add_a_family"):
        find_family({"model_type": "bloom"})
    with pytest.raises(ValueError, match="no model_type"):
        find_family({})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(hidden_act="quick_gelu"), "quick_gelu"),
        (dict(hidden_size="big"), "hidden_size"),
        (dict(num_attention_heads=0), "num_heads"),
        (dict(num_hidden_layers=-1), "num_hidden_layers"),
        (dict(num_hidden_layers=2**60), "num_hidden_layers"),
        (dict(rms_norm_eps=10**400), "config.json"),
        (dict(num_key_value_heads=3), "multiple"),
        (dict(rms_norm_eps="small"), "norm_eps"),
        (dict(rope_parameters=[1, 2]), "config.json"),
    ],
)
def test_unusable_configs_are_named(change, message, tmp_path):
    folder = save_model(make_model("llama"), tmp_path)
    write_config(folder, **change)
    with pytest.raises(ValueError, match=message) as caught:
        load_block(folder)
    assert str(folder) in str(caught.value)


def test_reading_a_config_does_not_import_transformers(tmp_path):
    folder = save_model(make_model("llama"), tmp_path)
    code = (
        "import sys; from frozenllm.core import load_block; block = load_block(sys.argv[1]); "
        "assert block.is_loaded and 'transformers' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code, str(folder)], check=True)


def test_specs_without_weights(tmp_path):
    folder = save_model(make_model("gemma2"), tmp_path)
    (folder / "model.safetensors").rename(folder / "away")
    with pytest.raises(ValueError, match="no weights"):
        read_specs(folder)
    (folder / "away").rename(folder / "model.safetensors")
    specs = read_specs(folder, [0, 1])
    assert [spec.sliding_window for spec in specs] == [5, None]
    assert all(isinstance(spec, BlockSpec) for spec in specs)
