"""Every ablation composes and builds, on ImageNet's recipe and on the toy data; a real sweep ends in a table."""

from __future__ import annotations

import json
import sys
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import DictConfig, OmegaConf, open_dict
from PIL import Image
from processes import call
from recipes import SMALL_SPEC, sweep, toy_line
from torch import nn

from frozenllm.core.training import build_model, compose_config, train
from frozenllm.vision2d.train import CONFIG

ROOT = Path(__file__).parents[2]
FILES = {
    file.name.removesuffix(".yaml"): file.read_text()
    for file in (resources.files(CONFIG) / "ablation").iterdir()
    if file.name.endswith(".yaml")
}
SMALL = ["model.depth=1", "model.embed_dim=16", "schedule.epochs=1", "schedule.warmup_epochs=0"]
SMALL += ["runtime.console=false", "runtime.plots=false"]
PARTS = ("llm", "model", "optim", "schedule")


def build_small(cfg: DictConfig) -> nn.Module:
    """The model of an ImageNet config at small sizes, with a random block in a large language model's place."""
    with open_dict(cfg):
        cfg.model.update(embed_dim=24, num_heads=2, depth=2, img_size=32, host=None)
        cfg.llm.update(spec=SMALL_SPEC, dtype=None, source=None, path=None)
        if cfg.llm.kind == "pretrained":
            cfg.llm.kind = "random"
        if cfg.llm.lora_rank:
            cfg.llm.lora_rank = min(cfg.llm.lora_rank, 16)
    return build_model(cfg)


def test_all_of_the_issues_ablations_are_there() -> None:
    wanted = {
        "attention", "capacity", "finetuned", "frozen_host", "layers_llama", "layers_opt", "low_rank", "matched_host",
        "mlp", "models", "models_small", "multimodal", "num_blocks", "position", "random_frozen", "random_trained",
        "vit_block",
    }  # fmt: skip
    assert wanted == set(FILES)


@pytest.mark.parametrize("name", sorted(FILES))
def test_ablation_on_imagenet(name: str) -> None:
    """Every job has the ablation's recipe, stays in its folder, differs from the others, and builds."""
    many = sweep(CONFIG, name)
    assert len(many) > 1
    seen = []
    for job in many:
        cfg = compose_config(CONFIG, job)
        assert cfg.recipe.startswith("imagenet_vit_small")
        assert cfg.name == name
        assert cfg.schedule.epochs in (100, 300)
        assert cfg.data.repeats == 3
        if cfg.llm.kind == "random":
            assert cfg.llm.source != "bundled"
        seen.append(json.dumps([OmegaConf.to_container(cfg[part], resolve=True) for part in PARTS]))
        model = build_small(cfg)
        out = model(torch.randn(2, 3, 32, 32))
        assert out.shape == (2, 1000)
        out.sum().backward()
        if cfg.model.freeze_host:
            assert all(name.startswith("llm.") for name, p in model.named_parameters() if p.grad is not None)
    assert len(set(seen)) == len(many)


@pytest.mark.parametrize("name", sorted(FILES))
def test_ablation_builds_on_the_toy_data(name: str) -> None:
    many = sweep(CONFIG, name, *toy_line(CONFIG, name))
    assert len(many) > 1
    for job in many:
        cfg = compose_config(CONFIG, job)
        assert cfg.recipe == "digits"
        assert cfg.llm.source in (None, "bundled")
        assert build_model(cfg)(torch.zeros(1, 3, 32, 32)).shape == (1, 10)


def test_command_line_wins_over_an_ablations_values() -> None:
    assert [
        o for job in sweep(CONFIG, "layers_llama", "llm.layers=[2],[4]") for o in job if "layers" in o and "llm" in o
    ] == [
        "llm.layers=[2]",
        "llm.layers=[4]",
    ]
    cfg = compose_config(CONFIG, ["ablation=layers_opt", "llm=opt_1.3b", "llm.layers=[23]"])
    assert cfg.llm.source == "facebook/opt-1.3b"
    assert cfg.recipe == "imagenet_vit_small_llama_100ep"


