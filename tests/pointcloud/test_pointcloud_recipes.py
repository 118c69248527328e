"""Every recipe, protocol and ablation composes to the paper's values, and builds."""

from __future__ import annotations

import pytest
import torch
from omegaconf import DictConfig, OmegaConf
from recipes import SMALL_BLOCK, SPEC, names, sweep, toy_line

from frozenllm.core.training import build_model, compose_config, param_groups
from frozenllm.pointcloud import PointBERT
from frozenllm.pointcloud.train import CONFIG

RECIPES = names(CONFIG, "recipe")
SMALL = ["model.embed_dim=24", "model.depth=2", "model.num_heads=2", "model.num_groups=4", "model.group_size=6"]
VARIANTS = {"scanobjectnn_objectbg": 64, "scanobjectnn_objectonly": 64, "scanobjectnn_hardest": 64}
DENSITIES = {"modelnet40_1k": (1024, 64, 1200), "modelnet40_4k": (4096, 256, 4800), "modelnet40_8k": (8192, 512, 8192)}


def compose(recipe: str, *overrides: str) -> DictConfig:
    return compose_config(CONFIG, [f"recipe={recipe}", *overrides])


def test_all_of_the_papers_rows_are_there() -> None:
    rows = [*VARIANTS, *DENSITIES]
    assert set(RECIPES) == {*rows, *(f"{row}_llama" for row in rows), "shapes"}


@pytest.mark.parametrize(("recipe", "protocol"), [*((r, "official") for r in RECIPES), ("shapes", "clean")])
def test_recipe_builds_at_small_widths(recipe: str, protocol: str) -> None:
    with_layer = recipe == "shapes" or recipe.endswith("_llama")
    cfg = compose(recipe, f"protocol={protocol}", *SMALL, *(SMALL_BLOCK if with_layer else []))
    model = build_model(cfg)
    assert isinstance(model, PointBERT)
    assert (model.llm is not None) == with_layer
    out = model(torch.randn(2, 32, 3))
    assert out.shape == (2, 40 if protocol == "official" else cfg.data.num_classes)
    out.sum().backward()


@pytest.mark.parametrize("recipe", [r for r in RECIPES if r != "shapes"])
def test_recipes_have_the_papers_values(recipe: str) -> None:
    cfg = compose(recipe)
    OmegaConf.resolve(cfg)
    if recipe.endswith("_llama"):
        assert (cfg.llm.source, list(cfg.llm.layers), cfg.llm.trainable) == ("huggyllama/llama-7b", [31], False)
    else:
        assert cfg.llm.kind == "none"
    name = recipe.removesuffix("_llama")
    points, groups, _ = DENSITIES.get(name, (1024, 64, 1200))
    assert (cfg.data.num_points, cfg.model.num_groups, cfg.model.group_size) == (points, groups, 32)
    assert (cfg.task.num_points, cfg.task.batch_transform.num_points, cfg.task.votes) == (points, points, 1)
    if name in VARIANTS:
        assert cfg.data.variant == name.rpartition("_")[2]
        assert cfg.data.train.variant == cfg.data.val.variant == cfg.data.test.variant == cfg.data.variant
    assert cfg.data.num_classes == (15 if name in VARIANTS else 40)
    assert cfg.data.batch_size == 32
    assert (cfg.model.embed_dim, cfg.model.depth, cfg.model.num_heads, cfg.model.drop_path_rate) == (384, 12, 6, 0.1)
    assert (cfg.model.encoder_dim, list(cfg.model.encoder_widths), cfg.model.head_dropout) == (
        256,
        [128, 256, 512],
        0.5,
    )
    assert (cfg.optim.type, cfg.optim.lr, cfg.optim.lr_batch) == ("AdamW", 5e-4, None)
    assert (cfg.optim.weight_decay, cfg.optim.clip_grad) == (0.05, 10.0)
    assert (cfg.schedule.epochs, cfg.schedule.warmup_epochs) == (301, 10)
    assert (cfg.schedule.warmup_lr, cfg.schedule.min_lr) == (1e-6, 1e-6)
    assert (cfg.schedule.shift, cfg.schedule.per_epoch, cfg.schedule.delay) == (False, True, 1)
    augment = cfg.task.batch_transform
    assert (list(augment.scale), augment.translate) == ([pytest.approx(2 / 3), 1.5], 0.2)


def rates(cfg: DictConfig) -> dict[str, tuple[float, float]]:
    """Learning rate and weight decay of every parameter."""
    settings = OmegaConf.to_container(cfg.optim, resolve=True)
    chosen = {k: settings[k] for k in ("no_decay", "no_decay_lr_mult", "groups", "layer_decay", "adapter_lr_mult")}
    groups = param_groups(build_model(cfg), settings["lr"], settings["weight_decay"], **chosen)
    return {name: (group["lr"], group["weight_decay"]) for group in groups for name in group["names"]}


