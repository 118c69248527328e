"""Every recipe composes to the paper's values, and builds; so does every ablation."""

from __future__ import annotations

import json
import re
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import DictConfig, OmegaConf
from recipes import LLAMA_7B, SMALL_BLOCK, SPEC, block_without_weights, names, sweep, toy_line
from torch import nn

from frozenllm.core.training import build_model, compose_config, param_groups
from frozenllm.core.training.composition import resolve
from frozenllm.core.training.schedule import schedule_factor
from frozenllm.core.training.settings import engine_settings
from frozenllm.video import FrozenLLMVideoMAE
from frozenllm.video.train import CONFIG

RECIPES, ABLATIONS = names(CONFIG, "recipe"), names(CONFIG, "ablation")
PAPER = [f"ssv2_vit_{size}{tail}" for size in ("small", "base") for tail in ("", "_llama")]
TOYS = ("moving_digits", "resting_digits")
SMALL = ["model.host=null", "model.image_size=32", "model.num_frames=4", "+model.hidden_size=24"]
SMALL += ["+model.num_attention_heads=2", "+model.intermediate_size=48", "+model.num_hidden_layers=2"]


def composed(recipe: str, *overrides: str) -> DictConfig:
    root = [] if recipe in TOYS else ["data.root=/data"]
    return compose_config(CONFIG, [f"recipe={recipe}", *root, *overrides])


def test_all_of_the_papers_rows_are_there() -> None:
    assert {*PAPER, *TOYS} <= set(RECIPES)
    assert {"mlp", "random_trained"} <= set(ABLATIONS)


@pytest.mark.parametrize("recipe", RECIPES)
def test_recipe_builds_at_small_widths(recipe: str) -> None:
    toy = recipe in TOYS
    kind = composed(recipe).llm.kind
    cfg = composed(recipe, *([] if toy else SMALL), *(SMALL_BLOCK if kind != "none" else []))
    model = build_model(cfg)
    assert isinstance(model, FrozenLLMVideoMAE)
    assert (model.llm is not None) == (kind != "none")
    out = model(torch.randn(2, cfg.data.num_frames if toy else 4, 3, 32, 32))
    assert out.shape == (2, cfg.data.num_classes)
    out.sum().backward()


@pytest.mark.parametrize("recipe", PAPER)
def test_recipes_have_the_papers_values(recipe: str) -> None:
    small, llama = "small" in recipe, recipe.endswith("_llama")
    cfg = resolve(composed(recipe, "model.host=videomae.pth"))
    assert cfg.llm.kind == ("pretrained" if llama else "none")
    if llama:
        assert (cfg.llm.source, list(cfg.llm.layers)) == ("huggyllama/llama-7b", [15])
        assert not cfg.llm.trainable
        assert (cfg.llm.positions, cfg.llm.attention, cfg.llm.adapter_init) == ("none", "bidirectional", None)
    assert cfg.model.size == ("small" if small else "base")
    assert (cfg.model.image_size, cfg.model.num_frames, cfg.model.num_classes) == (224, 16, 174)
    assert (cfg.model.drop_path_rate, cfg.model.head_init_scale) == (0.1, 1e-3)
    videos = {True: 24, False: 12}[small]
    assert cfg.data.batch_size * (4 if llama else 2) == videos
    assert cfg.data.samples_per_video == 2
    assert cfg.data.collate == "video"
    assert cfg.data.repeats == 1
    expected: dict[str, Any] = {"type": "AdamW", "weight_decay": 0.05, "eps": 1e-8, "clip_grad": None, "ema": None}
    assert {key: cfg.optim[key] for key in expected} == expected
    assert list(cfg.optim.betas) == [0.9, 0.999]
    assert cfg.optim.layer_decay == (0.7 if small else 0.75)
    assert cfg.optim.adapter_lr_mult == 1.0
    assert (cfg.schedule.epochs, cfg.schedule.warmup_epochs) == (40 if small else 30, 5)
    mix = cfg.task.batch_transform
    assert (mix.mixup_alpha, mix.cutmix_alpha, mix.prob, mix.switch_prob) == (0.8, 1.0, 1.0, 0.5)
    assert (mix.label_smoothing, cfg.task.label_smoothing) == (0.1, 0.0)
    augment = cfg.data.train.transform
    assert (augment.auto_augment, augment.hflip, augment.erase) == ("rand-m7-n4-mstd0.5-inc1", 0.0, 0.25)
    assert list(augment.scale) == [0.08, 1.0]
    assert cfg.data.train.sampling.type == "segments"
    assert cfg.data.test.views == {"temporal": 2, "spatial": 3}
    assert cfg.test_checkpoint == "last"
    assert (cfg.runtime.seed, cfg.runtime.precision) == (0, "fp16")


