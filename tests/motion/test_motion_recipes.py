"""Every recipe composes to the paper's values, and builds; so does every ablation."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from omegaconf import DictConfig, OmegaConf, open_dict
from recipes import LLAMA_7B, SMALL_SPEC, block_without_weights, names, sweep, toy_line
from torch import nn

from frozenllm.core.training import build_model, compose_config, param_groups
from frozenllm.core.training.composition import resolve
from frozenllm.core.training.schedule import schedule_factor
from frozenllm.core.training.settings import engine_settings
from frozenllm.motion import MMTransformer, MotionHost, VectorNet
from frozenllm.motion.testing import random_inputs
from frozenllm.motion.train import CONFIG

SIZES = {"vectornet": {"dim": 16, "width": 8, "hidden": 16}}
SIZES["mmtransformer"] = {"dim": 16, "hidden": 24, "width": 8, "layers": 1, "position_dim": 8}


RECIPES, ABLATIONS = names(CONFIG, "recipe"), names(CONFIG, "ablation")
PAPER = [f"argoverse{n}_{host}{tail}" for n in (1, 2) for host in SIZES for tail in ("", "_llama")]


def composed(recipe: str, *overrides: str) -> DictConfig:
    return compose_config(CONFIG, [f"recipe={recipe}", *overrides])


def build_small(cfg: DictConfig) -> MotionHost:
    """The config's model at small sizes, with a random block in a large language model's place."""
    with open_dict(cfg):
        cfg.model.update(SIZES[cfg.model.type])
        cfg.llm.update(spec=SMALL_SPEC, dtype=None, source=None, path=None)
        if cfg.llm.kind == "pretrained":
            cfg.llm.kind = "random"
    return build_model(cfg)


def test_all_rows_are_there() -> None:
    assert {*PAPER, "traffic"} == set(RECIPES)
    assert {"capacity", "mlp", "random_trained", "insert", "modes", "loss", "lr_drop"} == set(ABLATIONS)


@pytest.mark.parametrize("recipe", RECIPES)
def test_recipe_builds_at_small_widths(recipe: str) -> None:
    kind = composed(recipe).llm.kind
    cfg = resolve(composed(recipe))
    model = build_small(cfg)
    assert isinstance(model, MMTransformer if "mmtransformer" in recipe else VectorNet)
    assert (model.llm is not None) == (kind != "none")
    steps = {"argoverse1": (20, 30), "argoverse2": (50, 60), "traffic": (50, 60)}[recipe.split("_")[0]]
    assert (cfg.data.history, cfg.data.horizon) == steps
    output = model(**random_inputs(2, 3, 4, history=steps[0]))
    assert output["trajectories"].shape == (2, 6, steps[1], 2)
    assert output["logits"].shape == (2, 6)
    sum(x.sum() for x in output.values()).backward()


@pytest.mark.parametrize("recipe", PAPER)
def test_recipes_have_the_papers_values(recipe: str) -> None:
    """Section C.4 and Table 4; Argoverse 2 takes them over."""
    cfg = resolve(composed(recipe, "data.root=/data"))
    llama, vectornet = recipe.endswith("_llama"), "vectornet" in recipe
    assert cfg.llm.kind == ("pretrained" if llama else "none")
    if llama:
        assert (cfg.llm.source, list(cfg.llm.layers)) == ("huggyllama/llama-7b", [31])
        assert not cfg.llm.trainable
        assert (cfg.llm.positions, cfg.llm.attention, cfg.llm.adapter_init) == ("none", "bidirectional", None)
    assert cfg.data.train.type == cfg.data.val.type == recipe.split("_")[0]
    assert (cfg.data.batch_size, cfg.data.collate) == (32, "scenes")
    expected: dict[str, Any] = {"type": "AdamW", "lr": 5e-4, "lr_batch": None, "adapter_lr_mult": 1.0, "ema": None}
    assert {key: cfg.optim[key] for key in expected} == expected
    assert list(cfg.optim.betas) == [0.9, 0.999]
    assert cfg.model.modes == 6
    assert cfg.model.insert == "before_decoder"
    assert cfg.metrics == [{"type": "MotionMetric", "k": [1, 6], "miss": 2.0}]
    assert (cfg.best, cfg.best_mode) == ("motion/minADE6", "min")
    assert cfg.schedule.epochs == (60 if vectornet else 32)
    if not vectornet:
        sizes = ("dim", "hidden", "heads", "layers", "width", "subgraph_layers", "position_dim")
        assert [cfg.model[name] for name in sizes] == [128, 256, 2, 2, 32, 2, 64]


@pytest.mark.parametrize(("host", "gamma"), [("vectornet", None), ("mmtransformer", None), ("mmtransformer", 0.75)])
def test_learning_rates(host: str, gamma: float | None) -> None:
    """60 epochs of a cosine without warm-up; 32 with drops after epochs 20, 24, 28, in both readings of the paper."""
    cfg = resolve(composed(f"argoverse1_{host}", "data.root=/data", *([f"schedule.gamma={gamma}"] if gamma else [])))
    settings = engine_settings(cfg, "runs", torch.device("cpu"), "none", 1)
    assert settings["optim_wrapper"]["optimizer"]["lr"] == 5e-4
    others = ("type", "convert_to_iter_based", "accumulate")
    shape = {k: v for k, v in settings["param_scheduler"][0].items() if k not in others}
    per_epoch = shape.pop("per_epoch"), shape.pop("delay", 0)
    assert per_epoch == (host == "mmtransformer", 0)
    epochs = [0, 15, 19, 20, 23, 24, 27, 28, 31]
    found = [schedule_factor(epoch, **shape) for epoch in epochs]
    if host == "vectornet":
        wanted = [(1 + torch.cos(torch.tensor(torch.pi * epoch / 60))).item() / 2 for epoch in epochs]
        assert schedule_factor(60, **shape) == pytest.approx(0.0)
    else:
        drop = gamma or 0.25
        wanted = [1, 1, 1, drop, drop, drop**2, drop**2, drop**3, drop**3]
    assert found == pytest.approx(wanted, abs=1e-6)


def test_queries_and_norms_have_no_weight_decay() -> None:
    cfg = composed("argoverse1_mmtransformer")
    model = build_small(cfg)
    groups = param_groups(model, 1.0, 0.01, no_decay=cfg.optim.no_decay)
    found = {name: group["weight_decay"] for group in groups for name in group["names"]}
    assert found.keys() == {name for name, _ in model.named_parameters()}
    assert {name for name, decay in found.items() if decay == 0} == {
        name for name, p in model.named_parameters() if p.ndim == 1 or name == "queries"
    }


@pytest.mark.parametrize("host", SIZES)
def test_llama_hosts_have_the_papers_size(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """LLaMA-7B's block and its adapters, without the weights."""
    cfg = composed(f"argoverse1_{host}_llama", f"+llm.spec={LLAMA_7B}", "llm.kind=random")
    monkeypatch.setattr("frozenllm.core.build.random_block", block_without_weights)
    with torch.device("meta"):
        model = build_model(cfg)
    assert sum(w.numel() for n, w in model.named_parameters() if n.startswith("llm.")) == 2 * 128 * 4096
    assert model.llm.block.num_parameters() == 202_383_360


