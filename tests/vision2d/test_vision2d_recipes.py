"""Every recipe composes to the paper's values, and builds."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from omegaconf import DictConfig, OmegaConf
from recipes import LLAMA_7B, SMALL_BLOCK, block_without_weights, names
from torch import nn

from frozenllm.core.training import build_model, compose_config
from frozenllm.vision2d import FrozenLLMViT
from frozenllm.vision2d.train import CONFIG

RECIPES = names(CONFIG, "recipe")
WIDTHS = {"tiny": 192, "small": 384, "base": 768}


def compose(recipe: str, *overrides: str) -> DictConfig:
    return compose_config(CONFIG, [f"recipe={recipe}", *overrides])


def test_all_of_the_papers_rows_are_there() -> None:
    wanted = {f"imagenet_vit_{size}{tail}" for size in WIDTHS for tail in ("", "_llama")}
    assert wanted | {"digits", "imagenet_vit_small_100ep", "imagenet_vit_small_llama_100ep"} <= set(RECIPES)


@pytest.mark.parametrize("recipe", RECIPES)
def test_recipe_builds_at_small_widths(recipe: str) -> None:
    small = ["model.embed_dim=24", "model.num_heads=2"] if recipe in ("digits", "toy_imagenet_s") else []
    small = small or ["+model.embed_dim=24", "+model.num_heads=2", "+model.depth=2", "+model.img_size=32"]
    with_layer = compose(recipe).llm.kind != "none"
    cfg = compose(recipe, *small, *(SMALL_BLOCK if with_layer else []))
    model = build_model(cfg)
    assert isinstance(model, FrozenLLMViT)
    assert (model.llm is not None) == with_layer
    out = model(torch.randn(2, 3, 32, 32))
    assert out.shape == (2, cfg.data.num_classes)
    out.sum().backward()


@pytest.mark.parametrize("size", WIDTHS)
@pytest.mark.parametrize("llama", [False, True])
def test_imagenet_recipes_have_the_papers_values(size: str, llama: bool) -> None:
    cfg = compose(f"imagenet_vit_{size}" + ("_llama" if llama else ""))
    OmegaConf.resolve(cfg)
    assert cfg.llm.kind == ("pretrained" if llama else "none")
    if llama:
        assert cfg.llm.source == "huggyllama/llama-7b"
        assert list(cfg.llm.layers) == [31]
        assert not cfg.llm.trainable
        assert (cfg.llm.positions, cfg.llm.attention) == ("none", "bidirectional")
    assert cfg.model.variant == f"vit_{size}_patch16_224_frozenllm"
    assert cfg.model.llm_position == "tail"
    assert cfg.model.drop_path_rate == 0.1
    assert cfg.model.num_classes == 1000
    assert 4 * cfg.data.batch_size == 1024
    assert cfg.data.repeats == 3
    expected: dict[str, Any] = {"type": "AdamW", "weight_decay": 0.05, "eps": 1e-8, "clip_grad": None}
    assert {key: cfg.optim[key] for key in expected} == expected
    assert cfg.optim.lr * 1024 / cfg.optim.lr_batch == pytest.approx(1e-3)
    assert cfg.optim.ema == {"decay": 0.99996, "evaluate": "raw"}
    assert cfg.optim.adapter_lr_mult == 1.0
    assert cfg.schedule.epochs == 300
    assert cfg.schedule.warmup_epochs == 20
    assert (cfg.schedule.warmup_lr, cfg.schedule.min_lr) == (1e-6, 1e-5)
    mix = cfg.task.batch_transform
    assert (mix.mixup_alpha, mix.cutmix_alpha, mix.prob, mix.switch_prob, mix.label_smoothing) == (
        0.8,
        1.0,
        1.0,
        0.5,
        0.1,
    )
    augment = cfg.data.train.transform
    assert augment.auto_augment == "rand-m9-mstd0.5-inc1"
    assert augment.interpolation == "bicubic"
    assert (augment.re_prob, augment.re_mode, augment.re_count) == (0.25, "pixel", 1)
    assert cfg.data.val.transform.crop_pct * 256 == 224


def test_ablation_schedule_differs_in_its_length_alone() -> None:
    for recipe in ("imagenet_vit_small", "imagenet_vit_small_llama"):
        long, short = (OmegaConf.to_container(compose(name), resolve=True) for name in (recipe, recipe + "_100ep"))
        assert long["schedule"].pop("epochs") == 300
        assert short["schedule"].pop("epochs") == 100
        long.pop("recipe"), short.pop("recipe")
        assert long == short


def test_vit_small_llama_has_the_papers_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """LLaMA-7B's last block and its adapters, without the weights."""
    cfg = compose("imagenet_vit_small_llama", f"+llm.spec={LLAMA_7B}", "llm.kind=random")
    monkeypatch.setattr("frozenllm.core.build.random_block", block_without_weights)
    with torch.device("meta"):
        model = build_model(cfg)
    adapters = [model.llm.adapter_in.weight, model.llm.adapter_out.weight]
    assert sum(w.numel() for w in adapters) == 3_145_728
    assert model.llm.block.num_parameters() == 202_383_360
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == 22_050_664 + 3_145_728  # DeiT-S, adapters


@pytest.mark.parametrize(("override", "words"), [
    ("recipe=imagnet", "choose one of"),
    ("llm=lama_7b", "llama_7b"),
    ("model.width=3", "model.width"),
    ("data=cifar", "digits"),
])  # fmt: skip
def test_mistyped_overrides_give_one_sentence(override: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        compose_config(CONFIG, [override])


@pytest.mark.parametrize(("overrides", "words"), [
    (["model.variant=resnet50"], "model.variant must be one of"),
    (["+model.widht=3"], "no option 'widht'"),
    (["model.llm_position=end"], "llm_position must be"),
])  # fmt: skip
def test_wrong_model_options_give_one_sentence(overrides: list[str], words: str) -> None:
    with pytest.raises(ValueError, match=words) as caught:
        build_model(compose("digits", *overrides))
    assert "\n" not in str(caught.value)


def test_llm_choices_all_build() -> None:
    kinds = {"none": 0, "bundled": 1, "random": 1, "random_trained": 1, "finetuned": 1, "mlp": 1}
    for choice, layers in kinds.items():
        model = build_model(compose("digits", f"llm={choice}"))
        assert isinstance(model.llm, nn.Module) == bool(layers), choice
        assert model(torch.zeros(1, 3, 32, 32)).shape == (1, 10)
