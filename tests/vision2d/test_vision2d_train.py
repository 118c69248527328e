"""The training tool and the demo, as users call them."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from processes import call as run_command

from frozenllm.core.training import compose_config, evaluate, train
from frozenllm.vision2d import demo, report
from frozenllm.vision2d import train as tool

ROOT = Path(__file__).parents[2]
FAST = [
    "data.batch_size=16",
    "model.depth=1",
    "model.embed_dim=16",
    "runtime.console=false",
    "runtime.plots=false",
    "schedule.epochs=1",
]
FAST += ["schedule.warmup_epochs=0"]


def call(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return run_command([sys.executable, str(ROOT / "tools" / "train_vision2d.py"), *arguments], cwd)


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
    assert not [name for name in state if "llm.block" in name and not name.endswith("_extra_state")]


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
    monkeypatch.chdir(tmp_path)
    seen: dict[str, Any] = {}
    compare = tool.compare

    def shorter(config: str, arms: Any, overrides: list[str]) -> Any:
        seen.update(arms=arms, overrides=overrides)
        return compare(config, arms, overrides=[*overrides, *FAST])

    monkeypatch.setattr(tool, "compare", shorter)
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
        assert arm["values"] == [run["metrics"]["accuracy/top1"]] == arm["curves"][0]["accuracy"]
        assert f"{arm['mean']:.2f}" in summary["table"]
    page = (folder / "report.html").read_text()
    assert "http://" not in page
    assert "https://" not in page
    assert 'src="/' not in page
    assert "$" not in page
    assert page.count("data:image/png;base64,") == 4
    for arm in summary["arms"]:
        assert f"{arm['mean']:.1f} %" in page
    for name in ("accuracy", "curves", "loss", "samples"):
        with Image.open(folder / f"{name}.png") as image:
            assert image.width > 400


def _summary(base: dict[str, Any], values: list[list[float]]) -> dict[str, Any]:
    arms = [{**arm, **demo._figures(v)} for arm, v in zip(base["arms"], values, strict=True)]
    return {**base, "arms": arms, "seeds": [0, 1, 2]}


def test_the_text_follows_the_figures(demo_run: tuple[Path, dict[str, Any]]) -> None:
    base = demo_run[1]
    better = _summary(base, [[80.0, 81, 82], [90.0, 91, 92], [85.0, 86, 87]])
    assert "do best in every run" in report.headline(better)
    assert "10.0 points more on average, and every run of the better arm" in report.findings(better)[0]
    mixed = _summary(base, [[80.0, 81, 82], [81.0, 83, 90], [79.0, 80, 81]])
    assert "best on average, but not in every run" in report.headline(mixed)
    assert "the runs of the two arms overlap" in report.findings(mixed)[0]
    worse = _summary(base, [[80.0, 81, 82], [85.0, 86, 87], [90.0, 91, 92]])
    assert "Nothing here says that it is the language model's training" in report.headline(worse)
    assert "5.0 points less on average" in report.findings(worse)[2]
    equal = _summary(base, [[80.0, 81, 82], [80.0, 81, 82], [80.0, 81, 82]])
    assert "no difference on average" in report.findings(equal)[0]


def test_layers_become_a_fourth_figure(demo_run: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    layers = [{"layer": k, **demo._figures([50.0 + k, 60.0 - 3 * k])} for k in range(6)]
    path = report.write_report(tmp_path, {**demo_run[1], "layers": layers, "layer_seeds": [0, 1]})
    page = path.read_text()
    assert "Layer 0 does best (55.0 &plusmn; 7.1 %), layer 5 worst (50.0" in page
    assert page.count("data:image/png;base64,") == 5
    assert list(demo._layer_arms()) == list(range(6))


def test_the_page_looks_right_in_a_browser(demo_run: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no Chromium to render the page with")
    shot = tmp_path / "page.png"
    subprocess.run(
        [browser, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--window-size=1100,2200",
         f"--user-data-dir={tmp_path / 'profile'}", f"--screenshot={shot}",
         (demo_run[0] / "report.html").as_uri()],
        check=True, capture_output=True, timeout=180,
    )  # fmt: skip
    with Image.open(shot) as image:
        colours = {colour: count for count, colour in image.convert("RGB").getcolors(1 << 24)}
    for wanted in ((100, 116, 139), (29, 78, 216), (194, 101, 10)):  # the arms' colours, in table and figures
        assert colours.get(wanted, 0) > 100, wanted
    assert max(colours.values()) < 0.9 * 1100 * 2200  # not a blank page


def test_demo_refuses_a_folder_it_cannot_write(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SystemExit) as stopped:
        demo.main(["--runs", str(tmp_path / "file" / "demo")])
    assert "cannot be written" in str(stopped.value)
