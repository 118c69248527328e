"""`FrozenLLMViT` in timm's world: the registered variants and every utility that timm's own models support."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from timm.data import resolve_data_config
from timm.models import group_parameters
from timm.models.vision_transformer import VisionTransformer
from timm.optim import create_optimizer_v2

from frozenllm.core import FrozenLLMLayer, random_block
from frozenllm.core.analysis import tapped
from frozenllm.core.spec import BlockSpec
from frozenllm.vision2d import FrozenLLMViT

SPEC = {"hidden_size": 40, "num_heads": 4, "num_kv_heads": 4, "head_dim": 10, "intermediate_size": 64}
LLM = {"kind": "random", "spec": SPEC}
NAMES = [f"vit_{size}_patch16_224_frozenllm" for size in ("tiny", "small", "base")]
SMALL = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 4, "num_heads": 2, "num_classes": 7}


def make(**options: Any) -> FrozenLLMViT:
    torch.manual_seed(0)
    return timm.create_model(NAMES[0], **{**SMALL, "llm": LLM, **options}).eval()


def images(batch: int = 2, size: int = 32) -> torch.Tensor:
    return torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(7))


@pytest.mark.parametrize(("name", "width", "heads"), list(zip(NAMES, (192, 384, 768), (3, 6, 12), strict=True)))
def test_registered_variants_have_the_papers_shapes(name: str, width: int, heads: int) -> None:
    with torch.device("meta"):
        model = timm.create_model(name, llm="none")
    assert (model.embed_dim, len(model.blocks), model.blocks[0].attn.num_heads) == (width, 12, heads)
    assert model.patch_embed.patch_size == (16, 16)
    assert model.global_pool == "token"
    assert name in timm.list_models("*_frozenllm")
    host = timm.create_model(name.removesuffix("_frozenllm"), device="meta")
    assert {k: v.shape for k, v in model.state_dict().items()} == {k: v.shape for k, v in host.state_dict().items()}


@pytest.mark.parametrize("name", NAMES)
def test_registered_variants_train(name: str) -> None:
    model = timm.create_model(name, llm=LLM, img_size=32, depth=2, num_classes=5, drop_path_rate=0.1).train()
    out = model(images())
    assert out.shape == (2, 5)
    out.square().sum().backward()
    assert all(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize("options", [
    {},
    {"global_pool": "avg"},
    {"global_pool": "max", "fc_norm": False},
    {"global_pool": "map"},
    {"reg_tokens": 3, "global_pool": "avg", "pool_include_prefix": True},
    {"reg_tokens": 2},
    {"class_token": False, "global_pool": "avg"},
    {"llm_position": "head"},
    {"llm_position": "middle"},
    {"llm_position": 1},
    {"llm": "none"},
    {"llm": {"kind": "mlp", "hidden_size": 32}},
])  # fmt: skip
def test_head_of_features_is_the_forward(options: dict[str, Any]) -> None:
    model = make(**options)
    for p in model.parameters():
        p.data.mul_(3.0 if p.ndim > 1 else 1.0)
    with torch.no_grad():
        features = model.forward_features(images())
        assert features.shape == (2, 16 + model.num_prefix_tokens, 24)
        torch.testing.assert_close(model.forward_head(features), model(images()), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("position", ["tail", "middle", "head"])
def test_tokens_are_those_that_enter_the_layer(position: str) -> None:
    model, host = make(llm_position=position), make(llm="none", llm_position=position)
    with torch.no_grad():
        with tapped(model) as taps:
            model(images())
        assert torch.equal(model.tokens(images()), taps["host"])
        assert torch.equal(host.tokens(images()), taps["host"])  # under one seed, both hosts start equal


def test_only_a_lone_class_token_at_the_tail_is_a_readout() -> None:
    assert make().reads_class_token
    assert make(reg_tokens=2).reads_class_token
    for options in ({"global_pool": "avg"}, {"llm_position": 3}, {"llm": "none"}, {"global_pool": "map"}):
        assert not make(**options).reads_class_token
    model = make()
    model.reset_classifier(3, global_pool="avg")
    assert not model.reads_class_token


def test_placement_is_before_the_final_norm() -> None:
    """Blocks, frozen layer, norm, pool, head, written out."""
    model = make()
    x = model._pos_embed(model.patch_embed(images()))
    x = model.blocks(x)
    x = model.llm.adapter_out(model.llm.block.apply_final_norm(model.llm.block(model.llm.adapter_in(x)), "unit"))
    expected = model.head(model.norm(x)[:, 0])
    torch.testing.assert_close(model(images()), expected, rtol=1e-4, atol=1e-5)
    for adapter in (model.llm.adapter_in, model.llm.adapter_out):
        assert 0.015 < adapter.weight.std() < 0.025


@pytest.mark.parametrize(("position", "index"), [("head", 0), ("middle", 2), ("tail", 4), (3, 3)])
def test_positions(position: str | int, index: int) -> None:
    model = make(llm_position=position)
    x = model._pos_embed(model.patch_embed(images()))
    x = model.blocks[index:](model.llm(model.blocks[:index](x)))
    torch.testing.assert_close(model.forward_features(images()), model.norm(x), rtol=1e-4, atol=1e-5)


def test_hosts_start_equal_with_and_without_the_layer() -> None:
    alone, other = make(llm="none"), make()
    weights = other.state_dict()
    for name, weight in alone.state_dict().items():
        assert torch.equal(weight, weights[name]), name


def test_host_alone_is_timms_vit() -> None:
    alone = make(llm="none")
    host = VisionTransformer(**SMALL).eval()
    host.load_state_dict(alone.state_dict())
    torch.testing.assert_close(alone(images()), host(images()))
    for ours, theirs in zip(
        alone.forward_intermediates(images())[1], host.forward_intermediates(images())[1], strict=True
    ):
        torch.testing.assert_close(ours, theirs)
    mask = torch.ones(17, 17, dtype=torch.bool).tril()
    torch.testing.assert_close(alone(images(), attn_mask=mask), host(images(), attn_mask=mask))


@pytest.mark.parametrize("options", [
    {"indices": [0, 3], "norm": True},
    {"indices": 2, "return_prefix_tokens": True},
    {"indices": [1], "stop_early": True, "intermediates_only": True},
    {"output_fmt": "NLC", "return_prefix_tokens": True},
])  # fmt: skip
def test_forward_intermediates_has_timms_form(options: dict[str, Any]) -> None:
    """With the layer at the tail, all blocks but the last give what timm's own method gives."""
    model = make()
    host = VisionTransformer(**SMALL).eval()
    host.load_state_dict({k: v for k, v in model.state_dict().items() if not k.startswith("llm.")})
    ours, theirs = (m.forward_intermediates(images(), **options) for m in (model, host))
    if not options.get("intermediates_only"):
        torch.testing.assert_close(ours[0], model.forward_features(images()), rtol=1e-4, atol=1e-5)
        ours, theirs = ours[1], theirs[1]
    assert len(ours) == len(theirs)
    taken = {"[0, 3]": [0, 3], "2": [2, 3], "[1]": [1], "None": [0, 1, 2, 3]}[str(options.get("indices"))]
    for block, a, b in zip(taken, ours, theirs, strict=True):
        if block != 3:
            torch.testing.assert_close(a, b)
        else:
            shape = [t.shape for t in a] if isinstance(a, tuple) else a.shape
            assert shape == ([t.shape for t in b] if isinstance(b, tuple) else b.shape)


