"""The training tool, as users call it; what it learns on the toy data, and from what."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from recipes import SMALL_BLOCK
from tinydomain.helpers import assert_same, read
from training_tools import block_weights, call_tool, quick_toys, trained
from videomae_reference import pretraining_state, write

from frozenllm.core.training import RunResult, compose_config, evaluate
from frozenllm.video import train as tool
from frozenllm.video.data import toy_frames
from frozenllm.video.predictor import load_predictor
from frozenllm.video.sampling import SegmentSampling

TINY = ["+model.hidden_size=16", "+model.num_attention_heads=1", "+model.num_hidden_layers=1"]
FAST = ["data.batch_size=4", "model.hidden_size=16", "model.num_hidden_layers=1", "model.num_attention_heads=1"]
FAST += ["runtime.console=false", "schedule.epochs=1", "schedule.warmup_epochs=0", "runtime.val_interval=1"]


run = partial(trained, tool.CONFIG)
SMALL_TOY = ["+data.toy.train_videos=24", "+data.toy.val_videos=8"]


def test_tool_trains_resumes_and_evaluates(tmp_path: Path, toy_frames_root: Path) -> None:
    common = ["recipe=moving_digits", f"data.root={toy_frames_root}", *SMALL_TOY, "name=it", *FAST]
    first = call_tool("video", *common, "runtime.stop_after=4", cwd=tmp_path)
    assert first.returncode == 0, first.stderr
    folder = tmp_path / "runs" / "moving_digits" / "it"
    summary = json.loads((folder / "summary.json").read_text())
    assert (summary["iterations"], summary["finished"], summary["frozen"]) == (4, False, 791_040)
    resumed = run(*common, f"runs={tmp_path / 'runs'}", "resume=true")
    assert (resumed.iterations, resumed.finished) == (6, True)
    assert resumed.test.keys() == resumed.metrics.keys() == {"accuracy/top1"}
    cfg = compose_config(tool.CONFIG, [*common, f"runs={tmp_path / 'runs'}", "split=test"])
    assert evaluate(cfg)["accuracy/top1"] == resumed.test["accuracy/top1"]
    state = read(folder / "checkpoints" / "last.pt")["state_dict"]
    assert not block_weights(state)


def test_tool_says_what_is_wrong_in_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    small = ["model.host=null", "model.image_size=32", "model.num_frames=2", "runtime.precision=fp32", *TINY]
    with pytest.raises(SystemExit) as stopped:
        tool.main(["recipe=ssv2_vit_small", "data.root=/no/such", f"runs={tmp_path}", *small])
    assert stopped.value.code == 1
    (line,) = capsys.readouterr().err.strip().splitlines()[-1:]
    assert line.startswith("error: ")
    assert "/no/such" in line


PAPER = [
    "recipe=ssv2_vit_small_llama", *SMALL_BLOCK,
    "data.num_classes=4", "data.size=24", "data.num_frames=4", "data.batch_size=4", "data.val_batch_size=12",
    "model.image_size=24", "model.num_frames=4", "+model.patch_size=8", "+model.hidden_size=64",
    "+model.num_attention_heads=1", "+model.intermediate_size=256", "+model.num_hidden_layers=2",
    "runtime.precision=fp32", "runtime.device=cpu", "runtime.workers=0", "runtime.threads=1",
    "schedule.epochs=2", "schedule.warmup_epochs=1", "runtime.log_interval=1",
]  # fmt: skip


def test_the_papers_recipe_trains_resumes_and_tests(tmp_path: Path, toy_frames_root: Path) -> None:
    """The whole recipe, from a pre-training file of VideoMAE to the test with six views, on a small host."""
    host = write(tmp_path / "videomae_ssv2_vits.pth", pretraining_state())
    common = [*PAPER, f"data.root={toy_frames_root}", f"model.host={host}", f"runs={tmp_path / 'runs'}"]
    whole = run(*common, "name=whole")
    assert (whole.iterations, whole.finished) == (12, True)
    assert whole.test.keys() == {"accuracy/top1", "accuracy/top5"}
    assert run(*common, "name=halves", "runtime.stop_after=4").iterations == 4
    halves = run(*common, "name=halves", "resume=true")
    states = [read(Path(r.run_dir) / "checkpoints" / "last.pt")["state_dict"] for r in (whole, halves)]
    assert_same(*states)
    assert (halves.metrics, halves.test) == (whole.metrics, whole.test)
    start = pretraining_state()["encoder.blocks.1.mlp.fc1.weight"]
    moved = (states[0]["model.videomae.encoder.layer.1.intermediate.dense.weight"] - start).abs().max()
    assert 0 < moved < 1e-3  # it did start there
    lines = [json.loads(line) for line in (Path(whole.run_dir) / "metrics.jsonl").read_text().splitlines()]
    rates = [line["lr"] for line in lines if line["kind"] == "train"]
    peak = 1e-3 * 4 / 256  # videos of a step, not its 8 clips
    assert max(rates) == pytest.approx(peak)
    assert rates[0] < 0.2 * peak


TOY = {"num_frames": 8, "train_videos": 480}
ORDER_TOY = [f"+data.toy.{key}={value}" for key, value in TOY.items()]


@pytest.fixture(scope="module")
def learned(tmp_path_factory: pytest.TempPathFactory) -> tuple[RunResult, Path]:
    """A host alone after less than half of the toy run, and its data."""
    folder = tmp_path_factory.mktemp("learned")
    (folder / "data").mkdir()
    overrides = ["recipe=moving_digits", "llm=none", f"data.root={folder / 'data'}", f"runs={folder / 'runs'}"]
    overrides += ["schedule.epochs=8", "schedule.warmup_epochs=1", "runtime.val_interval=8", *ORDER_TOY]
    return run(*overrides), folder / "data"


def test_a_host_learns_the_moving_digits(learned: tuple[RunResult, Path]) -> None:
    result, root = learned
    assert result.metrics["accuracy/top1"] > 40  # chance: 25
    cfg = compose_config(
        tool.CONFIG,
        ["recipe=moving_digits", "llm=none", f"data.root={root}", f"runs={root.parent / 'runs'}",
         *ORDER_TOY, f"checkpoint={result.run_dir}/checkpoints/last.pt", "runtime.console=false"],
    )  # fmt: skip
    assert evaluate(cfg)["accuracy/top1"] == result.metrics["accuracy/top1"]


class Shuffled(SegmentSampling):
    """The frames of a video in an order that tells nothing."""

    def view(self, length: int, index: int = 0, views: int = 1) -> np.ndarray:
        return np.random.permutation(length)[super().view(length, index, views)]


@torch.no_grad()
def test_shuffled_frames_are_at_chance(learned: tuple[RunResult, Path]) -> None:
    """A model that has learned the order of frames knows nothing without it: no single frame tells the class."""
    result, root = learned
    predictor = load_predictor(f"{result.run_dir}/checkpoints/last.pt")
    np.random.seed(0)
    data = toy_frames(str(root), "val", toy=TOY, sampling=Shuffled(8), transform=predictor.transform)
    hits: list[Any] = []
    for _ in range(3):
        samples = [data[i] for i in range(len(data))]
        scores = predictor.model(torch.stack([sample["inputs"] for sample in samples]))
        hits.append(scores.argmax(1) == torch.tensor([sample["targets"] for sample in samples]))
    assert len(torch.cat(hits)) == 600
    assert abs(100 * torch.cat(hits).float().mean() - 25) < 6  # three standard deviations of 600 guesses: 5.3


def test_toy_prints_both_arms(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "data").mkdir()
    seen = quick_toys(monkeypatch, tmp_path, *FAST, f"data.root={tmp_path / 'data'}", *SMALL_TOY)
    tool.main([])
    printed = capsys.readouterr().out
    assert "host alone" in printed
    assert "+ frozen bundled block" in printed
    assert "791,040" in printed
    assert seen["overrides"] == ["recipe=moving_digits", "runs=runs/toy"]


def test_a_run_as_host_of_another(tmp_path: Path, toy_frames_root: Path) -> None:
    common = ["recipe=moving_digits", f"data.root={toy_frames_root}", *SMALL_TOY, f"runs={tmp_path}", *FAST]
    alone = run(*common, "llm=none", "runtime.stop_after=1")
    host = f"{alone.run_dir}/checkpoints/last.pt"
    frozen = run(*common, "llm=bundled", f"model.host={host}", "model.freeze_host=true")
    assert frozen.trainable == 2 * 16 * 256  # the adapters
    before, after = (read(Path(r.run_dir) / "checkpoints" / "last.pt")["state_dict"] for r in (alone, frozen))
    assert_same({name: after[name] for name in before}, before)
    headless = [*common, "llm=bundled", f"model.host={host}", "model.freeze_host=true", "model.host_head=false"]
    assert run(*headless, "name=headless").trainable == 2 * 16 * 256 + 4 * 16 + 4
    with pytest.raises(ValueError, match="a host comes from a run with llm=none"):
        run(*common, "llm=none", f"model.host={frozen.run_dir}/checkpoints/last.pt", "name=other")
