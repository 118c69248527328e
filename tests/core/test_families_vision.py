"""Blocks that are not in a plain language model's checkpoint: inside LLaVA, and of a vision transformer."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import transformers
from hub_server import serve_hub
from safetensors.torch import load_file, save_file
from small_models import layer_inputs_and_outputs, make_model, randomize, save_model, update_error, write_config

from frozenllm.core import FrozenLLMLayer, load_block
from frozenllm.core.weights import read_specs


def small_vit(**settings: object) -> transformers.ViTConfig:
    sizes = dict(hidden_size=48, num_hidden_layers=3, num_attention_heads=4, intermediate_size=72)
    return transformers.ViTConfig(**{**sizes, "image_size": 32, "patch_size": 8, **settings})


@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize("headed", [True, False])
def test_vit_layers_equal_transformers(biased: bool, headed: bool, tmp_path: Path) -> None:
    kind = transformers.ViTForImageClassification if headed else transformers.ViTModel
    model = kind(small_vit(qkv_bias=biased, hidden_act="gelu" if biased else "relu")).eval()
    randomize(model, 0)
    save_model(model, tmp_path)
    vit = getattr(model, "vit", model)
    seen = []
    for layer in vit.layers:
        layer.register_forward_hook(lambda _m, args, out: seen.append((args[0].detach(), out.detach())))
    with torch.no_grad():
        last = vit(torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))).last_hidden_state
    assert len(seen) == 3
    for index, (h, expected) in enumerate(seen):
        assert update_error(load_block(tmp_path, [index])(h), expected, h) < 1e-5
    block = load_block(tmp_path, [1, 2])
    torch.testing.assert_close(block.apply_final_norm(block(seen[1][0]), "pretrained"), last, rtol=1e-5, atol=1e-5)
    auto, dense = FrozenLLMLayer(12, block), FrozenLLMLayer(12, block, exact="dense")
    dense.load_state_dict(auto.state_dict())
    tokens = torch.randn(2, 17, 12)
    torch.testing.assert_close(auto(tokens, readout=slice(0, 1)), dense(tokens)[:, :1], rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="no rotary positions"):
        FrozenLLMLayer(12, block, positions="rotary")


def small_llava(text: str) -> transformers.LlavaForConditionalGeneration:
    vision = transformers.CLIPVisionConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=16, patch_size=8
    )
    config = transformers.LlavaConfig(text_config=make_model(text).config, vision_config=vision)
    return transformers.LlavaForConditionalGeneration(config).eval()


@pytest.mark.parametrize("text", ["llama", "mistral"])
@pytest.mark.parametrize("names", ["saved", "in memory"])
def test_the_language_model_inside_llava(text: str, names: str, tmp_path: Path) -> None:
    """Layers of LLaVA's language model are those of the same language model saved on its own."""
    alone = make_model(text, seed=3)
    model = small_llava(text)
    model.model.language_model.load_state_dict(alone.model.state_dict())
    save_model(alone, tmp_path / "alone")
    folder = save_model(model, tmp_path / "llava")
    stored = load_file(folder / "model.safetensors")
    prefix = "language_model.model."  # what transformers has written up to now, as the published files have it
    assert f"{prefix}layers.0.mlp.up_proj.weight" in stored
    if names == "in memory":  # the names that its modules have since version 4.52
        moved = {name.replace(prefix, "model.language_model."): t for name, t in stored.items()}
        save_file(moved, folder / "model.safetensors")
    block, expected = load_block(folder), load_block(tmp_path / "alone")
    assert block.record.sha256 == expected.record.sha256
    assert block.record.layers == expected.record.layers == (3,)
    assert block.specs == expected.specs
    assert block.has_final_norm
    for index, (h, after) in enumerate(layer_inputs_and_outputs(alone)):
        got = load_block(folder, [index])(h, positions="rotary", attention="causal")
        assert update_error(got, after, h) < 1e-5


def test_llava_from_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the layer's bytes are fetched, and the cached block file is the same block."""
    model = small_llava("llama")
    folder = save_model(model, tmp_path / "llava")
    with serve_hub(tmp_path / "home", monkeypatch) as server:
        server.add("org/llava", folder)
        hashes = {load_block("org/llava", [1]).record.sha256 for _ in range(2)}
    assert hashes == {load_block(folder, [1]).record.sha256}


def test_llavas_own_files_have_a_flat_config(tmp_path: Path) -> None:
    """The authors' repositories: LLaMA's config and names, and a projector and a vision tower beside the layers."""
    model = make_model("llama")
    folder = save_model(model, tmp_path)
    expected = load_block(folder).record.sha256
    write_config(folder, model_type="llava", architectures=["LlavaLlamaForCausalLM"], mm_hidden_size=16)
    tensors = load_file(folder / "model.safetensors")
    save_file({**tensors, "model.mm_projector.0.weight": torch.zeros(4, 4)}, folder / "model.safetensors")
    assert load_block(folder).record.sha256 == expected


def test_a_text_config_of_an_unknown_kind_is_named(tmp_path: Path) -> None:
    folder = save_model(make_model("llama"), tmp_path)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({"model_type": "other", "text_config": {"model_type": "bloom"}}))
    with pytest.raises(ValueError, match="'bloom'"):
        read_specs(folder)
    (folder / "config.json").write_text(json.dumps({"model_type": "other", "text_config": config}))
    with pytest.raises(ValueError, match=r"no tensor is named language_model\.model\.layers"):
        load_block(folder)
