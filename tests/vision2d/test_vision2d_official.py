"""Official checkpoints, written here from the description of their layout, against the official formulation."""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from bomb import Bomb
from official_llama import FAULTS as LLAMA_FAULTS
from official_llama import attend, drop, llama_forward, llama_state, put
from safetensors.torch import save_file
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from frozenllm.core import llm_blocks, load_block, reload_blocks
from frozenllm.vision2d import FrozenLLMViT, load_host_checkpoint, load_official_checkpoint

WIDTH, LLM_WIDTH, LLM_HEADS, FFN = 128, 64, 4, 172
PATCH, SIDE, DEPTH, CLASSES = 8, 3, 2, 10
State = dict[str, Tensor]


def official_state(*, llm: bool = True, seed: int = 0) -> State:
    """Tensors as the official ``vit_llama.py`` names and shapes them, with weights that let signals pass."""
    generator = torch.Generator().manual_seed(seed)

    def weight(*shape: int) -> Tensor:
        fan_in = math.prod(shape[1:]) if len(shape) > 1 else 1
        return torch.randn(shape, generator=generator) * (fan_in**-0.5)

    def norm(name: str) -> State:
        return {f"{name}.weight": 1 + 0.1 * weight(WIDTH), f"{name}.bias": 0.1 * weight(WIDTH)}

    state: State = {
        "cls_token": weight(1, 1, WIDTH) * 8,
        "pos_embed": weight(1, SIDE * SIDE + 1, WIDTH) * 2,
        "patch_embed.proj.weight": weight(WIDTH, 3, PATCH, PATCH),
        "patch_embed.proj.bias": 0.1 * weight(WIDTH),
    }
    for i in range(DEPTH):
        state |= norm(f"blocks.{i}.norm1") | norm(f"blocks.{i}.norm2")
        for name, rows, columns in (
            ("attn.qkv", 3 * WIDTH, WIDTH),
            ("attn.proj", WIDTH, WIDTH),
            ("mlp.fc1", 4 * WIDTH, WIDTH),
            ("mlp.fc2", WIDTH, 4 * WIDTH),
        ):
            state[f"blocks.{i}.{name}.weight"] = weight(rows, columns)
            state[f"blocks.{i}.{name}.bias"] = 0.1 * weight(rows)
    state |= norm("norm") | {"head.weight": weight(CLASSES, WIDTH), "head.bias": 0.1 * weight(CLASSES)}
    if not llm:
        return state
    state |= llama_state(weight, WIDTH, LLM_WIDTH, FFN)
    return state


def write(path: Path, state: State, **beside: Any) -> Path:
    """A training checkpoint as the official ``main.py`` writes it."""
    arguments = argparse.Namespace(model="vit_small_patch16_224_llama", lr=1e-3, llama_path=None, data_set="IMNET")
    average = {name: tensor * 0.5 for name, tensor in state.items()}  # must not be what is read
    content = {"model": state, "epoch": 299, "model_ema": average, "scaler": {"scale": 65536.0}, "args": arguments}
    torch.save({**content, **beside}, path)
    return path


