"""The robustness command on a toy family in the real layout."""

from __future__ import annotations

import multiprocessing
import runpy
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from toy_imagenet import (
    CLEAN,
    CROPPED,
    WNIDS,
    arguments,
    fails,
    figures,
    noise,
    official,
    right_of_four,
)

from frozenllm.vision2d.robustness import Counts, evaluation, main
from frozenllm.vision2d.robustness.sets import (
    ALEXNET_ERRORS,
    SEVERITIES,
    classes,
)


def test_the_command_equals_the_official_evaluation(
    run: Path, family: dict[str, Path], model: torch.nn.Module, tmp_path: Path
) -> None:
    main(arguments(run, family, tmp_path))
    found = figures(tmp_path)
    assert found["complete"]
    assert len(found["sets"]) == 79
    tops = {name: entry["top1"] for name, entry in found["sets"].items()}
    for name in ("imagenet_a", "imagenet_r"):
        mask = [wnid in classes(name) for wnid in WNIDS]
        folder = family[name].with_suffix("")
        assert tops[name] == pytest.approx(official(model, folder, CLEAN, mask))
        assert tops[name] > official(model, folder, CLEAN, None), "the mask changes the answer here"
    assert tops["imagenet"] == pytest.approx(official(model, family["imagenet"] / "val", CLEAN, None))
    assert tops["imagenet"] == pytest.approx(500 / 7)
    assert tops["imagenet_sketch"] == pytest.approx(40.0)
    assert tops["imagenet_a"] == pytest.approx(400 / 6)
    assert tops["imagenet_r"] == pytest.approx(75.0)
    means, ces = [], []
    for c, corruption in enumerate(ALEXNET_ERRORS):
        by_severity = [25.0 * right_of_four(c, severity) for severity in SEVERITIES]
        for severity, value in zip(SEVERITIES, by_severity, strict=True):
            assert tops[f"imagenet_c/{corruption}/{severity}"] == pytest.approx(value)
        means.append(sum(by_severity) / 5)
        ces.append((100 - means[-1]) / ALEXNET_ERRORS[corruption])
    assert official(model, family["imagenet_c"] / "fog" / "2", CROPPED, None) == tops["imagenet_c/fog/2"]
    assert found["imagenet_c"]["top1"] == pytest.approx(sum(means) / 15)
    assert found["imagenet_c"]["mce"] == pytest.approx(sum(ces) / 15)
    text = (tmp_path / "table.txt").read_text()
    for words in ("ImageNet val", "71.43", "ImageNet-C mCE", f"{sum(ces) / 15:.2f}", "PARTIAL", "jpeg_compression"):
        assert words in text
    with Image.open(tmp_path / "robustness.png") as picture:
        assert picture.format == "PNG"
        assert min(picture.size) > 300
    log = (tmp_path / "robustness.log").read_text()
    assert log.count("  left ") == 79
    assert "[79/79] imagenet_sketch  top-1 40.00" in log


