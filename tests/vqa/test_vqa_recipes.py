"""Every recipe and ablation composes to METER's values, and builds."""

from __future__ import annotations

import pytest
import torch
from omegaconf import DictConfig, OmegaConf
from recipes import SMALL_BLOCK, names, sweep, toy_line

from frozenllm.core import FrozenLLMLayer
from frozenllm.core.training import build_model, compose_config, param_groups
from frozenllm.vqa.meter import MeterRetrieval, MeterVQA
from frozenllm.vqa.train import CONFIG

REAL_ROBERTA = "{vocab_size: 50265, max_position_embeddings: 514, type_vocab_size: 1, pad_token_id: 1}"


def compose(*overrides: str) -> DictConfig:
    return compose_config(CONFIG, list(overrides))


def build(cfg: DictConfig, tiny: list[str], *overrides: str) -> MeterVQA | MeterRetrieval:
    """With tiny sizes and a small block in the large one's place."""
    block = SMALL_BLOCK if cfg.llm.kind != "none" else []
    answers = ["model.answers=7"] if cfg.model.type == "meter_vqa" else []
    model = build_model(compose(*overrides, *tiny, *block, *answers))
    assert isinstance(model, MeterVQA | MeterRetrieval)
    return model


def test_all_of_the_papers_rows_are_there() -> None:
    wanted = {f"{data}{tail}" for data in ("vqav2", "flickr30k") for tail in ("", "_llama")}
    assert wanted | {"toy_vqa", "toy_retrieval"} <= set(names(CONFIG, "recipe"))


@pytest.mark.parametrize("recipe", [name for name in names(CONFIG, "recipe") if "sqa3d" not in name])
def test_recipe_builds_at_small_widths(recipe: str, tiny: list[str]) -> None:
    cfg = compose(f"recipe={recipe}")
    sizes = [*tiny, "data.image_size=48"]
    model = build(cfg, sizes, f"recipe={recipe}")
    layers = [module for module in model.modules() if isinstance(module, FrozenLLMLayer)]
    assert len(layers) == (cfg.llm.kind != "none")
    ids = torch.tensor([[0, 5, 2]])
    images = torch.randn(1, 3, 48, 48)
    output = model(images, ids, ids > -1) if isinstance(model, MeterVQA) else model(images, ids[None], ids[None] > -1)
    assert (output if isinstance(output, torch.Tensor) else output["rank"]).isfinite().all()


@pytest.mark.parametrize("recipe", ["vqav2", "flickr30k"])
@pytest.mark.parametrize("tail", ["", "_llama"])
def test_meters_values(recipe: str, tail: str) -> None:
    cfg = compose(f"recipe={recipe}{tail}")
    OmegaConf.resolve(cfg)
    assert cfg.llm.kind == ("pretrained" if tail else "none")
    if tail:
        assert (cfg.llm.source, list(cfg.llm.layers)) == ("huggyllama/llama-7b", [31])
        assert not cfg.llm.trainable
    assert (cfg.model.width, cfg.model.heads, cfg.model.layers, cfg.model.dropout) == (768, 12, 6, 0.1)
    assert (cfg.model.insert, cfg.model.drop_layers, cfg.model.image_size) == ("visual", 1, 224)
    assert cfg.optim.type == "AdamW"
    assert (list(cfg.optim.betas), cfg.optim.eps, cfg.optim.weight_decay) == ([0.9, 0.98], 1e-8, 0.01)
    assert (cfg.optim.lr, cfg.optim.lr_batch, cfg.optim.adapter_lr_mult) == (1e-5, None, 10)
    assert 4 * cfg.data.batch_size * cfg.optim.accumulate == 512
    schedule = cfg.schedule
    assert (schedule.shape, schedule.epochs, schedule.warmup_epochs, schedule.min_lr) == ("linear", 10, 1, 0.0)
    assert cfg.data.protocol == cfg.data.train.protocol == cfg.data.val.protocol == "honest"
    assert cfg.data.train.randaug
    assert "randaug" not in cfg.data.val
    assert cfg.data.max_text_len == {"vqav2": 50, "flickr30k": 40}[recipe]
    if recipe == "flickr30k":
        assert cfg.data.train.negatives == 15
        assert cfg.task.batch_transform.type == "draw_matches"
    else:
        assert cfg.data.answers.min_count == 9
        assert cfg.data.test.test_subset == "test-dev2015"


