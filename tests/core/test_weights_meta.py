"""Meta's checkpoints (model-parallel shards, grouped heads, their row order) against transformers' layout."""

from __future__ import annotations

import json
import shutil
from importlib import resources
from pathlib import Path

import pytest
import torch
import transformers
from small_models import LLAMA3_ROPE, layer_inputs_and_outputs, make_model, save_model

from frozenllm.core import load_block, save_block
from frozenllm.core.weights import open_source, read_block, read_specs

NAMES = {
    "input_layernorm": "attention_norm",
    "self_attn.q_proj": "attention.wq",
    "self_attn.k_proj": "attention.wk",
    "self_attn.v_proj": "attention.wv",
    "self_attn.o_proj": "attention.wo",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "feed_forward.w1",
    "mlp.up_proj": "feed_forward.w3",
    "mlp.down_proj": "feed_forward.w2",
}


def to_pairs(weight, heads):
    """Rows (head, half, pair) -> (head, pair, half), one row at a time."""
    size = weight.shape[0] // heads
    order = [h * size + half * size // 2 + pair for h in range(heads) for pair in range(size // 2) for half in (0, 1)]
    return weight[order]


def write_meta(model, folder, shards=1, rope=True, dtype=torch.float32, **params):
    """A transformers LLaMA as Meta would store it."""
    folder.mkdir(parents=True, exist_ok=True)
    config, state = model.config, model.state_dict()
    parts = [{} for _ in range(shards)]
    for i in range(config.num_hidden_layers):
        for own, meta in NAMES.items():
            weight = state[f"model.layers.{i}.{own}.weight"].to(dtype)
            if meta.endswith(("wq", "wk")):
                grouped = meta.endswith("wk")
                weight = to_pairs(weight, config.num_key_value_heads if grouped else config.num_attention_heads)
            along = 1 if meta.endswith(("wo", "w2")) else 0
            pieces = [weight] * shards if weight.ndim == 1 else weight.chunk(shards, dim=along)
            for part, piece in zip(parts, pieces, strict=True):
                part[f"layers.{i}.{meta}.weight"] = piece.clone()
        if rope:
            parts[0][f"layers.{i}.attention.inner_attention.rope.freqs"] = torch.ones(4)
    for number, part in enumerate(parts):
        part["norm.weight"] = state["model.norm.weight"].to(dtype)
        part["tok_embeddings.weight"] = torch.zeros(3, 4)
        torch.save(part, folder / f"consolidated.{number:02d}.pth")
    content = {
        "dim": config.hidden_size, "n_heads": config.num_attention_heads, "n_kv_heads": config.num_key_value_heads,
        "n_layers": config.num_hidden_layers, "norm_eps": config.rms_norm_eps, "multiple_of": 256, "vocab_size": -1,
    }  # fmt: skip
    (folder / "params.json").write_text(json.dumps({**content, **params}))
    return folder


@pytest.mark.parametrize("shards", [1, 2])
@pytest.mark.parametrize("rope", [True, False])
def test_equals_transformers_layout_bit_for_bit(shards, rope, tmp_path):
    model = make_model("llama")
    model.half()
    own = save_model(model, tmp_path / "own")
    meta = write_meta(model, tmp_path / "meta", shards, rope, torch.float16)
    for layers in ([0], [3], [1, 2]):
        a, b = load_block(own, layers), load_block(meta, layers)
        assert a.record.sha256 == b.record.sha256
        assert all(torch.equal(x, y) for x, y in zip(a.buffers(), b.buffers(), strict=True))


def test_four_shards_without_grouped_heads(tmp_path):
    model = make_model("llama", num_key_value_heads=4)
    own = save_model(model, tmp_path / "own")
    meta = write_meta(model, tmp_path / "meta", shards=4)
    params = json.loads((meta / "params.json").read_text())
    del params["n_kv_heads"]  # as in LLaMA 1
    (meta / "params.json").write_text(json.dumps(params))
    assert load_block(own).record.sha256 == load_block(meta).record.sha256


def test_rotary_positions_are_right_in_metas_row_order(tmp_path):
    model = make_model("llama3")
    assert LLAMA3_ROPE["original_max_position_embeddings"] != 8192
    meta = write_meta(model, tmp_path, shards=2)
    plain = make_model("llama")
    for index, (h, expected) in enumerate(layer_inputs_and_outputs(plain)):
        got = load_block(meta, [index])(h, positions="rotary", attention="causal")
        assert ((got - expected).norm() / (expected - h).norm()).item() < 1e-5


def test_scaled_rotary_angles_of_llama_3_1(tmp_path):
    rope = {**LLAMA3_ROPE, "original_max_position_embeddings": 8192, "rope_theta": 500000.0}
    model = make_model("llama", rope_parameters=rope, max_position_embeddings=131072)
    meta = write_meta(model, tmp_path, use_scaled_rope=True, rope_theta=500000.0)
    for index, (h, expected) in enumerate(layer_inputs_and_outputs(model)):
        got = load_block(meta, [index])(h, positions="rotary", attention="causal")
        assert ((got - expected).norm() / (expected - h).norm()).item() < 1e-5
    assert read_specs(meta)[0].rotary_scaling["factor"] == 8.0


def test_missing_shards_and_parameters_are_named(tmp_path):
    meta = write_meta(make_model("llama"), tmp_path, shards=2)
    (meta / "consolidated.01.pth").rename(meta / "last")
    with pytest.raises(ValueError, match=r"wq.weight has the shape \(24, 48\), but params.json with 1 shard\(s\) asks"):
        load_block(meta)
    (meta / "last").rename(meta / "consolidated.02.pth")
    with pytest.raises(ValueError, match=r"without gaps, found consolidated.00.pth, consolidated.02.pth"):
        load_block(meta)
    (meta / "consolidated.02.pth").rename(meta / "consolidated.01.pth")
    params = (meta / "params.json").read_text()
    (meta / "params.json").unlink()
    with pytest.raises(ValueError, match=r"params.json: cannot be read"):
        load_block(meta)
    (meta / "params.json").write_text(params.replace('"n_heads": 4', '"n_heads": "four"'))
    with pytest.raises(ValueError, match='"n_heads" must be a positive whole number'):
        load_block(meta)


def test_missing_and_superfluous_tensors_are_named(tmp_path):
    meta = write_meta(make_model("llama"), tmp_path)
    file = meta / "consolidated.00.pth"
    tensors = torch.load(file, weights_only=True)
    extra = {**tensors, "layers.3.attention.wq.bias": torch.zeros(48)}
    torch.save(extra, file)
    with pytest.raises(ValueError, match=r"also holds layers.3.attention.wq.bias: not a plain LLaMA"):
        load_block(meta)
    del tensors["layers.3.attention.wo.weight"]
    torch.save(tensors, file)
    with pytest.raises(ValueError, match=r"consolidated.00.pth: tensor layers.3.attention.wo.weight is missing"):
        load_block(meta)
    with pytest.raises(ValueError, match="no layer 4"):
        load_block(meta, [4])


def test_a_folder_with_both_layouts_is_read_as_transformers(tmp_path):
    model = make_model("llama")
    own = save_model(model, tmp_path / "both")
    write_meta(make_model("llama", seed=1), own)
    assert open_kind(own).startswith("transformers")
    shutil.move(own / "model.safetensors", tmp_path)
    assert open_kind(own).startswith("Meta")


def open_kind(folder):
    return open_source(folder).kind


def test_the_bundled_model_through_every_layout(tmp_path):
    """Safetensors, .bin, Meta's in one and two shards, block files: one hash, with rotary positions the same output."""
    own = Path(resources.files("frozenllm.core.weights") / "bundled")
    model = transformers.AutoModelForCausalLM.from_pretrained(own, dtype=torch.float16)
    pickled, block = tmp_path / "bin", tmp_path / "block.safetensors"
    pickled.mkdir()
    shutil.copy(own / "config.json", pickled)
    torch.save(model.state_dict(), pickled / "pytorch_model.bin")
    layers = range(model.config.num_hidden_layers)
    save_block(read_block("bundled", layers), block)
    places = [pickled, write_meta(model, tmp_path / "one", 1, dtype=torch.float16), block]
    places.append(write_meta(model, tmp_path / "two", 2, dtype=torch.float16))
    h = torch.randn(1, 9, model.config.hidden_size, generator=torch.Generator().manual_seed(0))
    for layer in layers:
        wanted = load_block("bundled", [layer])
        for place in places:
            got = load_block(place, [layer])
            assert got.record.sha256 == wanted.record.sha256
            for positions in ("none", "rotary"):
                assert torch.equal(got(h, positions=positions), wanted(h, positions=positions))
