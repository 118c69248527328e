"""VideoMAE's checkpoints as hosts: the original's files and names against transformers', and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hub_server import serve_hub
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import VideoMAEConfig, VideoMAEForPreTraining, VideoMAEForVideoClassification, VideoMAEModel
from videomae_reference import (
    CLASSES,
    DECODER_DEPTH,
    DECODER_WIDTH,
    DEPTH,
    FRAMES,
    PATCH,
    SIDE,
    TUBELET,
    WIDTH,
    classifier_state,
    classify,
    clips,
    pretraining_state,
    reconstruct,
    write,
)

from frozenllm.video import FrozenLLMVideoMAE, load_host_checkpoint, videomae_config
from frozenllm.video.hosts import load_host
from frozenllm.video.pretrained import to_original, to_transformers

SIZES: dict[str, Any] = {
    "image_size": SIDE, "patch_size": PATCH, "num_frames": FRAMES, "tubelet_size": TUBELET, "hidden_size": WIDTH,
    "num_hidden_layers": DEPTH, "num_attention_heads": 1, "intermediate_size": 4 * WIDTH, "num_labels": CLASSES,
}  # fmt: skip
SPEC = {"hidden_size": 48, "num_heads": 4, "num_kv_heads": 2, "head_dim": 12, "intermediate_size": 64}
LLM = {"kind": "random", "spec": SPEC}
ADAPTERS = ["llm.adapter_in.weight", "llm.adapter_out.weight"]


def theirs(kind: type[nn.Module], **options: Any) -> Any:
    """A model of transformers', with the original's epsilon in all norms."""
    decoder = {"decoder_hidden_size": DECODER_WIDTH, "decoder_num_hidden_layers": DECODER_DEPTH}
    decoder |= {"decoder_num_attention_heads": 1, "decoder_intermediate_size": 4 * DECODER_WIDTH}
    model = kind(VideoMAEConfig(**{**SIZES, **decoder, "layer_norm_eps": 1e-6, **options})).eval()
    for module in model.modules():
        if isinstance(module, nn.LayerNorm):
            module.eps = 1e-6
    with torch.no_grad():
        for parameter in model.parameters():  # biases that start at zero would hide a loss
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model


def ours(llm: Any = LLM, **options: Any) -> FrozenLLMVideoMAE:
    torch.manual_seed(0)
    return FrozenLLMVideoMAE(videomae_config(**{**SIZES, **options}), llm=llm).eval()


@torch.no_grad()
def assert_same_tokens(model: FrozenLLMVideoMAE, tokens: torch.Tensor) -> None:
    torch.testing.assert_close(model.tokens(clips().transpose(1, 2)), tokens, atol=1e-5, rtol=0)


@torch.no_grad()
def test_classifier_of_the_original_in_transformers() -> None:
    state = classifier_state()
    model = theirs(VideoMAEForVideoClassification)
    model.load_state_dict(to_transformers(state))
    wanted = classify(state, clips())
    assert wanted.std() > 0.1
    torch.testing.assert_close(model(clips().transpose(1, 2)).logits, wanted, atol=1e-5, rtol=0)
    back = to_original(model.state_dict())
    assert back.keys() == state.keys()
    assert all(torch.equal(back[name], state[name]) for name in state)


@torch.no_grad()
def test_pretraining_model_of_the_original_in_transformers() -> None:
    state = pretraining_state()
    model = theirs(VideoMAEForPreTraining, use_mean_pooling=False)
    model.load_state_dict(to_transformers(state))
    masked = torch.zeros(2, FRAMES // TUBELET * (SIDE // PATCH) ** 2, dtype=torch.bool)
    masked[0, [0, 3, 4, 11]] = masked[1, [2, 9, 16, 17]] = True
    wanted = reconstruct(state, clips(), masked)
    found = model(clips().transpose(1, 2), bool_masked_pos=masked).logits
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=0)
    back = to_original(model.state_dict(), pretraining=True)
    assert back.keys() == state.keys()
    assert all(torch.equal(back[name], state[name]) for name in state)


@pytest.mark.parametrize("key", ["model", "module"])
def test_pretraining_file_as_a_host(tmp_path: Path, key: str) -> None:
    state = pretraining_state()
    model = ours()
    adapter, head = model.llm.adapter_in.weight.clone(), model.classifier.weight.clone()
    kept = load_host_checkpoint(model, write(tmp_path / "videomae_ssv2_vits.pth", state, key=key))
    assert kept == ["classifier.bias", "classifier.weight", "fc_norm.bias", "fc_norm.weight", *ADAPTERS]
    assert torch.equal(model.llm.adapter_in.weight, adapter)
    assert torch.equal(model.classifier.weight, head)
    assert (model.fc_norm.eps, model.videomae.encoder.layer[0].layernorm_before.eps) == (1e-6, 1e-6)
    plain = theirs(VideoMAEModel)
    plain.load_state_dict(
        {k.removeprefix("videomae."): v for k, v in to_transformers(state).items() if "videomae" in k}, strict=False
    )
    with torch.no_grad():
        assert_same_tokens(model, plain(clips().transpose(1, 2)).last_hidden_state)


def test_fine_tuning_file_as_a_host(tmp_path: Path) -> None:
    state = classifier_state()
    model = ours(llm=None)
    path = write(tmp_path / "vit_s.pth", state)
    assert load_host_checkpoint(model, path) == []
    with torch.no_grad():
        torch.testing.assert_close(model(clips().transpose(1, 2)), classify(state, clips()), atol=1e-5, rtol=0)
    other = ours(num_labels=3)
    with pytest.raises(ValueError, match=r"of another shape classifier\.weight \(7, 64\).*head=False"):
        load_host_checkpoint(other, path)
    assert load_host_checkpoint(other, path, head=False) == ["classifier.bias", "classifier.weight", *ADAPTERS]
    assert torch.equal(other.fc_norm.weight, state["fc_norm.weight"])


@pytest.mark.parametrize("kind", [VideoMAEForVideoClassification, VideoMAEForPreTraining, VideoMAEModel])
@pytest.mark.parametrize("form", ["folder", "file", "module"])
def test_transformers_models_as_hosts(tmp_path: Path, kind: type[nn.Module], form: str) -> None:
    """As saved, transformers' files name the attention's biases otherwise than its models do."""
    plain = theirs(kind, use_mean_pooling=kind is not VideoMAEForPreTraining)
    plain.save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    source = {"folder": tmp_path, "file": file, "module": plain}[form]
    model = ours()
    kept = load_host_checkpoint(model, source)
    head = ["classifier.bias", "classifier.weight", "fc_norm.bias", "fc_norm.weight"]
    assert kept == ([] if kind is VideoMAEForVideoClassification else head) + ADAPTERS
    encoder = plain if kind is VideoMAEModel else plain.videomae
    encoder.layernorm = None
    with torch.no_grad():
        assert_same_tokens(model, encoder(clips().transpose(1, 2)).last_hidden_state)
        if kind is VideoMAEForVideoClassification:
            model.llm = None
            wanted = plain(clips().transpose(1, 2)).logits
            torch.testing.assert_close(model(clips().transpose(1, 2)), wanted, atol=1e-5, rtol=0)


@pytest.mark.parametrize("names", ["query.bias", "q_bias"])
def test_both_names_of_the_biases(tmp_path: Path, names: str) -> None:
    plain = theirs(VideoMAEForVideoClassification)
    plain.save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    new = {"attention.q_bias": "attention.query.bias", "attention.v_bias": "attention.value.bias"}
    state = load_file(file)
    for a, b in (new if names == "query.bias" else {b: a for a, b in new.items()}).items():
        state = {name.replace(a, b): tensor for name, tensor in state.items()}
    assert any(name.endswith(names) for name in state)
    save_file(state, file, {"format": "pt"})
    model = ours()
    load_host_checkpoint(model, tmp_path)
    with torch.no_grad():
        assert_same_tokens(model, plain.videomae(clips().transpose(1, 2)).last_hidden_state)


def test_hosts_that_do_not_fit(tmp_path: Path) -> None:
    model = ours()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for options, message in (
        ({"num_hidden_layers": 3}, r"unexpected videomae\.encoder\.layer\.2"),
        ({"num_hidden_layers": 1}, r"missing videomae\.encoder\.layer\.1"),
        ({"num_attention_heads": 4}, "has 4 attention heads, the model 1"),
        ({"tubelet_size": 1}, r"of another shape videomae\.embeddings"),
        ({"qv_bias": False}, r"missing .*bias"),
    ):
        folder = tmp_path / next(iter(options))
        theirs(VideoMAEForVideoClassification, **options).save_pretrained(folder)
        with pytest.raises(ValueError, match=message) as caught:
            load_host_checkpoint(model, folder)
        assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="frozen layer of its own"):
        load_host_checkpoint(model, ours())
    with pytest.raises(ValueError, match="frozen layer of its own"):
        load_host_checkpoint(model, write(tmp_path / "a.pth", classifier_state(llm=True)))
    with pytest.raises(ValueError, match=r"missing classifier\.bias"):
        load_host_checkpoint(model, write(tmp_path / "b.pth", pretraining_state()), head=True)
    with pytest.raises(ValueError, match="There is no checkpoint"):
        load_host_checkpoint(model, tmp_path / "none.pth")
    with pytest.raises(ValueError, match=r"config\.json"):
        load_host_checkpoint(model, tmp_path)
    broken = classifier_state()
    broken["blocks.0.attn.qkv.weight"] = broken["blocks.0.attn.qkv.weight"][:10]
    with pytest.raises(ValueError, match=r"c\.pth: blocks\.0\.attn\.qkv\.weight has the shape"):
        load_host_checkpoint(model, write(tmp_path / "c.pth", broken))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_what_was_kept_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", logger="frozenllm")
    load_host_checkpoint(ours(), write(tmp_path / "a.pth", pretraining_state()))
    assert "kept as they are: classifier.bias, classifier.weight, fc_norm.bias" in caplog.text


@pytest.mark.parametrize("format", ["safetensors", "bin"])
def test_hosts_from_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, format: str) -> None:
    plain = theirs(VideoMAEForPreTraining, use_mean_pooling=False)
    plain.save_pretrained(tmp_path / "repository")
    if format == "bin":
        torch.save(load_file(tmp_path / "repository/model.safetensors"), tmp_path / "repository/pytorch_model.bin")
        (tmp_path / "repository/model.safetensors").unlink()
    model = ours()
    with serve_hub(tmp_path / "home", monkeypatch) as hub:
        hub.add("somebody/videomae", tmp_path / "repository")
        load_host(model, "hf:somebody/videomae")
        with pytest.raises(ValueError, match=r"model\.host=hf:somebody/nothing: the hub cannot give these") as caught:
            load_host(model, "hf:somebody/nothing")
        assert "\n" not in str(caught.value)
    plain.videomae.layernorm = None
    with torch.no_grad():
        assert_same_tokens(model, plain.videomae(clips().transpose(1, 2)).last_hidden_state)
