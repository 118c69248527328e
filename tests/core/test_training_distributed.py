"""Two processes give the weights that one gives with the same global batch."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from processes import call, torchrun
from tinydomain.helpers import assert_same, history, read, run
from tinydomain.train import CONFIG

from frozenllm.core.training import compose_config, evaluate

# Nothing that draws random numbers per process; gradients are accumulated and clipped on the way. 41 samples do not
# divide by 2: what the sampler adds must not count.
COMMON = ["data.train.augment=false", "data.val.size=41", "model.dropout=0", "schedule.epochs=2"]
COMMON += ["optim.clip_grad=0.5", "optim.accumulate=2"]


@pytest.fixture(scope="module")
def one_process(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run folder of one process with a batch of 8."""
    return Path(run(tmp_path_factory.mktemp("one"), *COMMON, "data.batch_size=8").run_dir)


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Folder of the runs of two processes with a batch of 4 each, and what they printed."""
    folder = tmp_path_factory.mktemp("two")
    command = torchrun(2, "tinydomain.both_strategies", str(folder), *COMMON, "data.batch_size=4")
    done = call(command, folder)
    assert done.returncode == 0, done.stderr
    return folder / "tiny", done.stdout


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_processes_equal_one(strategy: str, one_process: Path, two_processes: tuple[Path, str]) -> None:
    folder = two_processes[0] / strategy
    starts = [line for line in two_processes[1].splitlines() if f"/{strategy}: " in line]
    assert len(starts) == 2  # one process prints
    assert all(line.endswith(f"on cpu x 2 ({strategy})") for line in starts)
    expected, got = (read(path / "checkpoints" / "last.pt") for path in (one_process, folder))
    assert expected["meta"]["iter"] == got["meta"]["iter"] == 24
    assert expected["state_dict"].keys() == got["state_dict"].keys()
    for name, value in expected["state_dict"].items():
        difference = (got["state_dict"][name].double() - value.double()).abs().max()
        assert difference <= 1e-6 * max(1.0, value.abs().max()), name
    earlier = read(one_process / "checkpoints" / "iter_00000012.pt")["state_dict"]
    moved = [name for name, value in earlier.items() if not torch.equal(value, expected["state_dict"][name])]
    assert len(moved) == len(expected["state_dict"]) - 1  # all but the block's record
    for a, b in zip(history(one_process), history(folder), strict=True):
        assert (a.pop("kind"), a.keys()) == (b.pop("kind"), b.keys())
        assert a == pytest.approx(b, rel=1e-4)
    assert json.loads((folder / "summary.json").read_text())["trainable"] == sum(
        v.numel() for k, v in expected["state_dict"].items() if not k.endswith("_extra_state")
    )


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_one_process_evaluates_what_two_wrote(strategy: str, two_processes: tuple[Path, str]) -> None:
    folder = two_processes[0] / strategy
    cfg = compose_config(
        CONFIG,
        [*COMMON, f"runs={folder.parent.parent}", f"name={strategy}", "runtime.console=false", "runtime.plots=false"],
    )
    figures = evaluate(cfg)
    assert figures["accuracy/top1"] == history(folder)[-1]["accuracy/top1"]


def test_resumed_equals_uninterrupted_with_batchnorm(two_processes: tuple[Path, str]) -> None:
    ends = [read(two_processes[0] / name / "checkpoints" / "last.pt") for name in ("whole", "parts")]
    for part in ("state_dict", "optimizer", "metrics", "best"):
        assert_same(ends[0][part], ends[1][part], part)
    assert any("running_mean" in name for name in ends[0]["state_dict"])


def test_updates_of_several_blocks_are_sharded(two_processes: tuple[Path, str]) -> None:
    ddp, fsdp = (read(two_processes[0] / f"blocks_{s}" / "checkpoints" / "last.pt") for s in ("ddp", "fsdp"))
    assert any("layers.1.low_rank" in name for name in fsdp["state_dict"])
    for name, value in ddp["state_dict"].items():
        torch.testing.assert_close(fsdp["state_dict"][name], value, rtol=1e-5, atol=1e-6)


def test_fsdp_run_is_not_resumed_without_it(two_processes: tuple[Path, str]) -> None:
    with pytest.raises(ValueError, match="written with world_size=2, this run has 1"):
        run(two_processes[0].parent, *COMMON, "name=fsdp", "resume=true", "data.batch_size=4")


def test_strategy_without_torchrun_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"runtime.strategy=ddp needs torchrun"):
        run(tmp_path, "runtime.strategy=ddp")
