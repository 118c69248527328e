"""The training tool, as users call it."""

from __future__ import annotations

import json
import runpy
import shutil
import sys
from pathlib import Path
from typing import Any

import h5py
import pytest
import torch
from training_tools import block_weights, quick_toys

from frozenllm.core.training import HOST_AND_LAYER, compose_config, evaluate, train
from frozenllm.pointcloud import train as tool

ROOT = Path(__file__).parents[2]
FAST = ["model.depth=1", "model.embed_dim=24", "model.num_groups=6", "model.group_size=8", "model.encoder_dim=16",
        "data.num_points=48", "data.batch_size=16", "schedule.epochs=2", "schedule.warmup_epochs=1",
        "runtime.console=false", "runtime.val_interval=1"]  # fmt: skip


def test_tool_trains_resumes_and_evaluates(tmp_path: Path, scans_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = ["recipe=shapes", "data=scanobjectnn", f"data.root={scans_root}", "data.variant=objectonly", "name=it", *FAST]
    script = str(ROOT / "tools" / "train_pointcloud.py")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [script, *run, "runtime.stop_after=3"])
    runpy.run_path(script, run_name="__main__")  # a process of its own would import for a quarter of a minute
    folder = tmp_path / "runs" / "shapes" / "it"
    summary = json.loads((folder / "summary.json").read_text())
    assert (summary["iterations"], summary["finished"], summary["frozen"]) == (3, False, 791_040)
    cfg = compose_config(tool.CONFIG, [*run, f"runs={tmp_path / 'runs'}", "resume=true"])
    result = train(cfg)
    assert (result.iterations, result.finished) == (8, True)  # 72 of 80 clouds fit: two epochs of 4 batches
    assert 0 <= result.test["accuracy/top1"] <= 100
    state = torch.load(folder / "checkpoints" / "last.pt", weights_only=True)["state_dict"]
    assert not block_weights(state)
    cfg.split = "test"
    assert evaluate(cfg) == result.test
    cfg.task.votes = 4
    voted = evaluate(cfg)
    assert evaluate(cfg) == voted  # the views are the same every time


def test_tool_says_what_is_wrong_in_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stopped:
        tool.main(["recipe=scanobjectnn_hardest", "data.root=/no/such/folder", "runtime.precision=fp32"])
    said = f"{stopped.value} {capsys.readouterr().err}".strip().splitlines()[-1]
    assert "error: /no/such/folder/main_split/training_objectdataset_augmentedrot_scale75.h5 does not exist" in said


def config(root: Path, runs: Path, *overrides: str) -> Any:
    common = ["data=scanobjectnn", f"data.root={root}", "data.variant=objectbg", f"runs={runs}"]
    return compose_config(tool.CONFIG, [*common, *FAST, *overrides])


def test_a_host_with_the_frozen_layer_learns_the_shapes(tmp_path: Path, cache_home: Path) -> None:
    cfg = compose_config(
        tool.CONFIG,
        [f"runs={tmp_path}", "runtime.console=false", "schedule.epochs=5", "schedule.warmup_epochs=1",
         "optim.lr=4e-3", "data.num_points=64", "data.batch_size=24", "model.num_groups=12"],
    )  # fmt: skip
    result = train(cfg)
    assert result.test["accuracy/top1"] > 25  # chance: 12.5
    assert result.metrics["accuracy/top1"] > 25


def test_protocols_look_at_different_clouds(scans_root: Path, tmp_path: Path) -> None:
    official = train(config(scans_root, tmp_path, "protocol=official", "name=official", "llm=none"))
    assert set(official.metrics) == {"accuracy_on_test/top1"}
    assert official.best["metric"] == "accuracy_on_test/top1"
    assert official.test == official.metrics  # the last epoch's validation is the test set
    clean = train(config(scans_root, tmp_path, "protocol=clean", "name=clean", "llm=none", "data.holdout=0.3"))
    assert set(clean.metrics) == set(clean.test) == {"accuracy/top1"}
    assert (official.iterations, clean.iterations) == (10, 6)  # 80 and 56 clouds in batches of 16, two epochs


def test_whole_recipe_on_files_in_the_papers_layout(scans_root: Path, tmp_path: Path) -> None:
    """ScanObjectNN's recipe as it stands, on a small host; a broken cloud is left out and counted."""
    root = shutil.copytree(scans_root, tmp_path / "data")
    for split in ("training", "test"):
        with h5py.File(root / "main_split" / f"{split}_objectdataset_augmentedrot_scale75.h5", "r+") as file:
            file["data"][3, 2, 1] = float("nan")
    small = [o for o in FAST if not o.startswith("data.batch")]
    overrides = ["recipe=scanobjectnn_hardest_llama", "protocol=official", "llm.kind=random", "llm.source=bundled",
                 "llm.layers=[0]", f"data.root={root}", "data.on_error=skip", "runtime.device=cpu", "runtime.workers=0",
                 "data.num_classes=8", f"runs={tmp_path / 'runs'}", "name=it"]  # fmt: skip
    result = train(compose_config(tool.CONFIG, [*overrides, *small]))
    assert result.iterations == 4
    assert result.test["accuracy_on_test/unreadable"] == 1.0
    with pytest.raises(ValueError, match=r"cloud 3 has coordinates that are not finite; repair or remove it"):
        train(compose_config(tool.CONFIG, [*overrides, *small, "data.on_error=raise", "overwrite=true"]))


def test_modelnet_trains_on_its_files(shapes_root: Path, tmp_path: Path) -> None:
    root = shutil.copytree(shapes_root, tmp_path / "data")
    overrides = ["data=shapes_modelnet", "llm=mlp", f"data.root={root}", f"runs={tmp_path}", "data.holdout=0.3"]
    overrides += [f"+data.{part}.points=80" for part in ("train", "val", "test")]
    for part in ("train", "val", "test"):
        overrides.append(f"data.{part}.type=modelnet40")
    result = train(compose_config(tool.CONFIG, [*overrides, *FAST, "data.batch_size=8"]))
    assert result.iterations == 6
    assert 0 <= result.test["accuracy/top1"] <= 100


def test_toy_prints_both_arms(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    quick_toys(monkeypatch, tmp_path, *FAST, "schedule.epochs=1", "schedule.warmup_epochs=0")
    tool.main([])
    printed = capsys.readouterr().out
    for arm, slug in zip(HOST_AND_LAYER, ("host-alone", "frozen-bundled-block"), strict=True):
        summary = json.loads((tmp_path / "runs" / "toy" / "shapes" / slug / "seed0" / "summary.json").read_text())
        assert f"{arm}  " in printed
        assert f"test, last epoch: {summary['test']['accuracy/top1']:.2f} {arm}" in printed