def official_forward(state: State, images: Tensor, host_heads: int = WIDTH // 64) -> Tensor:
    """The official model: blocks, mapper, LLaMA block without positions or mask, RMSNorm, mapper, norm, class token."""
    s = state

    def layer_norm(x: Tensor, name: str) -> Tensor:
        return F.layer_norm(x, (WIDTH,), s[f"{name}.weight"], s[f"{name}.bias"], 1e-6)

    def linear(x: Tensor, name: str) -> Tensor:
        return F.linear(x, s[f"{name}.weight"], s.get(f"{name}.bias"))

    x = F.conv2d(images, s["patch_embed.proj.weight"], s["patch_embed.proj.bias"], stride=PATCH)
    x = x.flatten(2).transpose(1, 2)
    x = torch.cat([s["cls_token"].expand(len(x), -1, -1), x], dim=1) + s["pos_embed"]
    for i in range(DEPTH):
        b = f"blocks.{i}"
        q, k, v = linear(layer_norm(x, f"{b}.norm1"), f"{b}.attn.qkv").chunk(3, dim=-1)
        x = x + linear(attend(q, k, v, host_heads), f"{b}.attn.proj")
        x = x + linear(F.gelu(linear(layer_norm(x, f"{b}.norm2"), f"{b}.mlp.fc1")), f"{b}.mlp.fc2")
    x = llama_forward(s, x, LLM_HEADS)
    return linear(layer_norm(x, "norm")[:, 0], "head")


@pytest.fixture
def images() -> Tensor:
    return torch.randn(4, 3, PATCH * SIDE, PATCH * SIDE, generator=torch.Generator().manual_seed(7))


def test_equals_the_official_formulation(tmp_path: Path, images: Tensor) -> None:
    state = official_state()
    model = load_official_checkpoint(write(tmp_path / "vit_s_llama.pth", state), llm_heads=LLM_HEADS)
    assert not model.training
    with torch.no_grad():
        wanted = official_forward(state, images)
        assert wanted.std() > 0.1  # not drowned
        torch.testing.assert_close(model(images), wanted, atol=1e-5, rtol=0)
        torch.testing.assert_close(model.forward_head(model.forward_features(images)), wanted, atol=1e-5, rtol=0)
    other = load_official_checkpoint(tmp_path / "vit_s_llama.pth", llm_heads=8)
    assert (other(images) - wanted).abs().max() > 1e-3  # the number of heads matters, and the file cannot tell


def test_host_alone(tmp_path: Path, images: Tensor) -> None:
    state = official_state(llm=False)
    model = load_official_checkpoint(write(tmp_path / "vit_s.pth", state), num_heads=4)
    assert model.llm is None
    with torch.no_grad():
        torch.testing.assert_close(model(images), official_forward(state, images, host_heads=4), atol=1e-5, rtol=0)


def test_half_precision_ddp_prefix_and_rope(tmp_path: Path, images: Tensor) -> None:
    state = {name: tensor.half() for name, tensor in official_state().items()}
    freqs = {"llama.layers.0.attention.inner_attention.rope.freqs": torch.rand(8)}
    path = write(tmp_path / "a.pth", {f"module.{name}": tensor for name, tensor in (state | freqs).items()})
    model = load_official_checkpoint(path, llm_heads=LLM_HEADS)
    assert model.llm.block.record.dtype == "float16"
    with torch.no_grad():
        wanted = official_forward({name: tensor.float() for name, tensor in state.items()}, images)
        torch.testing.assert_close(model(images), wanted, atol=1e-5, rtol=0)


def test_trained_output_norm_is_honoured(tmp_path: Path, images: Tensor) -> None:
    state = official_state()
    state["llama.norm.weight"] = torch.linspace(0.2, 3, LLM_WIDTH)
    model = load_official_checkpoint(write(tmp_path / "a.pth", state), llm_heads=LLM_HEADS)
    assert model.llm.output_norm == "pretrained"
    with torch.no_grad():
        torch.testing.assert_close(model(images), official_forward(state, images), atol=1e-5, rtol=0)


def test_block_can_be_filled_again(tmp_path: Path, images: Tensor) -> None:
    path = write(tmp_path / "a.pth", official_state())
    model = load_official_checkpoint(path, llm_heads=LLM_HEADS)
    with torch.no_grad():
        before = model(images)
        host = {name: tensor for name, tensor in model.state_dict().items()}
        model.to("meta").to_empty(device="cpu")
        model.load_state_dict(host)
        with pytest.raises(RuntimeError, match="reload_blocks"):
            model(images)
        assert reload_blocks(model) == ["llm.block"]
        assert torch.equal(model(images), before)
        write(path, official_state(seed=1))
        model.to("meta").to_empty(device="cpu")
        with pytest.raises(ValueError, match=r"a\.pth.*now gives"):
            reload_blocks(model)


def test_same_hash_as_the_layer_from_elsewhere(tmp_path: Path) -> None:
    state = official_state()
    block = load_block(write(tmp_path / "a.pth", state), num_heads=LLM_HEADS)
    (tmp_path / "meta").mkdir()
    meta = {name.removeprefix("llama."): tensor for name, tensor in state.items() if name.startswith("llama.")}
    torch.save(meta, tmp_path / "meta" / "consolidated.00.pth")
    params = f'{{"dim": {LLM_WIDTH}, "n_heads": {LLM_HEADS}, "n_layers": 1, "norm_eps": 1e-6}}'
    (tmp_path / "meta" / "params.json").write_text(params)
    elsewhere = load_block(tmp_path / "meta")
    assert block.record.sha256 == elsewhere.record.sha256
    assert block.specs == elsewhere.specs
    pointcloud = {f"module.{name}": tensor for name, tensor in state.items() if name.startswith("llama")}
    torch.save({"base_model": pointcloud, "epoch": 300, "metrics": {"acc": 88.0}}, tmp_path / "ckpt-best.pth")
    assert load_block(tmp_path / "ckpt-best.pth", num_heads=LLM_HEADS).record.sha256 == block.record.sha256
    # The same block in a host of our own, straight from the authors' file.
    model = FrozenLLMViT(img_size=16, patch_size=8, embed_dim=64, depth=1, num_heads=1, llm=block)
    assert [b.record.source for _, b in llm_blocks(model)] == [str(tmp_path / "a.pth")]


FAULTS = LLAMA_FAULTS | {
    "host tensor missing": (drop("blocks.1.norm2.bias"), r"missing blocks\.1\.norm2\.bias"),
    "no patches": (drop("patch_embed.proj.weight"), r"patch_embed\.proj\.weight is missing"),
    "host tensor unexpected": (put("dist_token", 1, 1, WIDTH), r"unexpected dist_token"),
    "host tensor misshapen": (put("blocks.0.mlp.fc2.weight", WIDTH, 7), r"another shape blocks\.0\.mlp\.fc2\.weight"),
    "position embedding flat": (put("pos_embed", 10, WIDTH), r"pos_embed has the shape"),
    "image not square": (put("pos_embed", 1, 8, WIDTH), r"7 patches.*square"),
    "block tensor unexpected": (put("llama.layers.0.attention.wq.bias", LLM_WIDTH), r"also holds .*wq\.bias"),
    "block tensor flat": (put("llama.layers.0.attention.wk.weight", 64), r"wk\.weight has the shape \(64,\)"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_are_one_sentence(tmp_path: Path, fault: str) -> None:
    change, message = FAULTS[fault]
    state = official_state()
    change(state)
    with pytest.raises(ValueError, match=message) as caught:
        load_official_checkpoint(write(tmp_path / "broken.pth", state), llm_heads=LLM_HEADS)
    assert "broken.pth" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_other_faults(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"none\.pth: cannot be read"):
        load_official_checkpoint(tmp_path / "none.pth")
    with pytest.raises(ValueError, match=r"64 query rows.*7 heads"):
        load_official_checkpoint(write(tmp_path / "a.pth", official_state()), llm_heads=7)
    with pytest.raises(ValueError, match="128 wide cannot have 5 heads"):
        load_official_checkpoint(tmp_path / "a.pth", num_heads=5, llm_heads=LLM_HEADS)
    (tmp_path / "cut.pth").write_bytes((tmp_path / "a.pth").read_bytes()[:5000])
    with pytest.raises(ValueError, match=r"cut\.pth: truncated"):
        load_official_checkpoint(tmp_path / "cut.pth")
    torch.save({"model": {"epoch": 3}}, tmp_path / "empty.pth")
    with pytest.raises(ValueError, match=r"empty\.pth: holds no model"):
        load_official_checkpoint(tmp_path / "empty.pth")
    write(tmp_path / "evil.pth", official_state(), extra=Bomb(tmp_path / "ran"))
    with pytest.raises(ValueError, match=r"evil\.pth: refused.*could run code"):
        load_official_checkpoint(tmp_path / "evil.pth")
    torch.save(Bomb(tmp_path / "ran"), tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    with pytest.warns(UserWarning, match="torch 1.6"), pytest.raises(ValueError, match=r"old\.pth"):
        load_official_checkpoint(tmp_path / "old.pth")
    assert not (tmp_path / "ran").exists()
    with pytest.raises(ValueError, match=r"llama\.layers\.0"):
        load_block(write(tmp_path / "host.pth", official_state(llm=False)))


def small(llm: Any = None, **options: Any) -> FrozenLLMViT:
    settings = {"img_size": 16, "patch_size": 4, "embed_dim": 24, "depth": 2, "num_heads": 2, "num_classes": 5}
    spec = {"hidden_size": 48, "num_heads": 4, "num_kv_heads": 4, "head_dim": 12, "intermediate_size": 64}
    return FrozenLLMViT(**{**settings, **options}, llm=llm or {"kind": "random", "spec": spec})


def plain(**options: Any) -> VisionTransformer:
    settings = {"img_size": 16, "patch_size": 4, "embed_dim": 24, "depth": 2, "num_heads": 2, "num_classes": 5}
    return VisionTransformer(**{**settings, **options})


@pytest.mark.parametrize("layout", ["deit", "timm", "safetensors", "module"])
def test_plain_transformers_as_hosts(tmp_path: Path, layout: str) -> None:
    host, model = plain(), small()
    adapter = model.llm.adapter_in.weight.clone()
    if layout == "module":
        source: Any = host
    elif layout == "safetensors":
        source = tmp_path / "model.safetensors"
        save_file(host.state_dict(), source)
    else:
        source = tmp_path / "model.pth"
        torch.save({"model" if layout == "deit" else "state_dict": host.state_dict(), "epoch": 1}, source)
    kept = load_host_checkpoint(model, source)
    assert kept == ["llm.adapter_in.weight", "llm.adapter_out.weight"]
    assert torch.equal(model.llm.adapter_in.weight, adapter)
    model.llm = None
    images = torch.randn(2, 3, 16, 16)
    assert torch.equal(model.eval()(images), host.eval()(images))


def test_hosts_that_do_not_fit(tmp_path: Path) -> None:
    model = small()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for options, message in (
        ({"num_classes": 7}, r"of another shape head\.weight \(7, 24\).*head=False"),
        ({"depth": 3}, r"unexpected blocks\.2"),
        ({"depth": 1}, r"missing blocks\.1"),
        ({"patch_size": 8}, r"8 x 8 pixels"),
        ({"embed_dim": 32}, r"of another shape"),
        ({"num_classes": 0}, r"missing head"),
        ({"init_values": 1.0}, r"unexpected blocks\.0\.ls1"),
        ({"num_heads": 4}, r"attn\.num_heads of its blocks is 4, the model's is 2"),  # weights of the same shapes
        ({"act_layer": "quick_gelu"}, r"mlp\.act of its blocks is QuickGELU, the model's is GELU"),
    ):
        with pytest.raises(ValueError, match=message):
            load_host_checkpoint(model, plain(**options))
    with pytest.raises(ValueError, match="frozen layer of its own"):
        load_host_checkpoint(model, small())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_host_with_another_head_or_resolution(caplog: pytest.LogCaptureFixture) -> None:
    model, host = small(), plain(num_classes=7, img_size=32)
    caplog.set_level("INFO", logger="frozenllm")
    kept = load_host_checkpoint(model, host, head=False)
    assert kept == ["head.bias", "head.weight", "llm.adapter_in.weight", "llm.adapter_out.weight"]
    assert "resampled from 65 tokens" in caplog.text
    assert "llm.adapter_in.weight" in caplog.text
    assert torch.equal(model.blocks[1].mlp.fc1.weight, host.blocks[1].mlp.fc1.weight)


@pytest.mark.parametrize(
    ("theirs", "ours"), [((7, 28), (7, 28)), ((7, 28), (14, 14)), ((4, 16), (14, 14)), ((4, 8), (8, 4))]
)
def test_positions_of_a_model_that_is_no_square(theirs: tuple[int, int], ours: tuple[int, int]) -> None:
    def of(kind: Any, grid: tuple[int, int]) -> Any:
        return kind(img_size=tuple(4 * side for side in grid))

    host, model = of(plain, theirs), of(small, ours)
    # A registered variant's config says 224 pixels, a grid of 14 x 14 with its patches, whatever it was built with.
    model.pretrained_cfg = {"input_size": (3, 56, 56)}
    load_host_checkpoint(model, host)
    assert torch.equal(model.pos_embed[:, :1], host.pos_embed[:, :1])
    picture = host.pos_embed[0, 1:].detach().T.reshape(1, 24, *theirs)
    wanted = F.interpolate(picture, size=ours, mode="bicubic", antialias=True) if theirs != ours else picture
    torch.testing.assert_close(model.pos_embed[0, 1:].T.reshape(1, 24, *ours), wanted)
    if theirs == ours:
        images = torch.randn(2, 3, 4 * ours[0], 4 * ours[1])
        model.llm = None
        assert torch.equal(model.eval()(images), host.eval()(images))


def test_registered_variant_takes_timm_weights() -> None:
    host = timm.create_model("vit_tiny_patch16_224", img_size=32, num_classes=3)
    model = timm.create_model("vit_tiny_patch16_224_frozenllm", img_size=32, num_classes=3, llm="bundled")
    load_host_checkpoint(model, host)
    assert torch.equal(model.blocks[11].attn.qkv.weight, host.blocks[11].attn.qkv.weight)
