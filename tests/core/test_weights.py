"""Reading, writing and reloading blocks: transformers folders, block files, the bundled model."""

from __future__ import annotations

import json
import os
import shutil
import warnings

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from small_models import make_model, save_model, write_config

from frozenllm.core import FrozenLLMLayer, LLMBlock, load_block, random_block, reload_blocks, save_block
from frozenllm.core.weights import open_source, parse_dtype, read_block


def same_block(a: LLMBlock, b: LLMBlock) -> bool:
    pairs = zip(a.buffers(), b.buffers(), strict=True)
    return a.specs == b.specs and all(torch.equal(x, y) and x.dtype == y.dtype for x, y in pairs)


def state(folder):
    return load_file(folder / "model.safetensors")


# Layouts


def test_every_transformers_layout_gives_the_same_block(model, folder, tmp_path):
    wanted = load_block(folder, [1, 2])
    sharded = save_model(model, tmp_path / "sharded", max_shard_size="40KB")
    assert len(list(sharded.glob("model-*.safetensors"))) > 2
    config = folder / "config.json"

    single = tmp_path / "bin"
    single.mkdir()
    shutil.copy(config, single)
    torch.save(state(folder), single / "pytorch_model.bin")

    shards = tmp_path / "bin_shards"
    shards.mkdir()
    shutil.copy(config, shards)
    names = sorted(state(folder))
    weight_map = {}
    for number, part in enumerate((names[::2], names[1::2])):
        file = f"pytorch_model-{number}.bin"
        torch.save({name: state(folder)[name] for name in part}, shards / file)
        weight_map.update(dict.fromkeys(part, file))
    (shards / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weight_map}))

    base = tmp_path / "base"  # without the language-model head, names have no prefix
    base.mkdir()
    shutil.copy(config, base)
    inner = {n.removeprefix("model."): t for n, t in state(folder).items() if n.startswith("model.")}
    save_file(inner, base / "model.safetensors")

    for place in (sharded, single, shards, base):
        block = load_block(place, [1, 2])
        assert same_block(block, wanted)
        assert block.record.sha256 == wanted.record.sha256
        assert block.record.source == str(place)