def test_last_normalised_intermediate_is_forward_features() -> None:
    model = make(llm_position="middle")
    (tokens, prefix), *_ = model.forward_intermediates(
        images(), [3], norm=True, output_fmt="NLC", return_prefix_tokens=True, intermediates_only=True
    )
    torch.testing.assert_close(torch.cat([prefix, tokens], 1), model.forward_features(images()), rtol=1e-4, atol=1e-5)


def test_feature_extraction_and_pruning(tmp_path: Path) -> None:
    features = make(features_only=True, out_indices=(0, 2))
    assert [tuple(f.shape) for f in features(images())] == [(2, 24, 4, 4)] * 2
    model = make(llm_position="middle")
    before = model.forward_intermediates(images(), [1], intermediates_only=True)[0]
    model.prune_intermediate_layers([1])
    assert model.llm is not None
    assert len(model.blocks) == 2
    torch.testing.assert_close(model.forward_intermediates(images(), [1], intermediates_only=True)[0], before)
    tail = make()
    tail.prune_intermediate_layers([1])
    assert tail.llm is None
    tail.save_pretrained(tmp_path)
    assert torch.equal(FrozenLLMViT.from_pretrained(tmp_path).eval()(images()), tail.eval()(images()))


def test_classifier_input_size_and_data_config() -> None:
    model = make()
    assert model.get_classifier() is model.head
    model.reset_classifier(3)
    assert model(images()).shape == (2, 3)
    assert model.num_classes == 3
    model.set_input_size(img_size=(48, 48))
    assert model(images(size=48)).shape == (2, 3)
    config = resolve_data_config(model=timm.create_model(NAMES[1], llm=LLM, depth=1))
    assert config["input_size"] == (3, 224, 224)
    assert config["crop_pct"] == 0.875
    assert config["interpolation"] == "bicubic"
    assert config["mean"] == (0.485, 0.456, 0.406)
    dynamic = make(dynamic_img_size=True)
    assert dynamic(images(size=40)).shape == (2, 7)