@pytest.mark.parametrize("recipe", PAPER)
def test_learning_rate_is_the_official_codes(recipe: str) -> None:
    """Scaled by the videos of a step, warm-up from 0, cosine per iteration down to a scaled end."""
    cfg = resolve(composed(recipe, "model.host=videomae.pth", "runtime.precision=fp32"))
    world = 4 if recipe.endswith("_llama") else 2
    settings = engine_settings(cfg, "runs", torch.device("cpu"), "none", world)
    videos = cfg.data.batch_size * world
    peak = {"small": 9.375e-5, "base": 2.34375e-5}[cfg.model.size]
    assert settings["optim_wrapper"]["optimizer"]["lr"] == pytest.approx(peak)
    shape = {key: settings["param_scheduler"][0][key] for key in ("epochs", "shape", "warmup", "start", "end", "shift")}
    assert not settings["param_scheduler"][0]["per_epoch"]
    steps = 168913 // videos
    # utils.py, cosine_scheduler: its warm-up reaches the peak in its own last step, ours in the one after.
    warmup, total = 5 * steps, cfg.schedule.epochs * steps
    progress = np.arange(total - warmup) / (total - warmup)
    end = 1e-6 * videos / 256
    wanted = end + 0.5 * (peak - end) * (1 + np.cos(np.pi * progress))
    at = [warmup, warmup + 1, warmup + 12345, total // 2, total - 1]
    found = [peak * schedule_factor(step / steps, **shape) for step in at]
    np.testing.assert_allclose(found, wanted[np.array(at) - warmup], rtol=1e-9)
    for step in (0, 1, warmup // 3, warmup - 1):
        official = np.linspace(0, peak, warmup)[step]
        assert abs(peak * schedule_factor(step / steps, **shape) - official) <= peak / (warmup - 1) * (1 + 1e-9)


@pytest.mark.parametrize("recipe", PAPER)
def test_layer_decay_is_the_official_codes(recipe: str) -> None:
    """Its table, printed: layer 0 is the embedding, block i layer i + 1, all the rest (adapters, head) the last."""
    tiny = SMALL_BLOCK if recipe.endswith("_llama") else []
    with torch.device("cpu"):
        cfg = composed(recipe, *SMALL[:-1], *tiny)  # all 12 blocks
        model = build_model(cfg)
    decay = cfg.optim.layer_decay
    groups = param_groups(model, 1.0, 0.05, layer_decay=decay, no_decay=cfg.optim.no_decay)
    found = {name: (group["lr_scale"], group["weight_decay"]) for group in groups for name in group["names"]}
    assert found.keys() == {name for name, _ in model.named_parameters()}
    table: dict[int, set[str]] = {}
    for name, parameter in model.named_parameters():
        if name.startswith("videomae.embeddings."):
            layer = 0
        elif match := re.match(r"videomae\.encoder\.layer\.(\d+)\.", name):
            layer = int(match[1]) + 1
        else:
            layer = 13
        table.setdefault(layer, set()).add(name.split(".")[0] if layer == 13 else name.rsplit(".", 2)[0])
        scale, weight_decay = found[name]
        assert scale == pytest.approx(decay ** (13 - layer)), name
        assert weight_decay == (0.0 if parameter.ndim == 1 else 0.05), name
    for layer in sorted(table):
        print(f"{recipe}  layer {layer:2d}  scale {decay ** (13 - layer):.6f}  {', '.join(sorted(table[layer])[:3])}")
    assert len(table) == 14
    assert table[13] == {"fc_norm", "classifier"} | ({"llm"} if tiny else set())
    adapters = [found[name] for name in found if "adapter" in name]
    assert adapters == ([(1.0, 0.05)] * 2 if tiny else [])


@pytest.mark.parametrize(
    ("size", "width", "heads", "millions", "adapters"),
    [("small", 384, 6, 21.95, 3_145_728), ("base", 768, 12, 86.36, 6_291_456)],
)
def test_llama_hosts_have_the_papers_size(
    size: str, width: int, heads: int, millions: float, adapters: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """LLaMA-7B's block and its adapters, without the weights."""
    cfg = composed(f"ssv2_vit_{size}_llama", "model.host=null", f"+llm.spec={LLAMA_7B}", "llm.kind=random")
    monkeypatch.setattr("frozenllm.core.build.random_block", block_without_weights)
    with torch.device("meta"):
        model = build_model(cfg)
    assert sum(w.numel() for n, w in model.named_parameters() if n.startswith("llm.")) == adapters
    assert model.llm.block.num_parameters() == 202_383_360
    own = sum(w.numel() for n, w in model.named_parameters() if not n.startswith("llm."))
    assert own / 1e6 == pytest.approx(millions, abs=5e-3)
    assert (model.config.hidden_size, model.config.num_attention_heads, model.grid) == (width, heads, (8, 14, 14))


@pytest.mark.parametrize("name", ABLATIONS)
def test_ablation_composes_and_builds(name: str, recwarn: pytest.WarningsRecorder) -> None:
    many, seen, built = sweep(CONFIG, name), [], set()
    for job in many:
        cfg = compose_config(CONFIG, [*job, "data.root=/data", *SMALL, f"+llm.spec={SPEC}", "llm.dtype=null"])
        assert (cfg.recipe, cfg.name) == ("ssv2_vit_small_llama", name)
        if cfg.llm.kind not in ("none", "mlp"):
            assert cfg.llm.source == "huggyllama/llama-7b"
        seen.append(json.dumps(OmegaConf.to_container(cfg.llm)))
        if cfg.llm.kind in built:
            continue
        built.add(cfg.llm.kind)
        if cfg.llm.kind == "pretrained":
            cfg.llm.kind = "random"
        cfg.llm.source = None
        model = build_model(cfg)
        out = model(torch.randn(1, 4, 3, 32, 32))
        assert out.shape == (1, 174)
        out.sum().backward()
    assert len(set(seen)) == len(many) > 1
    assert not [w for w in recwarn if "ignores" in str(w.message) and "spec" not in str(w.message)]


@pytest.mark.parametrize("name", ABLATIONS)
def test_ablation_builds_on_the_toy_data(name: str) -> None:
    many = sweep(CONFIG, name, *toy_line(CONFIG, name))
    for job in (many[0], many[-1]):
        cfg = compose_config(CONFIG, job)
        assert cfg.recipe == "moving_digits"
        assert cfg.llm.source in (None, "bundled")
        assert build_model(cfg)(torch.zeros(1, 8, 3, 32, 32)).shape == (1, 4)


def test_llm_choices_all_build() -> None:
    for choice in ("none", "bundled", "random", "random_trained", "finetuned", "mlp"):
        model = build_model(composed("moving_digits", f"llm={choice}"))
        assert isinstance(model.llm, nn.Module) == (choice != "none"), choice


@pytest.mark.parametrize(("overrides", "words"), [
    (["recipe=ssv2"], "choose one of"),
    (["model.width=3"], "model.width"),
])  # fmt: skip
def test_mistyped_overrides_give_one_sentence(overrides: list[str], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        compose_config(CONFIG, overrides)


@pytest.mark.parametrize(("overrides", "words"), [
    (["model.size=huge"], "small, base"),
    (["+model.widht=3"], "no option widht"),
    (["model.host=/no/such/file.pth"], "there is nothing at /no/such/file.pth"),
    (["model.freeze_host=true", "llm=none"], "nothing to train"),
])  # fmt: skip
def test_wrong_model_options_give_one_sentence(overrides: list[str], words: str) -> None:
    with pytest.raises(ValueError, match=words) as caught:
        build_model(composed("moving_digits", *overrides))
    assert "\n" not in str(caught.value)


def test_the_papers_host_must_be_named() -> None:
    with pytest.raises(ValueError, match=r"model\.host is missing"):
        resolve(composed("ssv2_vit_small"))