def test_legacy_bin_is_read_whole_with_a_warning(folder, tmp_path):
    shutil.copy(folder / "config.json", tmp_path)
    torch.save(state(folder), tmp_path / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    with pytest.warns(UserWarning, match=r"pytorch_model.bin.*cannot be memory-mapped: reading all"):
        block = load_block(tmp_path)
    assert block.record.sha256 == load_block(folder).record.sha256


def test_layers_count_from_either_end(folder):
    assert load_block(folder).record.layers == (3,)
    assert load_block(folder, [-1, 0, -4]).record.layers == (3, 0, 0)
    assert load_block(folder, [1]).record.sha256 == load_block(folder, [-3]).record.sha256
    assert load_block(folder, [1]).record.sha256 != load_block(folder, [2]).record.sha256


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_stored_dtype_is_hashed_and_compute_dtype_is_not(dtype, folder, copy):
    save_file({n: t.to(dtype) for n, t in state(folder).items()}, copy / "model.safetensors")
    half, full = load_block(copy, dtype="bfloat16"), load_block(copy)
    assert half.dtype == torch.bfloat16
    assert full.dtype == torch.float32
    assert half.record == full.record
    assert full.record.dtype == str(dtype).removeprefix("torch.")
    weight = state(folder)["model.layers.3.self_attn.v_proj.weight"].to(dtype)
    assert torch.equal(full.canonical_tensors()[0]["attn.v.weight"], weight.float())
    assert (full.record.sha256 == load_block(folder).record.sha256) == (dtype == torch.float32)


def test_bundled_model_loads_layer_by_layer():
    count = len(open_source("bundled").layers)
    assert count > 1
    hashes = {load_block("bundled", [layer]).record.sha256 for layer in range(count)}
    assert len(hashes) == count
    assert load_block("bundled").record.source == "bundled"


# Block files


def test_block_file_keeps_bytes_spec_and_hash(folder, tmp_path):
    contents = read_block(folder, [0, 2])
    path = tmp_path / "block.safetensors"
    assert save_block(contents, path) == contents.record
    again = load_block(path)
    assert same_block(again, load_block(folder, [0, 2]))
    assert again.record.sha256 == contents.record.sha256
    assert again.record.source == str(path)
    assert again.record.layers == (0, 2)
    assert load_block(path, [2]).record.sha256 == load_block(folder, [2]).record.sha256
    assert load_block(path, [-2]).record.layers == (0,)
    with pytest.raises(ValueError, match=r"no layer 1: it holds layer\(s\) 0, 2"):
        load_block(path, [1])
    assert list(tmp_path.iterdir()) == [path]


def test_a_widened_block_is_saved_in_the_dtype_of_its_source(folder, copy, tmp_path):
    save_file({n: t.half() for n, t in state(folder).items()}, copy / "model.safetensors")
    block = load_block(copy)
    assert save_block(block, tmp_path / "b.safetensors") == block.record
    assert load_file(tmp_path / "b.safetensors")["layers.0.attn.q.weight"].dtype == torch.float16
    assert same_block(load_block(tmp_path / "b.safetensors"), block)


def test_a_narrowed_or_trained_block_gets_a_hash_of_its_own(folder, tmp_path):
    narrow = load_block(folder, dtype="bfloat16")
    record = save_block(narrow, tmp_path / "narrow.safetensors")
    assert record.dtype == "bfloat16"
    assert record.sha256 != narrow.record.sha256
    assert same_block(load_block(tmp_path / "narrow.safetensors", dtype="bfloat16"), narrow)

    trained = load_block(folder).make_trainable()
    with torch.no_grad():
        next(trained.parameters()).add_(1.0)
    record = save_block(trained, tmp_path / "trained.safetensors")
    assert record.sha256 != trained.record.sha256
    assert record.source.endswith(" (trained)")
    again = load_block(tmp_path / "trained.safetensors").canonical_tensors()[0]
    assert all(torch.equal(t, again[name]) for name, t in trained.canonical_tensors()[0].items())
    assert not torch.equal(again["attn_norm.weight"], load_block(folder).canonical_tensors()[0]["attn_norm.weight"])


def test_every_family_survives_a_block_file(tmp_path):
    for name in ("gemma2", "phi3_long", "opt_350m", "gpt2_scaled", "gpt_neox", "qwen3"):
        folder = save_model(make_model(name), tmp_path / name)
        path = tmp_path / f"{name}.safetensors"
        record = save_block(read_block(folder, [0, 1]), path)
        assert same_block(load_block(path), load_block(folder, [0, 1]))
        assert load_block(path).record.sha256 == record.sha256


def test_replacing_a_block_file_leaves_no_half_file(folder, tmp_path):
    path = tmp_path / "block.safetensors"
    save_block(read_block(folder, [0]), path)
    save_block(read_block(folder, [1]), path)
    assert load_block(path).record.layers == (1,)
    assert os.listdir(tmp_path) == ["block.safetensors"]
    with pytest.raises(ValueError, match="cannot be written"):
        save_block(read_block(folder), tmp_path / "missing" / "block.safetensors")


# Under the meta device


def test_real_weights_inside_the_meta_device(folder, tmp_path):
    path = tmp_path / "block.safetensors"
    save_block(read_block(folder), path)
    wanted = load_block(folder)
    for source in (folder, path):
        with torch.device("meta"):
            block = load_block(source)
        assert block.is_loaded
        assert block.device.type == "cpu"
        assert same_block(block, wanted)


def test_real_weights_under_another_default_dtype(folder):
    torch.set_default_dtype(torch.bfloat16)
    try:
        block = load_block(folder)
    finally:
        torch.set_default_dtype(torch.float32)
    assert same_block(block, load_block(folder))


def test_reload_fills_what_the_meta_device_lost(folder, tmp_path):
    path = tmp_path / "block.safetensors"
    save_block(read_block(folder, [1]), path)
    model = torch.nn.Sequential(
        FrozenLLMLayer(8, load_block(folder, [0, 2])),
        FrozenLLMLayer(8, load_block(path)),
        FrozenLLMLayer(8, random_block(load_block(folder).specs[0], seed=5, num_blocks=2)),
        FrozenLLMLayer(8, load_block(folder)),
    )
    wanted = [[buffer.clone() for buffer in layer.block.buffers()] for layer in model]
    for layer in model[:3]:
        layer.block.to("meta").to_empty(device="cpu")
        with pytest.raises(RuntimeError, match="reload_blocks"):
            layer(torch.randn(1, 2, 8))
    assert reload_blocks(model) == ["0.block", "1.block", "2.block"]
    for layer, buffers in zip(model, wanted, strict=True):
        assert layer.block.is_loaded
        assert all(torch.equal(a, b) for a, b in zip(layer.block.buffers(), buffers, strict=True))
    assert reload_blocks(model) == []


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_inside_a_transformers_model_read_with_from_pretrained(dtype, folder, tmp_path):
    class Config(transformers.PretrainedConfig):
        model_type = "frozen_host"

    class Host(transformers.PreTrainedModel):
        config_class = Config

        def __init__(self, config):
            super().__init__(config)
            self.frozen = FrozenLLMLayer(8, load_block(folder, [0, 2], dtype="bfloat16"))
            self.post_init()

        def forward(self, x):
            return self.frozen(x)

    tokens = torch.randn(1, 5, 8, dtype=dtype)
    model = Host(Config()).to(dtype).eval()
    save_model(model, tmp_path)
    again = Host.from_pretrained(tmp_path, dtype=dtype)
    if not again.frozen.block.is_loaded:
        with pytest.raises(RuntimeError, match="reload_blocks"):
            again(tokens)
        reload_blocks(again)
    assert same_block(again.frozen.block, load_block(folder, [0, 2], dtype="bfloat16"))
    assert torch.equal(again(tokens), model(tokens))


def test_reload_from_a_source_that_changed_is_refused(copy):
    block = load_block(copy)
    tensors = state(copy)
    tensors["model.layers.3.mlp.up_proj.weight"][0, 0] += 1
    save_file(tensors, copy / "model.safetensors")
    block.to("meta")
    with pytest.raises(ValueError, match="the source now gives"):
        reload_blocks(block)
    assert not block.is_loaded


# Errors


def expect(message, *args, **kwargs):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(ValueError, match=message) as caught:
            load_block(*args, **kwargs)
    text = str(caught.value)
    assert "\n" not in text
    assert len(text) < 500
    return text


def test_unknown_sources(tmp_path):
    expect(r"no such file or folder", tmp_path / "missing")
    expect(r"no such file or folder", "some/where/else")  # "some/where" names a hub repository
    expect(r"did you mean \"bundled\"", "bundeled")
    expect(r"did you mean \"bundled\"", "Bundled")
    expect(r"is empty", "")
    expect(r"the folder is empty", tmp_path)
    (tmp_path / "notes.txt").write_text("x")
    expect(r"neither config.json nor consolidated.00.pth is among its files \(notes.txt\)", tmp_path)
    expect(r"notes.txt: is neither a folder nor a block file", tmp_path / "notes.txt")


def test_revision_of_a_local_source_is_ignored_with_a_warning(folder):
    with pytest.warns(UserWarning, match="revision='main' is ignored"):
        load_block(folder, revision="main")


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ([4], r"no layer 4: it holds layers 0 to 3 \(or -1 to -4\)"),
        ([-5], "no layer -5"),
        ([], "one or more integers"),
        ("31", "one or more integers"),
        ([1.0], "must be integers"),
        ([True], "must be integers"),
        (["1"], "must be integers"),
    ],
)
def test_layers_out_of_range_or_of_the_wrong_kind(layers, message, folder):
    expect(message, folder, layers)


