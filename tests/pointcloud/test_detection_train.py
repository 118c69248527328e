"""Detectors through mmdet3d's runner on the toy scenes: train, resume, evaluate; what checkpoints hold."""

from __future__ import annotations

import errno
import json
import logging
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("mmdet3d", reason="needs the extra [mmdet3d]")
pytest.importorskip("mmcv.ops", reason="needs mmcv built with its operators")

from mmengine.config import Config
from mmengine.fileio import LocalBackend
from mmengine.registry import DefaultScope
from mmengine.runner import Runner

from frozenllm.core.block import llm_blocks
from frozenllm.pointcloud.detection import train as tool
from frozenllm.pointcloud.detection.checkpoints import plain
from frozenllm.pointcloud.detection.toy_kitti import write_kitti
from frozenllm.pointcloud.detection.toy_scannet import write_scannet
from frozenllm.pointcloud.detection.train import load_config

TOYS = {"votenet": write_scannet, "pointpillars": write_kitti}
SMALLER = {
    "votenet": {"model.backbone.num_points": (64, 32, 16, 8), "model.bbox_head.vote_aggregation_cfg.num_point": 16},
    "pointpillars": {},
}
METRIC = {
    "votenet": "mAP_0.25",
    "pointpillars": "Kitti metric/pred_instances_3d/KITTI/Overall_3D_AP40_moderate",
}


@pytest.fixture(scope="module", autouse=True)
def _quick(uncompiled_mmdet3d: None) -> Iterator[None]:
    """Without yapf's layout of configs, which takes longer than the steps; and runners' scope goes with them."""
    patch = pytest.MonkeyPatch()
    patch.setattr("mmengine.config.config.FormatCode", lambda text, **_: (text, True))
    scope = DefaultScope.get_current_instance()
    yield
    patch.undo()
    if scope is not None:
        DefaultScope._instance_dict.pop(scope.instance_name, None)
        DefaultScope._instance_dict[scope.instance_name] = scope


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("toy")
    return {name: write(folder / name, train=4, val=2) for name, write in TOYS.items()}


def config(name: str, data: dict[str, Path], work_dir: Path, epochs: int = 1, **options: Any) -> Config:
    settings = {
        "work_dir": str(work_dir),
        "log_level": "ERROR",
        "train_cfg.max_epochs": epochs,
        "train_cfg.val_interval": epochs,
        "train_dataloader.batch_size": 1,
        **SMALLER[name.split("_")[1]],
        **options,
    }
    return load_config(name, data_root=data[name.split("_")[1]], options=settings)


@pytest.mark.parametrize("detector", TOYS)
def test_a_detector_trains_resumes_and_evaluates(detector: str, data: dict[str, Path], tmp_path: Path) -> None:
    """Four steps, resumed for four more, end where eight in one go end."""
    name = f"toy_{detector}_frozenllm"
    whole = tool.train(config(name, data, tmp_path / "whole", epochs=2))
    assert whole.iterations == 8
    assert whole.frozen == 791_296
    assert METRIC[detector] in whole.metrics
    with pytest.raises(ValueError, match="holds a run already: continue it with --resume"):
        tool.train(config(name, data, tmp_path / "whole", epochs=2))
    middle = str(tmp_path / "whole" / "epoch_1.pth")
    unevaluated = {"train_cfg.val_interval": 3}  # what it would say is compared below
    tool.train(config(name, data, tmp_path / "rest", epochs=2, resume=True, load_from=middle, **unevaluated))
    assert json.loads((tmp_path / "rest" / "summary.json").read_text())["iterations"] == 8
    states = [torch.load(tmp_path / run / "epoch_2.pth", weights_only=True) for run in ("whole", "rest")]
    for key, value in states[0]["state_dict"].items():
        assert torch.equal(value, states[1]["state_dict"][key]), key
    evaluated = tool.evaluate(config(name, data, tmp_path / "test"), tmp_path / "rest" / "epoch_2.pth")
    assert whole.metrics == pytest.approx({k: evaluated[k] for k in whole.metrics}, nan_ok=True)


BEST = {"default_hooks.checkpoint.save_best": "mAP_0.25", "default_hooks.checkpoint.max_keep_ckpts": 1}
QUIET = ["--cfg-options", "train_cfg.max_epochs=1", "train_cfg.val_interval=1", "log_level=ERROR",
         "train_dataloader.batch_size=1", "model.backbone.num_points=(64,32,16,8)",
         "model.bbox_head.vote_aggregation_cfg.num_point=16"]  # fmt: skip