def test_a_sweep_ends_in_a_table(tmp_path: Path, digits_root: Path) -> None:
    """The real tool: an ablation on the toy data, by its name alone."""
    arguments = [
        "ablation=capacity",
        *toy_line(CONFIG, "capacity"),
        f"data.root={digits_root}",
        "llm=none,bundled,finetuned",
    ]
    tool = [sys.executable, str(ROOT / "tools" / "train_vision2d.py")]
    done = call([*tool, *arguments, "data.batch_size=96", *SMALL], tmp_path)
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "runs" / "digits" / "capacity"
    rows: list[dict[str, Any]] = json.loads((folder / "table.json").read_text())
    by_name = {row["name"]: row for row in rows}
    assert set(by_name) == {"llm=none", "llm=bundled", "llm=finetuned"}
    assert all(len(row["values"]) == 1 and row["note"] == "" for row in rows)
    host, frozen, tuned = by_name["llm=none"], by_name["llm=bundled"], by_name["llm=finetuned"]
    assert host["is_host"]
    assert host["relative_step"] == host["relative_latency"] == 1.0
    assert host["frozen"] == tuned["frozen"] == 0
    assert frozen["frozen"] == 791_040
    assert frozen["trainable"] == host["trainable"] + 2 * 16 * 256
    assert tuned["trainable"] == frozen["trainable"] + 791_040
    assert host["flops"] == host["dense_flops"] < frozen["flops"] < frozen["dense_flops"]
    assert (folder / "table.txt").read_text().strip() in done.stdout
    with Image.open(folder / "table.png") as image:
        assert image.width > 1000


def test_a_frozen_host_trains_its_adapters_alone(tmp_path: Path, digits_root: Path) -> None:
    """First a host, then the ablation on that host: nothing but the adapters moves."""
    small = [f"data.root={digits_root}", f"runs={tmp_path}", "data.batch_size=16", "runtime.stop_after=4", *SMALL]
    host = Path(train(compose_config(CONFIG, ["llm=none", *small])).run_dir) / "checkpoints" / "last.pt"
    overrides = ["ablation=frozen_host", "recipe=digits", "llm=bundled", f"model.host={host}", *small, "name=frozen"]
    result = train(compose_config(CONFIG, overrides))
    assert result.trainable == 2 * 16 * 256
    before = torch.load(host, weights_only=True)["state_dict"]
    after = torch.load(Path(result.run_dir) / "checkpoints" / "last.pt", weights_only=True)["state_dict"]
    assert {name for name in after if name not in before} == {
        "model.llm.adapter_in.weight", "model.llm.adapter_out.weight", "model.llm.block._extra_state"
    }  # fmt: skip
    assert all(torch.equal(before[name], after[name]) for name in before)
    started = build_model(compose_config(CONFIG, overrides)).state_dict()
    assert not torch.equal(started["llm.adapter_in.weight"], after["model.llm.adapter_in.weight"])

    cfg = compose_config(CONFIG, [*overrides, "model.host_head=false", "llm.lora_rank=2"])
    trained = {name for name, p in build_model(cfg).named_parameters() if p.requires_grad}
    assert {name.split(".")[0] for name in trained} == {"llm", "head"}
    assert any("low_rank" in n for n in trained)
    with pytest.raises(ValueError, match="leaves nothing to train"):
        build_model(compose_config(CONFIG, ["llm=none", "model.freeze_host=true"]))
    with pytest.raises(ValueError, match=r"there is no file .*timm:"):
        build_model(compose_config(CONFIG, ["model.host=deit_small"]))
    with pytest.raises(ValueError, match="llm=bundled; a host comes from a run with llm=none"):
        build_model(compose_config(CONFIG, [f"model.host={Path(result.run_dir) / 'checkpoints' / 'last.pt'}"]))


def test_a_host_of_timms(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """``timm:<name>`` asks timm for pretrained weights; here they are made up, since there is no network."""
    import timm

    asked = []
    create = timm.create_model

    def pretrained(name: str, **options: Any) -> nn.Module:
        if name != "deit_small":
            return create(name, **options)
        asked.append(options)
        sizes = {"img_size": 32, "patch_size": 8, "embed_dim": 16, "depth": 1, "num_heads": 2, "num_classes": 10}
        return create(variant, **sizes)

    variant = "deit_small_patch16_224.fb_in1k"
    monkeypatch.setattr(timm, "create_model", pretrained)
    cfg = compose_config(CONFIG, ["model.host=timm:deit_small", "model.depth=1", "model.embed_dim=16"])
    model = build_model(cfg)
    assert asked == [{"pretrained": True}]
    assert model.llm is not None
    assert "was trained on images of mean" not in caplog.text
    variant = "vit_tiny_patch16_224.augreg_in21k_ft_in1k"  # which saw other statistics than ImageNet's
    build_model(cfg)
    assert "timm:deit_small was trained on images of mean (0.5, 0.5, 0.5) and std (0.5, 0.5, 0.5)" in caplog.text
