"""Official checkpoints, written here from the description of their layout, against the official formulation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from bomb import Bomb
from official_llama import FAULTS as LLAMA_FAULTS
from official_llama import drop, put
from torch import Tensor
from videomae_reference import (
    FFN,
    FRAMES,
    LLM_HEADS,
    LLM_WIDTH,
    SIDE,
    WIDTH,
    State,
    classifier_state,
    classify,
    clips,
    pretraining_state,
    write,
)

from frozenllm.core import load_block, reload_blocks
from frozenllm.video import load_official_checkpoint

SIZES = {"image_size": SIDE, "num_frames": FRAMES}


def load(path: Path, **options: Any) -> Any:
    return load_official_checkpoint(path, **{"llm_heads": LLM_HEADS, **SIZES, **options})


def assert_equal(model: torch.nn.Module, state: State, inputs: Tensor, **options: Any) -> None:
    with torch.no_grad():
        wanted = classify(state, inputs, **options)
        assert wanted.std() > 0.1  # not drowned
        torch.testing.assert_close(model(inputs), wanted, atol=1e-5, rtol=0)


def test_equals_the_official_formulation(tmp_path: Path) -> None:
    state = classifier_state(llm=True)
    path = write(tmp_path / "vit_s_llama.pth", state)
    model = load(path)
    assert not model.training
    assert_equal(model, state, clips())
    inner = model.model
    assert (inner.llm.block.record.layers, inner.llm.output_norm, inner.grid) == ((0,), "unit", (2, 3, 3))
    assert {m.eps for m in inner.modules() if isinstance(m, torch.nn.LayerNorm)} == {1e-6}
    with torch.no_grad():
        assert torch.equal(inner(clips().transpose(1, 2)), model(clips()))
        other = load(path, llm_heads=3)
        assert (other(clips()) - model(clips())).abs().max() > 1e-3  # the file cannot tell the heads, and they matter


def test_host_alone_of_another_number_of_heads(tmp_path: Path) -> None:
    state = classifier_state()
    model = load(write(tmp_path / "vit_s.pth", state), num_heads=4)
    assert model.model.llm is None
    assert_equal(model, state, clips(), heads=4)


def test_clips_of_another_size_and_length(tmp_path: Path) -> None:
    state = classifier_state(llm=True)
    model = load(write(tmp_path / "a.pth", state), image_size=16, num_frames=6)
    assert_equal(model, state, clips(frames=6, side=16))


@pytest.mark.parametrize("key", ["model", "module"])
def test_half_precision_ddp_prefix_and_rope(tmp_path: Path, key: str) -> None:
    state = {name: tensor.half() for name, tensor in classifier_state(llm=True).items()}
    freqs = {"llama.layers.0.attention.inner_attention.rope.freqs": torch.rand(8)}
    prefix = "module." if key == "model" else ""
    path = write(tmp_path / "a.pth", {prefix + name: tensor for name, tensor in (state | freqs).items()}, key=key)
    model = load(path)
    assert model.model.llm.block.record.dtype == "float16"
    assert_equal(model, {name: tensor.float() for name, tensor in state.items()}, clips())


def test_trained_output_norm_is_honoured(tmp_path: Path) -> None:
    state = classifier_state(llm=True)
    state["llama.norm.weight"] = torch.linspace(0.2, 3, LLM_WIDTH)
    model = load(write(tmp_path / "a.pth", state))
    assert model.model.llm.output_norm == "pretrained"
    assert_equal(model, state, clips())


def test_block_can_be_filled_again(tmp_path: Path) -> None:
    path = write(tmp_path / "a.pth", classifier_state(llm=True))
    model = load(path)
    with torch.no_grad():
        before = model(clips())
        host = dict(model.state_dict())
        model.to("meta").to_empty(device="cpu")
        model.load_state_dict(host)
        with pytest.raises(RuntimeError, match="reload_blocks"):
            model(clips())
        assert reload_blocks(model) == ["model.llm.block"]
        assert torch.equal(model(clips()), before)  # positions are not lost either
    assert load_block(path, num_heads=LLM_HEADS).record.sha256 == model.model.llm.block.record.sha256


FAULTS = LLAMA_FAULTS | {
    "host tensor missing": (drop("blocks.1.norm2.bias"), r"missing videomae\.encoder\.layer\.1\.layernorm_after\.bias"),
    "bias missing": (drop("blocks.0.attn.q_bias"), r"missing videomae\.encoder\.layer\.0\..*query\.bias"),
    "no patches": (drop("patch_embed.proj.weight"), r"patch_embed\.proj\.weight is missing"),
    "learned positions": (put("pos_embed", 1, 18, WIDTH), r"unexpected pos_embed"),
    "an image model": (put("patch_embed.proj.weight", WIDTH, 3, 8, 8), r"should be 5-dimensional"),
    "host tensor misshapen": (put("blocks.0.mlp.fc2.weight", WIDTH, 7), r"another shape .*layer\.0\.output\.dense"),
    "joint projection misshapen": (put("blocks.0.attn.qkv.weight", 64, WIDTH), r"attn\.qkv\.weight has the shape"),
    "feed-forward misshapen": (put("llama.layers.0.feed_forward.w2.weight", 9, FFN), r"w2\.weight has the shape"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_are_one_sentence(tmp_path: Path, fault: str) -> None:
    change, message = FAULTS[fault]
    state = classifier_state(llm=True)
    change(state)
    with pytest.raises(ValueError, match=message) as caught:
        load(write(tmp_path / "broken.pth", state))
    assert "broken.pth" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_other_faults(tmp_path: Path) -> None:
    path = write(tmp_path / "a.pth", classifier_state(llm=True))
    for options, message in (
        ({"llm_heads": 5}, "48 query rows.*5 heads"),
        ({"num_heads": 5}, "64 wide cannot have 5 heads"),
        ({"image_size": 20}, "image_size=20 is not a multiple of the 8"),
        ({"num_frames": 3}, "num_frames=3 is not a multiple of the 2"),
    ):
        with pytest.raises(ValueError, match=message):
            load(path, **options)
    with pytest.raises(ValueError, match=r"none\.pth"):
        load(tmp_path / "none.pth")
    (tmp_path / "cut.pth").write_bytes(path.read_bytes()[:5000])
    with pytest.raises(ValueError, match=r"cut\.pth: truncated"):
        load(tmp_path / "cut.pth")
    with pytest.raises(ValueError, match=r"pre-training checkpoint.*load_host_checkpoint"):
        load(write(tmp_path / "pretrained.pth", pretraining_state()))
    write(tmp_path / "evil.pth", classifier_state(), extra=Bomb(tmp_path / "ran"))
    with pytest.raises(ValueError, match=r"evil\.pth: refused.*could run code"):
        load(tmp_path / "evil.pth")
    assert not (tmp_path / "ran").exists()
    with pytest.raises(ValueError, match=r"must be \(batch, channels, frames"):
        load(path)(clips()[0])