@pytest.mark.parametrize(("recipe", "cross"), [("vqav2_llama", 5.0), ("flickr30k_llama", 10.0)])
def test_learning_rates_of_the_parts(recipe: str, cross: float, tiny: list[str]) -> None:
    cfg = compose(f"recipe={recipe}")
    model = build(cfg, [*tiny, "data.image_size=48"], f"recipe={recipe}")
    keys = ("layer_decay", "adapter_lr_mult", "no_decay", "no_decay_lr_mult", "groups")
    groups = param_groups(model, 1.0, 0.01, **{k: OmegaConf.to_container(cfg.optim)[k] for k in keys})
    rate = {name: (group["lr"], group["weight_decay"]) for group in groups for name in group["names"]}
    assert set(rate) == {name for name, _ in model.named_parameters()}
    image, fusion = "trunk.image_encoder.", "trunk.fusion.text_layers.0."
    assert rate[image + "layers.0.mlp.fc1.weight"] == (1.0, 0.01)
    assert rate[image + "layers.0.mlp.fc1.bias"] == (1.0, 0.0)
    assert rate[image + "layers.0.layer_norm1.weight"] == rate[image + "pre_norm.weight"] == (1.0, 0.01)
    assert rate[image + "embeddings.class_embedding"] == (1.0, 0.01)
    assert rate["trunk.text_encoder.model.encoder.layer.0.attention.output.LayerNorm.weight"] == (1.0, 0.0)
    assert rate[fusion + "self_attn.in_proj_weight"] == rate["trunk.image_map.weight"] == (cross, 0.01)
    assert rate[fusion + "norm1.weight"] == rate["trunk.text_pooler.dense.bias"] == (cross, 0.0)
    assert rate["trunk.type_embedding.weight"] == (1.0, 0.01)
    for side in ("in", "out"):
        assert rate[f"trunk.llm.visual.adapter_{side}.weight"] == (10.0, 0.01)
    if recipe.startswith("vqav2"):
        assert rate["head.0.weight"] == rate["head.1.weight"] == (50.0, 0.01)
        assert rate["head.3.bias"] == (50.0, 0.0)
    else:
        assert rate["rank.weight"] == (1.0, 0.01)
        assert rate["match.weight"] == (5.0, 0.01)


@pytest.mark.parametrize("model", ["meter_vqa", "meter_vqa_b16", "meter_retrieval", "meter_retrieval_b16"])
def test_builds_at_meters_widths_on_the_meta_device(model: str) -> None:
    recipe = "vqav2" if "vqa" in model else "flickr30k"
    patch = 16 if model.endswith("b16") else 32
    cfg = compose(f"recipe={recipe}", f"model={model}")
    assert cfg.model.image_encoder == f"openai/clip-vit-base-patch{patch}"
    cfg.model.image_encoder = {"patch_size": patch}
    cfg.model.text_encoder = OmegaConf.create(REAL_ROBERTA)
    if recipe == "vqav2":
        cfg.model.answers = 3129
    with torch.device("meta"):
        built = build_model(cfg)
    assert built.trunk.image_encoder.embeddings.num_positions == (224 // patch) ** 2 + 1
    assert built.trunk.width == 768


@pytest.mark.parametrize("ablation", [name for name in names(CONFIG, "ablation") if "sqa3d" not in name])
def test_ablation_jobs_build(ablation: str, tiny: list[str]) -> None:
    many = sweep(CONFIG, ablation)
    assert len(many) > 1
    for job in many:
        cfg = compose(*job)
        assert cfg.name == ablation
        build(cfg, [*tiny, "data.image_size=48"], *job)
    for job in sweep(CONFIG, ablation, *toy_line(CONFIG, ablation)):
        assert compose(*job).recipe in ("toy_vqa", "toy_retrieval")


def test_task_chooses_the_recipe() -> None:
    assert compose().recipe == "toy_vqa"
    cfg = compose("task=retrieval")
    assert (cfg.recipe, cfg.task.type, cfg.model.type) == ("toy_retrieval", "RetrievalTask", "meter_retrieval")
    assert compose("recipe=flickr30k").task.type == "RetrievalTask"  # a recipe says what its task is
    assert compose("task=retrieval", "recipe=flickr30k_llama").recipe == "flickr30k_llama"
    with pytest.raises(ValueError, match="choose one of"):
        compose("task=captioning")