def evaluated(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Sizes of the sets that are really evaluated from now on."""
    sizes: list[int] = []
    real = evaluation.evaluate_set

    def counting(candidate: Any, dataset: Any, *args: Any, **options: Any) -> Counts:
        sizes.append(len(dataset))
        return real(candidate, dataset, *args, **options)

    monkeypatch.setattr("frozenllm.vision2d.robustness.run.evaluate_set", counting)
    return sizes


def test_what_is_done_is_not_done_again(
    run: Path, family: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = evaluated(monkeypatch)
    out = tmp_path / "out"
    some = "sets=[imagenet,imagenet_a,imagenet_c/fog]"
    main(arguments(run, family, out, some))
    assert len(sizes) == 7
    first = figures(out)
    main(arguments(run, family, out, some))
    assert len(sizes) == 7
    assert figures(out) == first
    main(arguments(run, family, out, "sets=[imagenet_a,imagenet_r]"))
    assert sizes[7:] == [8], "only what is new"
    main(arguments(run, family, out, some, "overwrite=true"))
    assert len(sizes) == 15
    # Another precision, other weights, another checkpoint or other data are other results.
    main(arguments(run, family, out, "sets=[imagenet]", "runtime.precision=bf16"))
    assert len(sizes) == 16
    main(arguments(run, family, out, "sets=[imagenet]", "weights=ema"))
    assert len(sizes) == 17
    moved = dict(family, imagenet=family["imagenet"] / "val")
    (tmp_path / "copy").symlink_to(family["imagenet"] / "val")
    main(arguments(run, moved, out, "sets=[imagenet]"))
    main(arguments(run, dict(family, imagenet=tmp_path / "copy"), out, "sets=[imagenet]"))
    assert len(sizes) == 17, "the same folder by another name"
    main(arguments(run, dict(family, imagenet=family["imagenet_sketch"]), out, "sets=[imagenet]"))
    assert len(sizes) == 18
    other = tmp_path / "other.pt"
    content = torch.load(run, weights_only=True)
    content["metrics"] = {"changed": 1.0}
    torch.save(content, other)
    main(arguments(other, family, out, "sets=[imagenet]"))
    assert len(sizes) == 19
    # A result that cannot be read is no result.
    for path in (out / "sets").glob("imagenet_r-*.json"):
        path.write_text("{")
    main(arguments(run, family, out, "sets=[imagenet_r]"))
    assert len(sizes) == 20


def test_killed_and_started_again(
    run: Path, family: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A real process, killed without warning as soon as some results are there."""
    out = tmp_path / "out"
    process = multiprocessing.get_context("fork").Process(target=main, args=(arguments(run, family, out),))
    process.start()
    deadline = time.monotonic() + 90
    while len(list((out / "sets").glob("imagenet_c.*.json"))) < 5:
        assert process.is_alive()
        assert time.monotonic() < deadline
        time.sleep(0.002)
    process.kill()  # SIGKILL
    process.join()
    kept = len(list((out / "sets").glob("*.json")))
    assert 6 <= kept < 79
    assert not (out / "table.txt").exists()
    sizes = evaluated(monkeypatch)
    main(arguments(run, family, out))
    assert len(sizes) == 79 - kept
    assert figures(out)["complete"]
    assert len(figures(out)["sets"]) == 79
    assert f"{kept} of 79 sets: {79 - kept} are left" in (out / "robustness.log").read_text()


def test_broken_images_by_policy(
    run: Path,
    family: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    sketch = tmp_path / "sketch" / WNIDS[3]
    sketch.mkdir(parents=True)
    (sketch / "broken.png").write_bytes(b"nothing")
    noise(np.random.default_rng(0)).save(sketch / "sound.png")
    family = dict(family, imagenet_sketch=tmp_path / "sketch")
    sets = "sets=[imagenet_a,imagenet_sketch]"
    for workers in (0, 1):
        message = fails(arguments(run, family, tmp_path / "out", sets, f"runtime.workers={workers}"), capsys)
        assert message.startswith(f"error: {sketch / 'broken.png'} cannot be read as an image (")
        assert message.endswith("or set on_error to skip.")
    sizes = evaluated(monkeypatch)
    main(arguments(run, family, tmp_path / "out", sets, "on_error=skip"))
    assert len(sizes) == 1, "imagenet_a was done before the broken image was met"
    entry = figures(tmp_path / "out")["sets"]["imagenet_sketch"]
    assert (entry["images"], entry["unreadable"]) == (1, 1)
    assert "1 images unreadable, left out" in (tmp_path / "out" / "table.txt").read_text()
    assert "Skipped" in (tmp_path / "out" / "robustness.log").read_text()
    main(arguments(run, family, tmp_path / "out", sets, "on_error=skip"))
    assert len(sizes) == 1
    fails(arguments(run, family, tmp_path / "out", sets), capsys)  # the remembered result is not good enough here
    (sketch / "sound.png").unlink()
    message = fails(arguments(run, family, tmp_path / "out", sets, "on_error=skip", "overwrite=true"), capsys)
    assert "Not one image of the evaluated set could be read" in message


def test_a_set_that_has_become_whole_is_evaluated_again(run: Path, tmp_path: Path) -> None:
    data, wnids = tmp_path / "in-a", classes("imagenet_a")
    picture = noise(np.random.default_rng(0))

    def fill(some: tuple[str, ...]) -> None:
        for wnid in some:
            (data / wnid).mkdir(parents=True)
            picture.save(data / wnid / "a.png")

    fill(wnids[:3])
    argv = arguments(run, {"imagenet_a": data}, tmp_path / "out", "sets=[imagenet_a]", "batch_size=100")
    main(argv)
    assert figures(tmp_path / "out")["sets"]["imagenet_a"]["missing_classes"] == 197
    fill(wnids[3:])
    main([*argv, "partial=false"])
    entry = figures(tmp_path / "out")["sets"]["imagenet_a"]
    assert (entry["images"], entry["missing_classes"]) == (200, 0)
    assert entry["top1"] == 0.5  # one picture, under all classes
    assert "PARTIAL" not in (tmp_path / "out" / "table.txt").read_text()


def test_results_go_to_the_runs_folder(run: Path, family: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    argv = [a for a in arguments(run, family, Path()) if not a.startswith(("out=", "runtime.console"))]
    main([*argv, "sets=[imagenet]"])
    assert (run.parent.parent / "robustness" / "table.txt").is_file()
    printed = capsys.readouterr().out
    assert "[1/1] imagenet  top-1 71.43" in printed
    assert "ImageNet val" in printed


def test_the_tool_is_the_same_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["tool", f"data.imagenet={tmp_path}", "sets=[imagenet]", "partial=true"])
    for target in (str(Path(__file__).parents[2] / "tools" / "eval_robustness.py"), "frozenllm.vision2d.robustness"):
        with pytest.raises(SystemExit):
            (runpy.run_path if target.endswith(".py") else runpy.run_module)(target, run_name="__main__")
        assert capsys.readouterr().err == (
            "error: Nothing to evaluate is given: set checkpoint=..., or timm_model=<name>.\n"
        )
