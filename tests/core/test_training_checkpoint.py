"""What a checkpoint holds, and what is refused."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import pytest
import torch
from bomb import Bomb
from tinydomain.helpers import read, run
from tinydomain.train import CONFIG, Host

from frozenllm.core.training import checkpoint as files
from frozenllm.core.training import compose_config, evaluate, train


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run folder of a short run with a frozen random block."""
    return Path(run(tmp_path_factory.mktemp("runs"), "optim.ema={decay:0.5,evaluate:raw}", "schedule.epochs=2").run_dir)


def evaluated(run_dir: Path, *overrides: str) -> dict[str, float]:
    """Evaluate in the run's own folder."""
    common = [f"runs={run_dir.parent.parent}", "runtime.console=false", "runtime.plots=false"]
    return evaluate(compose_config(CONFIG, [*common, *overrides]))


def test_checkpoint_holds_trainable_part_and_record_only(trained: Path) -> None:
    saved = read(trained / "checkpoints" / "last.pt")  # with weights_only=True
    state = saved["state_dict"]
    model = Host(llm={"kind": "random", "spec": compose_config(CONFIG).llm.spec})
    parameters = {f"model.{name}" for name, p in model.named_parameters()}
    assert set(state) == parameters | {"model.llm.block._extra_state"}
    assert set(saved["ema"]) == parameters
    assert state["model.llm.block._extra_state"].dtype == torch.uint8
    assert "message_hub" not in saved
    # Weights, two moments and the average are four times the trainable part; the block has four times as many weights.
    trainable = sum(p.numel() for p in model.parameters())
    tensors = [t for part in ("state_dict", "optimizer", "ema") for t in _tensors(saved[part])]
    others = 1  # mmengine's placeholder for the base learning rate
    assert sum(t.numel() for t in tensors if t.is_floating_point() and t.ndim) == 4 * trainable + others
    assert model.llm.block.num_parameters() > 4 * trainable


def _tensors(value: object) -> list[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, dict):
        return [t for entry in value.values() for t in _tensors(entry)]
    return [t for entry in value for t in _tensors(entry)] if isinstance(value, list | tuple) else []


def test_evaluation_reproduces_the_logged_metric(trained: Path) -> None:
    saved = read(trained / "checkpoints" / "last.pt")
    assert evaluated(trained) == saved["metrics"]
    best = evaluated(trained, f"checkpoint={trained / 'checkpoints' / 'best.pt'}")
    assert best["accuracy/top1"] == saved["best"]["value"]
    # The moving average is another model.
    averaged = ["optim.ema={decay:0.5,evaluate:ema}", "metrics=[{type:CrossEntropy}]"]
    assert evaluated(trained, *averaged) != evaluated(trained, averaged[1])


def test_start_from_checkpoint_takes_the_weights_alone(trained: Path, tmp_path: Path) -> None:
    last = trained / "checkpoints" / "last.pt"
    # The warm-up's first step has rate 0: what is saved after it is what the run started with.
    result = run(tmp_path, f"checkpoint={last}", "schedule.warmup_lr=0", "runtime.stop_after=1", "runtime.seed=3")
    end = read(Path(result.run_dir) / "checkpoints" / "last.pt")
    assert result.iterations == 1
    for name, value in read(last)["state_dict"].items():
        assert torch.equal(end["state_dict"][name], value), name


def test_another_block_is_one_sentence(trained: Path) -> None:
    pattern = r"last.pt does not fit this model.*made with the block random:0.*holds random:1"
    with pytest.raises(ValueError, match=pattern):
        evaluated(trained, "llm.seed=1", "name=random")


def test_another_model_is_one_sentence(trained: Path) -> None:
    checkpoint = f"checkpoint={trained / 'checkpoints' / 'last.pt'}"
    with pytest.raises(ValueError, match=r"belongs to another model: the model lacks model.llm"):
        evaluated(trained, "llm=none", "name=other", checkpoint)
    with pytest.raises(ValueError, match=r"shapes differ: model.pos_embed \(1, 6, 16\) instead of \(1, 6, 20\)"):
        evaluated(trained, "model.dim=20", "name=other", checkpoint)


@pytest.mark.parametrize("how", ["torch", "pickle"])
def test_malicious_checkpoint_is_refused(how: str, tmp_path: Path) -> None:
    marker, path = tmp_path / "owned", tmp_path / "bad.pt"
    payload = {"format": files.FORMAT, "state_dict": {}, "meta": Bomb(marker)}
    if how == "torch":
        torch.save(payload, path)
    else:
        path.write_bytes(pickle.dumps(payload))
    with pytest.raises(ValueError, match=r"bad\.pt was refused"):
        files.read_checkpoint(path)
    with pytest.raises(ValueError, match=r"bad\.pt was refused"):
        train(
            compose_config(
                CONFIG, [f"runs={tmp_path}", f"checkpoint={path}", "runtime.console=false", "runtime.plots=false"]
            )
        )
    assert not marker.exists()
    # The file does what it is meant to where the check is off: the test can fail.
    torch.load(path, weights_only=False) if how == "torch" else pickle.loads(path.read_bytes())
    assert marker.exists()


def test_mmengine_checkpoint_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "other.pt"
    torch.save({"state_dict": {}, "meta": {}}, path)
    with pytest.raises(ValueError, match="is no checkpoint of frozenllm's training engine"):
        files.read_checkpoint(path)
    with pytest.raises(ValueError, match="There is no checkpoint at"):
        files.read_checkpoint(tmp_path / "missing.pt")


def test_interrupted_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "iter_00000001.pt"
    files.write_checkpoint({"format": files.FORMAT, "x": torch.arange(3)}, path)

    def full_disk(_descriptor: int) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OSError, match="No space"):
        files.write_checkpoint({"format": files.FORMAT, "x": torch.arange(9)}, path)
    assert read(path)["x"].tolist() == [0, 1, 2]
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_pruning_keeps_newest_best_and_last(tmp_path: Path) -> None:
    saving = ["runtime.checkpoint.keep=1", "runtime.checkpoint.every_iters=3", "best_mode=min"]
    result = run(tmp_path, "schedule.epochs=4", *saving)
    folder = Path(result.run_dir) / "checkpoints"
    assert sorted(p.name for p in folder.iterdir()) == ["best.pt", "iter_00000048.pt", "last.pt"]
    assert read(folder / "last.pt")["meta"]["iter"] == 48
    # The worst accuracy was the first: its numbered file is gone, best.pt stays.
    assert result.best["iter"] == read(folder / "best.pt")["meta"]["iter"] == 12