def test_adapters_are_in_the_last_layer_decay_group() -> None:
    model = make()
    groups = group_parameters(model, model.group_matcher())
    last = groups[max(groups)]
    assert {"llm.adapter_in.weight", "llm.adapter_out.weight", "head.weight", "head.bias"} == set(last)
    optimizer = create_optimizer_v2(model, "adamw", lr=1.0, weight_decay=0.1, layer_decay=0.5)
    scales = {id(p): (g["lr_scale"], g["weight_decay"]) for g in optimizer.param_groups for p in g["params"]}
    assert scales[id(model.llm.adapter_in.weight)] == (1.0, 0.1)
    assert scales[id(model.cls_token)][1] == 0.0
    assert scales[id(model.cls_token)][0] == 0.5**5
    assert len(scales) == len(list(model.parameters()))


def test_gradient_checkpointing_changes_nothing() -> None:
    plain, saving = make().train(), make().train()
    saving.set_grad_checkpointing()
    assert saving.llm.checkpoint_activations
    for model in (plain, saving):
        model(images()).square().sum().backward()
    for (name, a), (_, b) in zip(plain.named_parameters(), saving.named_parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, msg=lambda m, n=name: f"{n}: {m}")


def test_init_weights_keeps_the_adapters_own_init() -> None:
    model = make(llm={**LLM, "adapter_init": "default"}, embed_dim=64)
    model.init_weights()
    assert model.llm.adapter_in.weight.abs().max() <= 64**-0.5
    assert model.llm.adapter_in.weight.std() > 0.05


def test_ready_blocks_and_layers() -> None:
    block = random_block(BlockSpec.from_dict(SPEC))
    first, second = make(llm=block), make(llm=block)
    assert first.llm.block is second.llm.block is block
    layer = FrozenLLMLayer(24, block, output_norm="none")
    assert make(llm=layer).llm is layer


def test_bundled_block_through_create_model() -> None:
    model = timm.create_model(NAMES[1], llm="bundled", img_size=32, depth=1, num_classes=4)
    assert model.llm.block.record.source == "bundled"
    assert model.llm.block.is_loaded
    assert model(images()).isfinite().all()
    names = [name for name, _ in model.named_parameters() if name.startswith("llm.")]
    assert names == ["llm.adapter_in.weight", "llm.adapter_out.weight"]


def test_weights_move_and_cast() -> None:
    model = make(dtype=torch.bfloat16)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert model(images().bfloat16()).isfinite().all()


@pytest.mark.parametrize(("options", "words"), [
    ({}, "needs llm="),
    ({"llm": None}, "needs llm="),
    ({"llm": "no/such/folder"}, "no/such/folder"),
    ({"llm": {"kinds": "random"}}, "kinds"),
    ({"llm": {"kind": "radnom"}}, "radnom"),
    ({"llm": {"source": "bundled", "layers": [77]}}, "77"),
    ({"llm": LLM, "llm_position": "end"}, "end"),
    ({"llm": LLM, "llm_position": 13}, "13"),
    ({"llm": LLM, "llm_position": True}, "True"),
])  # fmt: skip
def test_mistakes_give_one_sentence(options: dict[str, Any], words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ValueError, match=words) as caught:
        timm.create_model(NAMES[0], img_size=32, **options)
    assert "\n" not in str(caught.value)


def test_masks_are_refused_with_the_layer() -> None:
    with pytest.raises(ValueError, match="attn_mask"):
        make()(images(), attn_mask=torch.ones(17, 17, dtype=torch.bool))
    with pytest.raises(ValueError, match="is_causal"):
        make()(images(), is_causal=True)