def test_unknown_dtype(folder):
    expect("Unknown dtype 'int3'; choose one of float32", folder, dtype="int3")
    assert parse_dtype("bf16") is torch.bfloat16
    assert parse_dtype(None) is None
    expect("floating point", folder, dtype=torch.int8)


def test_missing_tensor_is_named(copy):
    tensors = state(copy)
    del tensors["model.layers.3.mlp.up_proj.weight"]
    save_file(tensors, copy / "model.safetensors")
    assert str(copy) in expect(r"layer 3 is incomplete: no tensor model.layers.3.mlp.up_proj.weight", copy)
    load_block(copy, [2])
    del tensors["model.norm.weight"]
    save_file(tensors, copy / "model.safetensors")
    expect(r"the final norm is incomplete: no tensor model.norm.weight", copy, [2])


def test_missing_layer_is_named(copy):
    write_config(copy, num_hidden_layers=9)
    expect(r"layer 8 is missing: no tensor is named model.layers.8.\* or layers.8.\*", copy)


def test_tensors_that_the_family_lacks_are_not_dropped(copy):
    tensors = state(copy)
    tensors["model.layers.3.self_attn.q_proj.bias"] = torch.zeros(48)
    save_file(tensors, copy / "model.safetensors")
    expect(r"also holds model.layers.3.self_attn.q_proj.bias, which the family llama does not have", copy)
    load_block(copy, [0])