@pytest.mark.parametrize("name", ABLATIONS)
@pytest.mark.parametrize("toy", [False, True], ids=["argoverse", "toy"])
def test_ablation_composes_and_builds(name: str, toy: bool) -> None:
    many, seen = sweep(CONFIG, name, *(toy_line(CONFIG, name) if toy else [])), set()
    for job in many:
        cfg = resolve(compose_config(CONFIG, [*job, "data.root=/data"]))
        assert cfg.name == name
        assert cfg.recipe == "traffic" if toy else cfg.recipe.startswith("argoverse1_")
        if cfg.llm.kind not in ("none", "mlp"):
            assert cfg.llm.source == ("bundled" if toy else "huggyllama/llama-7b")
        parts = {part: OmegaConf.to_container(cfg[part]) for part in ("llm", "model", "task", "schedule")}
        seen.add(json.dumps(parts))
        model = build_small(cfg)
        output = model(**random_inputs(1, 2, 3, history=cfg.data.history))
        assert ("scales" in output) == (cfg.task.regression == "laplace")
        assert output["logits"].shape == (1, cfg.model.modes)
    assert len(seen) == len(many) > 1


def test_llm_choices_all_build() -> None:
    for choice in ("none", "bundled", "random", "random_trained", "finetuned", "mlp"):
        model = build_model(composed("traffic", f"llm={choice}"))
        assert isinstance(model.llm, nn.Module) == (choice != "none"), choice


@pytest.mark.parametrize(("override", "words"), [
    ("recipe=argoverse3_vectornet", "choose one of"),
    ("model.width_=3", "model.width_"),
    ("loss=l2", "smooth_l1"),
])  # fmt: skip
def test_mistyped_overrides_give_one_sentence(override: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        compose_config(CONFIG, [override])


@pytest.mark.parametrize(("overrides", "words"), [
    (["+model.widht=3"], "no option 'widht'"),
    (["model.insert=end"], "insert must be one of before_decoder, after_subgraph"),
])  # fmt: skip
def test_wrong_model_options_give_one_sentence(overrides: list[str], words: str) -> None:
    with pytest.raises(ValueError, match=words) as caught:
        build_model(composed("traffic", *overrides))
    assert "\n" not in str(caught.value)
