"""The training tool and the demo, as users call them."""

from __future__ import annotations

import html
import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from training_tools import block_weights, call_tool, quick_toys

from frozenllm.core.analysis.study import read_study
from frozenllm.core.training import compose_config, evaluate, train
from frozenllm.vision2d import demo, demo_text
from frozenllm.vision2d import train as tool

FAST = [
    "data.batch_size=16",
    "model.depth=1",
    "model.embed_dim=16",
    "runtime.console=false",
    "runtime.plots=false",
    "schedule.epochs=1",
]
FAST += ["schedule.warmup_epochs=0"]


call = partial(call_tool, "vision2d")


def test_tool_trains_resumes_and_evaluates(tmp_path: Path, digits_root: Path) -> None:
    run = ["recipe=digits", f"data.root={digits_root}", "name=it", *FAST]
    first = call(*run, "runtime.stop_after=4", cwd=tmp_path)
    assert first.returncode == 0, first.stderr
    folder = tmp_path / "runs" / "digits" / "it"
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["iterations"] == 4
    assert not summary["finished"]
    assert summary["frozen"] == 791_040
    again = call(*run, "resume=true", "runtime.stop_after=4", cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert json.loads((folder / "summary.json").read_text())["iterations"] == 8
    checked = call(*run, "eval_only=true", cwd=tmp_path)
    assert checked.returncode == 0, checked.stderr
    figures = json.loads((folder / "evaluation.jsonl").read_text().splitlines()[-1])
    assert 0 <= figures["accuracy/top1"] <= figures["accuracy/top5"] <= 100
    state = torch.load(folder / "checkpoints" / "last.pt", weights_only=True)["state_dict"]
    assert not block_weights(state)


def test_tool_says_what_is_wrong_in_one_sentence(tmp_path: Path) -> None:
    done = call("recipe=imagenet_vit_tiny", "runtime.precision=fp32", "data.root=/no/such/folder", cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.strip().splitlines()[-1].startswith("error: The data folder /no/such/folder does not exist")


@pytest.mark.parametrize("arm", ["none", "bundled"])
def test_a_host_learns_the_digits(arm: str, tmp_path: Path, digits_root: Path) -> None:
    cfg = compose_config(
        tool.CONFIG,
        [f"llm={arm}", f"data.root={digits_root}", f"runs={tmp_path}", "schedule.epochs=4", "runtime.console=false",
         "runtime.plots=false", "runtime.val_interval=4", "schedule.warmup_epochs=1"],
    )  # fmt: skip
    result = train(cfg)
    assert result.metrics["accuracy/top1"] > 25  # chance: 10
    cfg.checkpoint = f"{result.run_dir}/checkpoints/last.pt"
    assert evaluate(cfg)["accuracy/top1"] == result.metrics["accuracy/top1"]


def test_imagenet_recipe_trains_on_a_family_in_its_layout(tmp_path: Path, digits_root: Path) -> None:
    """The whole recipe (repeated augmentation, mixup, erasing, EMA) on a small host, broken image included."""
    data = tmp_path / "imagenet"
    for split, count in (("train", 6), ("val", 2)):
        for label in range(3):
            (data / split / f"n0{label}").mkdir(parents=True)
            for path in sorted((digits_root / split / str(label)).glob("*.png"))[:count]:
                with Image.open(path) as image:
                    image.convert("RGB").save(data / split / f"n0{label}" / f"{path.stem}.JPEG")
    (data / "train" / "n00" / "broken.JPEG").write_bytes(b"\xff\xd8 not really")
    (data / "val" / "n00" / "broken.JPEG").write_bytes(b"\xff\xd8 not really")
    overrides = [
        "recipe=imagenet_vit_tiny_llama", "llm.kind=random", "llm.source=bundled", "llm.layers=[0]",
        f"data.root={data}", "data.num_classes=3", "data.batch_size=4", "data.on_error=skip",
        "data.train.transform.input_size=32", "data.val.transform.input_size=32",
        "+model.img_size=32", "+model.embed_dim=24", "+model.num_heads=2", "+model.depth=2",
        "runtime.precision=fp32", "runtime.device=cpu", "runtime.workers=0", "runtime.console=false",
        "runtime.plots=false",
        "schedule.epochs=2", "schedule.warmup_epochs=1", f"runs={tmp_path / 'runs'}", "name=it",
    ]  # fmt: skip
    result = train(compose_config(tool.CONFIG, overrides))
    assert result.iterations == 8
    assert result.metrics["accuracy/unreadable"] == 1.0
    checkpoint = torch.load(Path(result.run_dir) / "checkpoints" / "last.pt", weights_only=True)
    assert any(name.endswith("llm.adapter_in.weight") for name in checkpoint["ema"])
    with pytest.raises(ValueError, match="cannot be read as an image"):
        train(compose_config(tool.CONFIG, [*overrides, "data.on_error=raise", "overwrite=true"]))


def test_toy_prints_both_arms(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    seen = quick_toys(monkeypatch, tmp_path, *FAST)
    tool.main([])
    printed = capsys.readouterr().out
    assert "host alone" in printed
    assert "+ frozen bundled block" in printed
    assert "791,040" in printed
    assert seen["overrides"] == ["recipe=digits", "runs=runs/toy"]


@pytest.fixture(scope="module")
def demo_run(tmp_path_factory: pytest.TempPathFactory, digits_root: Path) -> tuple[Path, dict[str, Any]]:
    """The demo with one seed and one epoch."""
    folder = tmp_path_factory.mktemp("demo")
    return folder, demo.run_demo(folder, (0,), epochs=1, layers=False)


def test_demo_writes_figures_and_a_page(demo_run: tuple[Path, dict[str, Any]]) -> None:
    folder, summary = demo_run
    assert json.loads((folder / "summary.json").read_text()) == summary
    host, bundled, rival = summary["arms"]
    assert [arm["arm"] for arm in summary["arms"]] == list(demo.ARMS)
    assert host["frozen"] == 0
    assert bundled["frozen"] == rival["frozen"] == 791_040
    assert bundled["trainable"] == rival["trainable"] == host["trainable"] + 2 * 64 * 256
    assert host["relative_step"] == 1.0
    assert bundled["relative_step"] > 0.5
    assert bundled["values"] != rival["values"]
    for arm, run in zip(summary["arms"], summary["runs"], strict=True):
        assert arm["values"] == [run["metrics"]["accuracy/top1"]]
        assert f"{arm['mean']:.2f}" in summary["table"]
    page = (folder / "report.html").read_text()
    assert len(page) < 5_000_000
    names = ("host-alone", "frozen-bundled-block", "frozen-random-block")
    for arm, name in zip(summary["arms"], names, strict=True):
        assert f"{arm['mean']:.1f} %" in page
        assert f">{arm['mean']:.2f}" in page
        assert f"{1000 * arm['step_seconds']:.1f} ms" in page
        study = read_study(folder / "digits" / name / "seed0")
        assert study is not None
        assert len(study.samples) == 6
        assert study.samples[0].title in page
        assert {finding.samples for finding in study.findings if finding.samples} <= set(range(1, 65))
    for text in demo_text.limits(summary):
        assert html.escape(text, quote=False) in page.replace("&#39;", "'").replace("&#34;", '"')


def _summary(base: dict[str, Any], values: list[list[float]]) -> dict[str, Any]:
    arms = [{**arm, **demo._figures(v)} for arm, v in zip(base["arms"], values, strict=True)]
    return {**base, "arms": arms, "seeds": [0, 1, 2]}


def test_the_text_follows_the_figures(demo_run: tuple[Path, dict[str, Any]]) -> None:
    base = demo_run[1]
    better = _summary(base, [[80.0, 81, 82], [90.0, 91, 92], [85.0, 86, 87]])
    assert "do best in every run" in demo_text.headline(better)
    assert "10.0 points more on average, and every run of the better arm" in demo_text.findings(better)[0]
    mixed = _summary(base, [[80.0, 81, 82], [81.0, 83, 90], [79.0, 80, 81]])
    assert "best on average, but not in every run" in demo_text.headline(mixed)
    assert "the runs of the two arms overlap" in demo_text.findings(mixed)[0]
    worse = _summary(base, [[80.0, 81, 82], [85.0, 86, 87], [90.0, 91, 92]])
    assert "Nothing here says that it is the language model's training" in demo_text.headline(worse)
    assert "5.0 points less on average" in demo_text.findings(worse)[2]
    equal = _summary(base, [[80.0, 81, 82], [80.0, 81, 82], [80.0, 81, 82]])
    assert "no difference on average" in demo_text.findings(equal)[0]


def test_every_layer_is_swept_once() -> None:
    arms = demo._layer_arms()
    assert list(arms) == list(range(6))
    assert arms[5] == (demo.BUNDLED, demo.ARMS[demo.BUNDLED])


def test_demo_refuses_a_folder_it_cannot_write(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SystemExit) as stopped:
        demo.main(["--runs", str(tmp_path / "file" / "demo")])
    assert "cannot be written" in str(stopped.value)
