"""Every recipe and ablation of SQA3D composes to the paper's and the public code's values, and builds."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from omegaconf import DictConfig, OmegaConf
from recipes import SMALL_BLOCK, names, sweep, toy_line

from frozenllm.core import FrozenLLMLayer
from frozenllm.core.training import build_model, compose_config, param_groups
from frozenllm.vqa.scenes.model import SituatedQA
from frozenllm.vqa.train import CONFIG

NAMES = ["model.answers=[yes,no,chair]", "model.words=[what,is,left]"]


def files(group: str) -> list[str]:
    return [name for name in names(CONFIG, group) if "sqa3d" in name]


def compose(*overrides: str) -> DictConfig:
    return compose_config(CONFIG, list(overrides))


def small(cfg: DictConfig) -> list[str]:
    """A small block in the large one's place, and no data."""
    return [*NAMES, *(SMALL_BLOCK if cfg.llm.kind != "none" else [])]


def test_all_of_the_papers_rows_are_there() -> None:
    assert files("recipe") == ["sqa3d", "sqa3d_llama", "toy_sqa3d"]
    assert files("ablation") == ["blind_sqa3d", "capacity_sqa3d"]


@pytest.mark.usefixtures("scenes_extra")
@pytest.mark.parametrize("recipe", files("recipe"))
def test_recipe_builds_at_its_own_widths_on_the_meta_device(recipe: str) -> None:
    cfg = compose(f"recipe={recipe}")
    with torch.device("meta"):
        model = build_model(compose(f"recipe={recipe}", *small(cfg)))
    assert isinstance(model, SituatedQA)
    assert len([m for m in model.modules() if isinstance(m, FrozenLLMLayer)]) == (cfg.llm.kind != "none")
    assert model.answer_head[-1].out_features == 3
    if recipe != "toy_sqa3d":
        assert model.width == 768
        assert model.detector.width == 128
        assert (len(model.by_situation.layers), len(model.question_layers.layers)) == (2, 2)


@pytest.mark.parametrize("tail", ["", "_llama"])
def test_the_papers_and_the_codes_values(tail: str) -> None:
    cfg = compose(f"recipe=sqa3d{tail}", "data.root=/data")
    OmegaConf.resolve(cfg)
    assert cfg.llm.kind == ("pretrained" if tail else "none")
    if tail:
        assert (cfg.llm.source, list(cfg.llm.layers), cfg.llm.trainable) == ("huggyllama/llama-7b", [31], False)
    assert (cfg.optim.type, cfg.optim.lr, cfg.optim.lr_batch, cfg.optim.weight_decay) == ("AdamW", 5e-4, None, 1e-5)
    assert cfg.optim.adapter_lr_mult * cfg.optim.lr == pytest.approx(2e-4)
    assert cfg.optim.clip_grad == {"value": 1.0}
    schedule = cfg.schedule
    assert (schedule.shape, schedule.epochs, list(schedule.milestones), schedule.gamma) == (
        "step",
        30,
        [10, 15, 20],
        0.1,
    )
    assert (cfg.data.batch_size, cfg.data.num_points, cfg.data.collate) == (32, 40000, "scene_batch")
    assert (cfg.model.heads, cfg.model.layers, cfg.model.dropout, cfg.model.answer_dropout) == (8, 2, 0.1, 0.3)
    assert (cfg.model.pool_out, cfg.model.objects, cfg.model.blind, cfg.model.threshold) == (512, "features", None, 0.5)
    assert cfg.task.type == "SituatedTask"
    assert list(cfg.metrics[0].topk) == [1, 10]
    assert (cfg.data.test.split, cfg.test_checkpoint, cfg.best) == ("test", "best", "sqa3d/em@1")


def test_the_rate_falls_after_epochs_10_15_and_20() -> None:
    from frozenllm.core.training.settings import _training

    cfg = compose("recipe=sqa3d", "data.root=/data")
    plain = OmegaConf.to_container(cfg, resolve=True)
    settings = _training(plain, "fp32", cfg.optim.lr)
    assert settings["optim_wrapper"]["clip_grad"] == {"type": "value", "clip_value": 1.0}
    (schedule,) = settings["param_scheduler"]
    assert (schedule["milestones"], schedule["gamma"], schedule["per_epoch"]) == ([10, 15, 20], 0.1, True)


@pytest.mark.usefixtures("scenes_extra")
def test_learning_rates_of_the_parts() -> None:
    cfg = compose("recipe=sqa3d_llama")
    with torch.device("meta"):
        model = build_model(compose("recipe=sqa3d_llama", *small(cfg)))
    keys = ("layer_decay", "adapter_lr_mult", "no_decay", "no_decay_lr_mult", "groups")
    groups = param_groups(model, 1.0, 0.01, **{k: OmegaConf.to_container(cfg.optim)[k] for k in keys})
    rate = {name: group["lr"] for group in groups for name in group["names"]}
    assert set(rate) == {name for name, _ in model.named_parameters()}
    assert {name for name, value in rate.items() if value != 1.0} == {"llm.adapter_in.weight", "llm.adapter_out.weight"}
    assert rate["llm.adapter_in.weight"] == pytest.approx(0.4)


@pytest.mark.usefixtures("scenes_extra")
@pytest.mark.parametrize("ablation", files("ablation"))
def test_ablation_jobs_build(ablation: str) -> None:
    many = sweep(CONFIG, ablation)
    assert len(many) > 1
    for job in many:
        cfg = compose(*job)
        assert cfg.name == ablation
        with torch.device("meta"):
            assert isinstance(build_model(compose(*job, *small(cfg))), SituatedQA)
    for job in sweep(CONFIG, ablation, *toy_line(CONFIG, ablation)):
        assert compose(*job).recipe == "toy_sqa3d"


def test_task_chooses_the_recipe() -> None:
    cfg = compose("task=sqa3d")
    assert (cfg.recipe, cfg.task.type, cfg.model.type) == ("toy_sqa3d", "SituatedTask", "sqa3d")


def test_missing_data_gives_one_sentence(tmp_path: Path) -> None:
    for root in ("null", "/no/such/folder", str(tmp_path)):
        with pytest.raises(ValueError, match=r"data\.root|does not exist") as caught:
            build_model(compose("recipe=sqa3d", f"data.root={root}"))
        assert "\n" not in str(caught.value)