@pytest.fixture(scope="module")
def trained(data: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of four steps of the small VoteNet with the layer, by the command line, with the best checkpoint kept."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    best = [f"{key}={value}" for key, value in BEST.items()]
    tool.main(["toy_votenet_frozenllm", "--data-root", str(data["votenet"]), "--work-dir", str(folder), *QUIET, *best])
    return folder


def test_checkpoints_hold_the_trained_part_and_plain_values(trained: Path) -> None:
    checkpoint = torch.load(trained / "epoch_1.pth", weights_only=True)
    assert "message_hub" not in checkpoint
    state = checkpoint["state_dict"]
    assert [key for key in state if ".block." in key] == ["neck.llm.block._extra_state"]
    assert state["neck.llm.block._extra_state"].dtype == torch.uint8
    assert {"neck.llm.adapter_in.weight", "neck.llm.adapter_out.weight"} <= set(state)
    size = sum(v.numel() * v.element_size() for v in state.values())
    assert (trained / "epoch_1.pth").stat().st_size < 4 * size + 200_000  # with the optimizer's two moments


def test_resuming_keeps_the_best_and_what_is_kept(trained: Path, data: dict[str, Path], tmp_path: Path) -> None:
    shutil.copytree(trained, tmp_path / "run")
    best = next((tmp_path / "run").glob("best_*.pth"))
    info = torch.load(tmp_path / "run" / "epoch_1.pth", weights_only=True)["runtime_info"]
    assert info["keep_ckpt_ids"] == [1]
    tool.train(config("toy_votenet_frozenllm", data, tmp_path / "run", epochs=2, resume=True, **BEST))
    assert sorted(p.name for p in (tmp_path / "run").glob("epoch_*.pth")) == ["epoch_2.pth"]
    assert best.name.startswith("best_mAP_0.25")


def test_a_checkpoint_that_finds_no_room_leaves_the_others(
    trained: Path, data: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also what a killed run left half written, and a last_checkpoint that it cut short, are put right."""
    run = shutil.copytree(trained, tmp_path / "run")
    before = {p.name: p.read_bytes() for p in run.glob("*.pth")}
    (run / "last_checkpoint").write_text("")
    (run / ".epoch_2.pth.17.tmp").write_bytes(b"half")

    def full(_file: object, path: str) -> None:
        Path(path).write_bytes(b"as much as went in")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(LocalBackend, "put", lambda _self, file, path: full(file, path))
    cfg = config("toy_votenet_frozenllm", data, run, epochs=2, resume=True, **BEST)
    with pytest.raises(ValueError, match=r"epoch_2\.pth cannot be written \(No space left on device\)") as error:
        tool.train(cfg)
    assert "training stopped, and the last good checkpoint is " + str(run / "epoch_1.pth") in str(error.value)
    assert {p.name: p.read_bytes() for p in run.glob("*.pth")} == before
    assert not list(run.glob(".*"))
    assert (run / "last_checkpoint").read_text() == str(run / "epoch_1.pth")


def test_resuming_with_another_block_or_model_is_refused(trained: Path, data: dict[str, Path], tmp_path: Path) -> None:
    shutil.copytree(trained, tmp_path / "run")
    other = {"model.neck.llm": {"kind": "random", "source": "bundled", "seed": 5}}
    with pytest.raises(ValueError, match="was made with the block"):
        tool.train(config("toy_votenet_frozenllm", data, tmp_path / "run", epochs=2, resume=True, **other))
    with pytest.raises(ValueError, match=r"belongs to another model: the model lacks neck\.llm"):
        tool.evaluate(config("toy_votenet", data, tmp_path / "x"), trained / "epoch_1.pth")


@pytest.mark.parametrize("detector", TOYS)
def test_a_host_s_checkpoint_is_a_start_for_the_detector_with_the_layer(
    detector: str, data: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """Through mmengine's loader, which reports keys that do not fit."""
    from mmdet3d.registry import MODELS
    from mmengine.runner.checkpoint import load_checkpoint

    host, both = (
        MODELS.build(config(name, data, tmp_path).model) for name in (f"toy_{detector}", f"toy_{detector}_frozenllm")
    )
    torch.save({"state_dict": host.state_dict()}, tmp_path / "host.pth")
    load_checkpoint(both, str(tmp_path / "host.pth"), map_location="cpu")
    printed = capsys.readouterr().out
    assert "unexpected" not in printed
    missing = printed.partition("missing keys in source state_dict: ")[2].split()
    assert sorted(key.strip(",") for key in missing) == [
        f"neck.llm.{name}" for name in ("adapter_in.weight", "adapter_out.weight", "block._extra_state")
    ]
    loaded = {key.replace("backbone.backbone", "backbone").replace("neck.neck", "neck"): value
              for key, value in both.state_dict().items()}  # fmt: skip
    assert all(torch.equal(value, loaded[key]) for key, value in host.state_dict().items())


def test_mmengine_s_own_way_without_this_tool(data: dict[str, Path], tmp_path: Path, monkeypatch: Any) -> None:
    """`Config.fromfile`, `Runner.from_cfg`, in a folder with the data where the config says."""
    from frozenllm.pointcloud.detection import config_path

    monkeypatch.chdir(tmp_path)
    shutil.copytree(data["votenet"], tmp_path / "data" / "toy_scannet")
    mine = tmp_path / "mine.py"
    mine.write_text(f"_base_ = {str(config_path('toy_votenet_frozenllm'))!r}\ntrain_cfg = dict(max_epochs=1)\n")
    cfg = Config.fromfile(mine)
    cfg.work_dir, cfg.log_level = str(tmp_path / "run"), "ERROR"
    runner = Runner.from_cfg(cfg)
    before = [b.clone() for _, block in llm_blocks(runner.model) for b in block.buffers()]
    runner.train()
    after = [b for _, block in llm_blocks(runner.model) for b in block.buffers()]
    assert before
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert (tmp_path / "run" / "epoch_1.pth").exists()


def test_values_become_plain() -> None:
    given = {"a": np.arange(3), 1: (np.float32(0.5), [np.int64(2)]), "s": {"x"}, "t": torch.ones(1), "n": None}
    found = plain(given)
    assert found == {"a": [0, 1, 2], 1: (0.5, [2]), "s": ["x"], "t": torch.ones(1), "n": None}
    assert type(found[1][0]) is float


def test_the_command_line(trained: Path, data: dict[str, Path], capsys: pytest.CaptureFixture) -> None:
    common = ["toy_votenet_frozenllm", "--data-root", str(data["votenet"]), "--work-dir", str(trained)]
    tool.main([*common, "--eval-only", str(trained / "epoch_1.pth"), *QUIET])
    printed = capsys.readouterr().out
    figures = json.loads((trained / "summary.json").read_text())["metrics"]
    assert json.loads(printed[printed.index("{\n") :])["mAP_0.25"] == pytest.approx(figures["mAP_0.25"], nan_ok=True)


@pytest.mark.parametrize(("arguments", "message"), [
    (["votenet_scanet"], "There is no config 'votenet_scanet'; there are pointpillars_kitti, "),
    (["mine.py"], "There is no config file mine.py"),
    (["broken.py"], "broken.py is not a config: "),
    (["empty.py"], "empty.py is not a detector's config: it has no model."),
    (["votenet_scannet", "--data-root", "."], "There is no annotation file scannet_"),
    (["TOY", *QUIET], "{trained} holds a run already: continue it with --resume"),
    (["TOY", "--eval-only", "no.pth"], "There is no checkpoint at no.pth."),
    (["TOY", "--eval-only", "empty.py"], "empty.py: is not a checkpoint, or holds other things"),
    (["TOY", "--overwrite", "--load-from", "no.pth"], "There is no checkpoint at no.pth."),
    (["TOY", "--launcher", "pytorch"], "--launcher pytorch is for processes that torchrun starts"),
    (["TOY", "--overwrite", "--cfg-options", "nothing"], "--cfg-options takes KEY=VALUE, not 'nothing'"),
    (["TOY", "--overwrite", "--cfg-options", "optim_wraper.optimizer.lr=1"], "did you mean 'optim_wrapper'?"),
    (["TOY", "--overwrite", "--cfg-options", "model.neck.dimm=3"], "an option that nothing takes: FrozenLLMNeck"),
    (["TOY", "--overwrite", "--cfg-options", "model.neck.type=Nek"], "names a type that is not known: Nek is not in"),
    (["TOY", "--overwrite", "--cfg-options", "train_dataloader.batch_size=0"], "a loader that cannot be: batch_size"),
])  # fmt: skip
def test_mistakes_are_answered_in_one_sentence(
    arguments: list[str], message: str, trained: Path, data: dict[str, Path], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(logging, "raiseExceptions", False)  # mmengine's handlers keep the streams of earlier tests
    monkeypatch.delenv("RANK", raising=False)
    (tmp_path / "broken.py").write_text("model = dict(\n")
    (tmp_path / "empty.py").write_text("x = 1\n")
    if arguments[0] == "TOY":
        folders = ["--data-root", str(data["votenet"]), "--work-dir", str(trained)]
        arguments = ["toy_votenet_frozenllm", *folders, *arguments[1:]]
    before = sorted(path.name for path in trained.glob("*.pth"))
    with pytest.raises(SystemExit) as stopped:
        tool.main(arguments)
    code = stopped.value.code
    said = code if isinstance(code, str) else capsys.readouterr().err.splitlines()[-1]  # 2: argparse
    assert said.startswith(("error: ", "train_detector.py: error: "))
    assert message.format(trained=trained) in said
    assert sorted(path.name for path in trained.glob("*.pth")) == before


def test_without_arguments_both_arms_are_trained(
    data: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    seen = []

    def shorter(name: str, options: dict[str, Any]) -> Config:
        seen.append(name)
        return config(name, data, Path(options["work_dir"]), **{"train_dataloader.batch_size": 4})  # one step

    monkeypatch.setattr(tool, "load_config", shorter)
    tool.main([])
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith(("host alone", "+ frozen"))]
    assert seen == ["toy_votenet", "toy_votenet_frozenllm"]
    assert " 0 " in rows[0]
    assert "791,296" in rows[1]