def test_protocols_choose_where_paper_and_code_disagree() -> None:
    small = [*SMALL, *SMALL_BLOCK]
    official = rates(compose("scanobjectnn_hardest_llama", "protocol=official", *small))
    clean = rates(compose("scanobjectnn_hardest_llama", "protocol=clean", *small))
    for name in ("llm.adapter_in.weight", "llm.adapter_out.weight"):
        assert official[name] == (pytest.approx(2.5e-4), 0.0)  # tools/builder.py
        assert clean[name] == (pytest.approx(5e-5), 0.0)  # paper C.2
    for name in ("blocks.0.attn.qkv.weight", "encoder.first_conv.0.weight", "cls_pos", "head.3.weight"):
        assert official[name] == clean[name] == (pytest.approx(5e-4), 0.05)
    for name in ("cls_token", "norm.weight", "head.3.bias", "encoder.first_conv.1.weight"):
        assert official[name] == (pytest.approx(5e-5), 0.0)
        assert clean[name] == (pytest.approx(5e-4), 0.0)
    for recipe in ("scanobjectnn_hardest", "modelnet40_1k", "shapes"):
        cfg = compose(recipe, "protocol=official")
        OmegaConf.resolve(cfg)
        assert (cfg.data.train.part, cfg.data.val.part, cfg.data.val.split) == ("all", "all", "test")
        assert cfg.model.num_classes == 40
        assert cfg.best == "accuracy_on_test/top1"
        cfg = compose(recipe, "protocol=clean")
        OmegaConf.resolve(cfg)
        assert (cfg.data.train.part, cfg.data.val.part, cfg.data.val.split) == ("fit", "heldout", "train")
        assert (cfg.data.train.share, cfg.data.train.split_seed) == (cfg.data.val.share, cfg.data.val.split_seed)
        assert cfg.data.test.split == "test"
        assert (cfg.model.num_classes, cfg.test_checkpoint) == (cfg.data.num_classes, "last")


def test_the_host_has_point_berts_size() -> None:
    with torch.device("meta"):
        model = build_model(compose("scanobjectnn_hardest", "protocol=official"))
    assert sum(p.numel() for p in model.parameters()) == 22_065_960  # counted by hand from the official modules
    adapters = 2 * 384 * 4096
    assert adapters == 3_145_728  # what LLaMA-7B adds (paper)


@pytest.mark.parametrize("name", names(CONFIG, "ablation"))
def test_ablations_build(name: str) -> None:
    """Jobs differ from each other, stay in the ablation's folder, and build; the first and the last stand for all."""
    many = sweep(CONFIG, name)
    assert len({tuple(job) for job in many}) == len(many) > 1
    for job in (many[0], many[-1]):
        cfg = compose_config(CONFIG, [*job, *SMALL])
        assert (cfg.name, cfg.data.variant) == (name, "hardest")
        if cfg.llm.kind != "none":
            cfg.llm = {**cfg.llm, "spec": OmegaConf.create(SPEC), "source": None, "dtype": None, "layers": [0]}
            cfg.llm.kind = "random"
        assert build_model(cfg)(torch.randn(1, 32, 3)).shape == (1, 15)


@pytest.mark.parametrize("name", names(CONFIG, "ablation"))
def test_the_line_for_toy_data_composes(name: str) -> None:
    chosen = sweep(CONFIG, name, *toy_line(CONFIG, name))[-1]
    assert compose_config(CONFIG, chosen).recipe == "shapes"


def test_the_adapters_rate_is_what_its_ablation_sweeps() -> None:
    for mult in (0.1, 1.0):
        cfg = compose_config(CONFIG, ["ablation=adapter_rate", f"optim.adapter_lr_mult={mult}", *SMALL, *SMALL_BLOCK])
        assert rates(cfg)["llm.adapter_in.weight"] == (pytest.approx(5e-4 * mult), 0.0)


@pytest.mark.parametrize(("overrides", "words"), [
    (["recipe=scanobjectn"], "choose one of"),
    (["protocol=fair"], "clean"),
    (["+model.widht=3"], "no option 'widht'"),
    (["model.num_heads=5"], "multiple of num_heads"),
    (["model.num_groups=many"], "num_groups must be a whole number from 1, not 'many'"),
    (["model.encoder_widths=[8,16]"], "encoder_widths must be three numbers"),
    (["model.head_dropout=5"], "head_dropout must be a number from 0 to below 1, not 5"),
    (["model.host=/no/such/Point-BERT.pth"], "cannot be read"),
])  # fmt: skip
def test_mistakes_give_one_sentence(overrides: list[str], words: str) -> None:
    with pytest.raises(ValueError, match=words) as caught:
        build_model(compose_config(CONFIG, ["llm=none", *overrides]))
    assert "\n" not in str(caught.value)