def test_wrong_shape_is_named(copy):
    tensors = state(copy)
    tensors["model.layers.3.self_attn.o_proj.weight"] = torch.zeros(48, 47)
    save_file(tensors, copy / "model.safetensors")
    text = expect(r"o_proj.weight has the shape \(48, 47\), but config.json asks for \(48, 48\)", copy)
    assert str(copy / "model.safetensors") in text


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_values_that_are_not_finite_are_named(dtype, value, copy):
    tensors = {name: t.to(dtype) for name, t in state(copy).items()}
    tensors["model.layers.3.mlp.down_proj.weight"][17, 5] = value
    save_file(tensors, copy / "model.safetensors")
    expect(r"model.safetensors: tensor model.layers.3.mlp.down_proj.weight holds values that are not finite", copy)


def test_values_too_large_for_the_dtype_are_named(copy, tmp_path):
    tensors = {name: t.bfloat16() for name, t in state(copy).items()}
    tensors["model.layers.3.mlp.down_proj.weight"][17, 5] = 1e6
    save_file(tensors, copy / "model.safetensors")
    expect(r"down_proj.weight holds values that are too large for torch.float16", copy, dtype="float16")
    with pytest.raises(ValueError, match=r"too large for torch.float16"):
        read_block(copy).cast(torch.float16)
    assert load_block(copy, dtype="bfloat16").canonical_tensors()[0]["ffn.down.weight"].max() > 9e5


def test_unknown_device(folder):
    expect("Unknown device 'abacus'", folder, device="abacus")


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.float8_e4m3fn])
def test_quantised_weights_are_named(dtype, copy):
    tensors = state(copy)
    tensors["model.layers.3.mlp.up_proj.weight"] = torch.zeros(72, 48).to(dtype)
    save_file(tensors, copy / "model.safetensors")
    expect(r"up_proj.weight is stored as torch.\w+, so the file seems to be quantised", copy)


def test_broken_index_files(model, tmp_path):
    folder = save_model(model, tmp_path, max_shard_size="40KB")
    index = folder / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    shard = content["weight_map"]["model.layers.3.self_attn.q_proj.weight"]
    (folder / shard).rename(folder / "gone")
    expect(rf"{shard}: missing, but model.safetensors.index.json says that it holds", folder)
    (folder / "gone").rename(folder / shard)
    index.write_text(json.dumps({"weight_map": {"model.norm.weight": "../elsewhere.safetensors"}}))
    expect("not inside its folder", folder)
    index.write_text(json.dumps({"weights": {}}))
    expect('has no "weight_map"', folder)
    index.write_text("{")
    expect("is not valid JSON", folder)
    index.write_text("[]")
    expect("holds a JSON list", folder)


def test_git_lfs_pointer_is_named(copy):
    (copy / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    expect("is a Git LFS pointer.*git lfs pull", copy)


def test_a_plain_safetensors_file_is_not_a_block_file(folder):
    expect("is not a block file of frozenllm; to read a model, give the folder", folder / "model.safetensors")


def test_a_block_file_that_was_changed_is_refused(folder, tmp_path):
    path = tmp_path / "block.safetensors"
    save_block(read_block(folder), path)
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)
    expect("damaged: its weights do not have the SHA-256 that it records", path)
