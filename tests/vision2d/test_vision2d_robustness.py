"""ImageNet, -C, -A, -R and -Sketch: facts, scores by hand, and the command on a toy family in the real layout.

The toy images are random, and are filed under the classes that a reference written from the official code predicts for
them, or under others: so the right figures are known, and are not those of chance.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import pkgutil
import runpy
import tarfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from timm.data import ImageNetInfo
from torchvision import datasets, transforms

from frozenllm.core.training import UNREADABLE, compose_config, train
from frozenllm.vision2d.robustness import Counts, corruption_scores, evaluation, load_candidate, main
from frozenllm.vision2d.robustness.progress import Progress
from frozenllm.vision2d.robustness.sets import (
    ALEXNET_ERRORS,
    SEVERITIES,
    TITLES,
    EvalSet,
    chosen_sets,
    class_indices,
    classes,
)
from frozenllm.vision2d.train import CONFIG

SIZE = 16
WNIDS = classes("imagenet")
SPEC = {"hidden_size": 32, "num_heads": 2, "num_kv_heads": 2, "head_dim": 16, "intermediate_size": 48}
MODEL = ["model=vit_tiny", "+model.img_size=16", "+model.patch_size=8", "+model.embed_dim=24", "+model.depth=1"]
OFFICIAL = [transforms.ToTensor(), transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))]
CLEAN = transforms.Compose([transforms.Resize(18, interpolation=3), transforms.CenterCrop(SIZE), *OFFICIAL])
CROPPED = transforms.Compose([transforms.CenterCrop(SIZE), *OFFICIAL])
FOLDERS = {"imagenet": "in1k", "imagenet_c": "in-c", "imagenet_a": "in-a", "imagenet_r": "in-r.tar"}
FOLDERS["imagenet_sketch"] = "sketch"


# -- facts and scores ------------------------------------------------------------------------------------------------


def test_class_lists() -> None:
    assert len(WNIDS) == 1000
    assert list(WNIDS) == sorted(WNIDS)
    assert class_indices()["n01440764"] == 0
    assert class_indices()["n15075141"] == 999
    for name in ("imagenet_a", "imagenet_r"):
        assert len(classes(name)) == 200
        assert list(classes(name)) == sorted(classes(name))
        listed = pkgutil.get_data("timm.data", f"_info/{name}_indices.txt").decode().split()
        assert [class_indices()[wnid] for wnid in classes(name)] == [int(index) for index in listed]
    assert classes("imagenet_a") != classes("imagenet_r")
    assert classes("imagenet_sketch") == WNIDS
    assert ImageNetInfo().label_names() == list(WNIDS)


def test_corruptions_are_fifteen_and_alexnets_mean_error_is_as_published() -> None:
    """The paper (table 1 of Hendrycks & Dietterich) gives AlexNet's errors in whole per cent."""
    assert len(ALEXNET_ERRORS) == 15
    rounded = {name: round(100 * error) for name, error in ALEXNET_ERRORS.items()}
    noise = [rounded[name] for name in ("gaussian_noise", "shot_noise", "impulse_noise")]
    blur = [rounded[f"{name}_blur"] for name in ("defocus", "glass", "motion", "zoom")]
    weather = [rounded[name] for name in ("snow", "frost", "fog", "brightness")]
    digital = [rounded[name] for name in ("contrast", "elastic_transform", "pixelate", "jpeg_compression")]
    assert noise == [89, 89, 92]
    assert blur == [82, 83, 79, 80]
    assert weather == [87, 83, 82, 56]
    assert digital == [85, 65, 72, 61]


def test_counts_by_hand() -> None:
    logits = torch.tensor([[0.0, 3, 2, 1, -1, -2, 5], [9, 3, 2, 1, -1, -2, 5], [0, 1, 2, 3, 4, 5, 6], [0] * 7])
    counts = Counts()
    counts.add(logits, torch.tensor([6, 5, 2, UNREADABLE]))
    # First right; second: class 5 is the last of seven; third: class 2 is the fifth from above; fourth not counted.
    assert (counts.images, counts.top1, counts.top5, counts.unreadable) == (3, 1, 2, 1)
    counts.add(logits[:1], torch.tensor([1]))
    assert (counts.images, counts.top1, counts.top5) == (4, 1, 3)
    assert counts.accuracy(1) == 25.0
    assert counts.accuracy(5) == 75.0
    with pytest.raises(ValueError, match="scores are not finite"):
        counts.add(torch.full((1, 7), float("nan")), torch.tensor([1]))
    counts.add(torch.full((1, 7), float("nan")), torch.tensor([UNREADABLE]))


def test_only_the_sets_classes_may_be_predicted() -> None:
    """Of seven classes the second set has 1, 3 and 4: the first image's best among them is its label."""
    logits = torch.tensor([[0.0, 3, 2, 1, -1, -2, 5], [0, 1, 2, 3, 4, 5, 6]])
    targets, allowed = torch.tensor([1, 3]), torch.tensor([1, 3, 4])
    free, masked = Counts(), Counts()
    free.add(logits, targets)
    masked.add(logits, targets, allowed)
    assert (free.top1, masked.top1) == (0, 1)
    assert masked.top5 == 2, "three classes are all among the best five"
    official = logits[:, torch.tensor([False, True, False, True, True, False, False])].argmax(1)
    assert (official == torch.tensor([0, 1])).tolist() == [True, False]


def made_up() -> dict[str, Counts]:
    """Accuracy of corruption i at severity s: 100 - 2 i - 10 s per cent, of 1000 images."""
    return {
        f"imagenet_c/{name}/{s}": Counts(images=1000, top1=1000 - 20 * i - 100 * s, top5=1000)
        for i, name in enumerate(ALEXNET_ERRORS)
        for s in SEVERITIES
    }


def test_mean_accuracy_and_mce_by_hand() -> None:
    scores = corruption_scores(made_up())
    # Over severities 100 - 2 i - 30; over corruptions i has the mean 7.
    assert scores["top1"] == pytest.approx(100 - 14 - 30)
    assert scores["evaluated"] == 75
    gaussian, jpeg = scores["corruptions"]["gaussian_noise"], scores["corruptions"]["jpeg_compression"]
    assert gaussian["top1"] == {"1": 90.0, "2": 80.0, "3": 70.0, "4": 60.0, "5": 50.0}
    assert gaussian["mean"] == pytest.approx(70.0)
    assert gaussian["ce"] == pytest.approx(30 / 0.886428)
    assert jpeg["mean"] == pytest.approx(42.0)
    assert jpeg["ce"] == pytest.approx(58 / 0.6065)
    errors = [0.886428, 0.894468, 0.92264, 0.81988, 0.826268, 0.785948, 0.79836, 0.866816]
    errors += [0.826572, 0.819324, 0.564592, 0.853204, 0.646056, 0.71784, 0.6065]
    by_hand = sum((30 + 2 * i) / error for i, error in enumerate(errors)) / 15
    assert scores["mce"] == pytest.approx(by_hand)
    # A model with AlexNet's errors has an mCE of 100 whatever the spread over severities.
    alexnet = {
        f"imagenet_c/{name}/{s}": Counts(images=10**6, top1=10**6 - round(10**6 * error) + (s - 3) * 1000)
        for name, error in ALEXNET_ERRORS.items()
        for s in SEVERITIES
    }
    assert corruption_scores(alexnet)["mce"] == pytest.approx(100.0)


def test_parts_that_are_missing_leave_means_out() -> None:
    counts = made_up()
    del counts["imagenet_c/fog/3"]
    scores = corruption_scores(counts)
    assert scores["top1"] is None
    assert scores["mce"] is None
    assert scores["evaluated"] == 74
    assert "mean" not in scores["corruptions"]["fog"]
    assert "ce" in scores["corruptions"]["snow"]
    assert corruption_scores({})["corruptions"] == {}


# -- a toy family ----------------------------------------------------------------------------------------------------


def overrides(runs: Path, data: Path, *more: str) -> list[str]:
    llm = ["llm=random", "+llm.spec={" + ",".join(f"{k}:{v}" for k, v in SPEC.items()) + "}", "llm.source=null"]
    sizes = ["data.train.transform.input_size=16", "data.val.transform.input_size=16", "+model.num_heads=2"]
    run = [
        "recipe=imagenet_vit_tiny_llama",
        *MODEL,
        *llm,
        *sizes,
        "runtime=cpu",
        "runtime.threads=1",
        "name=toy",
        "runtime.precision=fp32",
    ]
    quick = ["runtime.workers=0", "runtime.checkpoint.keep=1"]
    quiet = ["runtime.console=false", "data.batch_size=2", "data.val_batch_size=8", "schedule.epochs=2"]
    return [*run, *quick, *quiet, "schedule.warmup_epochs=1", f"data.root={data}", f"runs={runs}", *more]


def right_of_four(corruption: int, severity: int) -> int:
    return min(4, (corruption + 2 * severity) % 6)


def noise(rng: np.random.Generator, width: int = SIZE, height: int = SIZE) -> Image.Image:
    coarse = rng.integers(0, 256, (3, 4, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.NEAREST)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint of a recipe trained on ``train.tar`` for two steps, then resumed for two more."""
    root = tmp_path_factory.mktemp("train")
    rng = np.random.default_rng(0)
    for split, count in (("train", 4), ("val", 2)):
        for wnid in WNIDS[:count]:
            (root / split / wnid).mkdir(parents=True)
            noise(rng, 20, 24).save(root / split / wnid / "a.JPEG")
        with tarfile.open(root / f"{split}.tar", "w") as archive:
            archive.add(root / split, arcname=split)
        (root / split).rename(root / f"unused-{split}")
    first = train(compose_config(CONFIG, overrides(root / "runs", root, "runtime.stop_after=2")))
    assert first.iterations == 2
    result = train(compose_config(CONFIG, overrides(root / "runs", root, "resume=true")))
    assert result.iterations == 4
    assert result.finished
    checkpoint = torch.load(Path(result.run_dir) / "checkpoints" / "last.pt", weights_only=True)
    generator = torch.Generator().manual_seed(1)
    for name, value in checkpoint["state_dict"].items():  # after four steps all images look alike to it
        if value.is_floating_point() and value.ndim > 1:
            value.normal_(0, 0.6, generator=generator)
            if name in checkpoint["ema"]:
                checkpoint["ema"][name] = value.flip(0).clone()
    torch.save(checkpoint, Path(result.run_dir) / "checkpoints" / "last.pt")
    return Path(result.run_dir) / "checkpoints" / "last.pt"


@pytest.fixture(scope="module")
def model(run: Path) -> torch.nn.Module:
    return load_candidate(str(run)).model


@torch.no_grad()
def predictions(model: torch.nn.Module, image: Image.Image, transform: Any) -> torch.Tensor:
    return model(transform(image)[None])[0]


def write_images(
    root: Path, family: str, model: torch.nn.Module, rng: np.random.Generator, count: int, right: int
) -> None:
    """So many images, the first ones filed under the class that is predicted when only the set's are allowed."""
    allowed = [class_indices()[wnid] for wnid in classes(family)]
    transform = CROPPED if family == "imagenet_c" else CLEAN
    for i in range(count):
        image = noise(rng) if family == "imagenet_c" else noise(rng, 20, 22)
        logits = predictions(model, image, transform)[allowed]
        best = int(logits.argmax()) if i < right else int(logits.argsort()[len(allowed) // 2])
        folder = root / classes(family)[best]
        folder.mkdir(parents=True, exist_ok=True)
        image.save(folder / f"{i}.png")


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory, model: torch.nn.Module) -> dict[str, Path]:
    """Every data set as users have it, with a few classes each."""
    root = tmp_path_factory.mktemp("family")
    rng = np.random.default_rng(5)
    write_images(root / "in1k" / "val", "imagenet", model, rng, 7, 5)
    write_images(root / "in-a", "imagenet_a", model, rng, 6, 4)
    (root / "in-a" / "README.txt").write_text("as in the download")
    write_images(root / "in-r", "imagenet_r", model, rng, 8, 6)
    with tarfile.open(root / "in-r.tar", "w") as archive:
        archive.add(root / "in-r", arcname="imagenet-r")
    write_images(root / "sketch", "imagenet_sketch", model, rng, 5, 2)
    for c, corruption in enumerate(ALEXNET_ERRORS):
        for severity in SEVERITIES:
            place = root / "in-c" / corruption / str(severity)
            write_images(place, "imagenet_c", model, rng, 4, right_of_four(c, severity))
    return {name: root / folder for name, folder in FOLDERS.items()}


def arguments(run: Path, family: dict[str, Path], out: Path, *more: str) -> list[str]:
    data = [f"data.{name}={path}" for name, path in family.items()]
    runtime = ["runtime.device=cpu", "runtime.threads=1", "runtime.workers=0", "runtime.console=false", "batch_size=3"]
    return [f"checkpoint={run}", *data, *runtime, "partial=true", f"out={out}", *more]


def figures(out: Path) -> dict[str, Any]:
    return json.loads((out / "results.json").read_text())


@torch.no_grad()
def official(model: torch.nn.Module, folder: Path, transform: Any, mask: Sequence[bool] | None) -> float:
    """Top-1 as the official engine.py has it, on torchvision's ImageFolder with the labels of all the set's classes."""
    data = datasets.ImageFolder(str(folder), transform)
    allowed = [wnid for wnid, use in zip(WNIDS, mask or [True] * 1000, strict=True) if use]
    hits = [
        int(model(image[None])[:, torch.tensor(mask)].argmax() if mask else model(image[None]).argmax())
        == allowed.index(data.classes[target])
        for image, target in (data[i] for i in range(len(data)))
    ]
    return 100 * sum(hits) / len(hits)


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


def fails(argv: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one line that the command prints when it fails."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as caught:
        main(argv)
    assert caught.value.code == 1
    lines = capsys.readouterr().err.strip().splitlines()
    assert [line.partition(" ")[0] for line in lines] == ["error:"], lines
    return lines[0]


def test_mistakes_give_one_sentence(
    run: Path, family: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    foreign, garbage = tmp_path / "foreign.pt", tmp_path / "garbage.pt"
    torch.save({"weights": torch.zeros(2)}, foreign)
    garbage.write_bytes(b"no checkpoint")
    (tmp_path / "empty").mkdir()
    small = tmp_path / "small"
    for wnid in WNIDS[:2]:
        (small / wnid).mkdir(parents=True)
        noise(np.random.default_rng(0), 8, 8).save(small / wnid / "a.png")
    cases: list[tuple[list[str], str]] = [
        (["checkpoint=null"], "Nothing to evaluate is given: set checkpoint=..., or timm_model=<name>"),
        ([f"checkpoint={tmp_path}/no.pt"], "There is no checkpoint at"),
        ([f"checkpoint={foreign}"], "is neither a checkpoint of a run nor of the official release"),
        ([f"checkpoint={garbage}"], "garbage.pt cannot be read as a checkpoint"),
        (
            ["timm_model=vit_none", "checkpoint=null"],
            "timm cannot load vit_none from its pretrained weights: Unknown model",
        ),
        ([f"checkpoint={foreign}", "timm_model=test_vit"], "timm cannot load test_vit from"),
        (["timm_model=test_vit", "weights=ema"], "weights=... and llm_path=... are for checkpoints of runs"),
        (["weights=best"], "weights must be one of auto, raw, ema"),
        (["on_error=ignore"], "on_error must be raise or skip"),
        (["runtime.precision=fp8"], "runtime.precision must be fp32, bf16 or fp16"),
        (["runtime.precision=fp16"], "runtime.precision=fp16 needs a GPU"),
        (["runtime.device=tpu"], "runtime.device must be auto, cpu or cuda"),
        (["sets=[imagenet_v2]"], "There is no set 'imagenet_v2': choose from imagenet, imagenet_c"),
        (["sets=[imagenet_c/rain]"], "There is no set 'imagenet_c/rain'"),
        (["sets=[imagenet_a/fog]"], "There is no set 'imagenet_a/fog'"),
        (["sets=[]"], "sets is empty"),
        (["data.imagenet_r=null"], "No folder is given for ImageNet-R: set data.imagenet_r=..., or choose"),
        ([f"data.imagenet_r={tmp_path}/no"], "The path given for ImageNet-R does not exist"),
        ([f"data.imagenet_a={foreign}"], "The path given for ImageNet-A is neither a folder nor a .tar file"),
        ([f"data.imagenet_sketch={tmp_path}/empty"], "holds no images in subfolders"),
        ([f"data.imagenet_a={family['imagenet']}"], "has folders that are no classes of ImageNet-A: val"),
        ([f"data.imagenet_c={tmp_path}"], "lacks folders of ImageNet-C: gaussian_noise/1, "),
        (["partial=false"], "lacks classes of ImageNet: ".replace("ImageNet:", "ImageNet val:")),
        (["date.imagenet=x"], "There is no config key 'date"),
        ([f"out={foreign}/below"], "cannot be written"),
    ]
    for more, words in cases:
        keep = [argument for argument in arguments(run, family, out) if argument.split("=")[0] not in _keys(more)]
        if any("imagenet_sketch=" in entry for entry in more):
            more = [*more, "sets=[imagenet_sketch]"]
        assert words in fails([*keep, *more], capsys), more
    one = [f"data.imagenet_c={_all_corruptions(tmp_path, small)}", "sets=[imagenet_c/fog]"]
    keep = [argument for argument in arguments(run, family, out) if argument.split("=")[0] not in _keys(one)]
    assert "An image of ImageNet-C has 8 x 8 pixels, fewer than the model's 16" in fails([*keep, *one], capsys)
    assert not (out / "results.json").exists()


def test_time_left(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """100 images a second, sets of 300 images; ImageNet-R's size is not known before it is opened."""
    clock = [0.0]
    monkeypatch.setattr("time.perf_counter", lambda: clock[0])
    parts = [EvalSet(f"imagenet_c/fog/{s}", tmp_path) for s in SEVERITIES] + [EvalSet("imagenet_r", tmp_path)]
    progress = Progress(parts, total=8, every_seconds=1.0)
    progress.open(parts[0], 300)
    clock[0] = 2.0
    progress.step(200)
    assert progress.left(200).total_seconds() == (100 + 4 * 300 + 30_000) / 100
    clock[0] = 3.0
    progress.close(Counts(images=300, top1=3, top5=30))
    assert progress.left().total_seconds() == (4 * 300 + 30_000) / 100
    for part in parts[1:]:
        progress.open(part, 300)
        clock[0] += 3.0
        progress.close(Counts(images=300, top1=3, top5=30))
    assert progress.left().total_seconds() == 0
    assert progress.finished == 8


def _keys(arguments: list[str]) -> set[str]:
    return {argument.split("=")[0] for argument in arguments}


def _all_corruptions(root: Path, images: Path) -> Path:
    for corruption in ALEXNET_ERRORS:
        (root / "c" / corruption).mkdir(parents=True)
        for severity in SEVERITIES:
            (root / "c" / corruption / str(severity)).symlink_to(images)
    return root / "c"


def test_classes_are_compared_with_the_list(tmp_path: Path) -> None:
    names = classes("imagenet_r")
    for wnid in names:
        (tmp_path / wnid).mkdir()
        (tmp_path / wnid / "a.png").touch()
    data = {"imagenet_r": str(tmp_path)}
    (part,) = chosen_sets(data, ["imagenet_r"])
    assert part.wnids == names
    assert TITLES[part.family] == "ImageNet-R"
    (tmp_path / names[7] / "a.png").rename(tmp_path / "a.png")
    (tmp_path / names[7]).rmdir()
    with pytest.raises(ValueError, match=rf"lacks classes of ImageNet-R: {names[7]}\. Complete it"):
        chosen_sets(data, ["imagenet_r"])
    assert chosen_sets(data, ["imagenet_r"], partial=True)
    outside = next(wnid for wnid in WNIDS if wnid not in names)
    (tmp_path / outside).mkdir()
    for partial in (False, True):
        with pytest.raises(ValueError, match=f"are no classes of ImageNet-R: {outside}"):
            chosen_sets(data, ["imagenet_r"], partial)
    (tmp_path / outside).rmdir()
    (tmp_path / names[7]).mkdir()  # there, but empty: found when the set is opened
    with pytest.raises(ValueError, match=f"lacks classes of ImageNet-R: {names[7]}"):
        evaluation.open_set(part, {"input_size": SIZE}, "raise", partial=False)
    _, missing = evaluation.open_set(part, {"input_size": SIZE}, "raise", partial=True)
    assert missing == 1


def test_weights_of_a_run(run: Path, model: torch.nn.Module) -> None:
    raw, average = load_candidate(str(run), weights="raw"), load_candidate(str(run), weights="ema")
    assert load_candidate(str(run)).identity["weights"] == "raw", "the recipe evaluates raw weights"
    assert raw.transform["input_size"] == SIZE
    assert raw.transform["crop_pct"] == 0.875
    assert torch.equal(raw.model.head.weight, model.head.weight)
    assert torch.equal(average.model.head.weight, model.head.weight.flip(0))
    half = load_candidate(str(run), precision="bf16")
    assert next(half.model.llm.block.buffers()).dtype == torch.bfloat16
    assert half.model.head.weight.dtype == torch.float32


def test_timm_checkpoints(tmp_path: Path, family: dict[str, Path]) -> None:
    """A file that timm reads: the model's own transform is used."""
    torch.manual_seed(0)
    path = tmp_path / "weights.safetensors"
    from safetensors.torch import save_file

    saved = timm.create_model("test_vit", num_classes=1000)
    save_file(saved.state_dict(), path)
    candidate = load_candidate(str(path), "test_vit")
    assert torch.equal(candidate.model.head.weight, saved.head.weight)
    assert candidate.transform["input_size"] == [3, 160, 160]
    assert not candidate.model.training
    out = tmp_path / "out"
    main(arguments(path, family, out, "timm_model=test_vit", "sets=[imagenet]"))
    assert figures(out)["model"]["kind"] == "timm"
    assert figures(out)["sets"]["imagenet"]["images"] == 7


def test_official_checkpoints(tmp_path: Path, family: dict[str, Path]) -> None:
    """A file of the release's layout, which holds an argparse.Namespace beside the weights."""
    torch.manual_seed(0)
    sizes = {"img_size": SIZE, "patch_size": 8, "embed_dim": 16, "depth": 1, "num_heads": 2, "num_classes": 1000}
    host = timm.create_model("vit_tiny_patch16_224_frozenllm", llm="none", **sizes).eval()
    state = dict(host.state_dict())
    block = {f"attention.{name}.weight": (32, 32) for name in ("wq", "wk", "wv", "wo")}
    block |= {
        "feed_forward.w1.weight": (48, 32),
        "feed_forward.w2.weight": (32, 48),
        "feed_forward.w3.weight": (48, 32),
    }
    block |= {"attention_norm.weight": (32,), "ffn_norm.weight": (32,)}
    state |= {f"llama.layers.0.{name}": 0.2 * torch.randn(shape) for name, shape in block.items()}
    state |= {"llama.norm.weight": torch.ones(32), "llama_dim_mapper1.weight": torch.randn(32, 16)}
    state["llama_dim_mapper2.weight"] = torch.randn(16, 32)
    path = tmp_path / "official.pth"
    torch.save({"model": state, "epoch": 299, "args": argparse.Namespace(model="vit_llama")}, path)
    more = ["official.num_heads=2", "official.llm_heads=4", "sets=[imagenet,imagenet_c/fog]"]
    out = tmp_path / "out"
    main(arguments(path, family, out, *more))
    found = figures(out)
    assert found["model"]["kind"] == "official"
    assert found["transform"]["input_size"] == SIZE
    loaded = load_candidate(str(path), official={"num_heads": 2, "llm_heads": 4}).model
    assert loaded.llm is not None
    assert found["sets"]["imagenet"]["top1"] == official(loaded, family["imagenet"] / "val", CLEAN, None)
    assert found["sets"]["imagenet_c/fog/1"]["top1"] == official(loaded, family["imagenet_c"] / "fog/1", CROPPED, None)
    main(arguments(path, family, out, more[0], "official.llm_heads=2", more[2]))
    assert len(list((out / "sets").iterdir())) == 12, "another number of heads is another model"


def test_other_numbers_of_classes_are_refused(run: Path, tmp_path: Path) -> None:
    path = tmp_path / "ten.pt"
    torch.save(timm.create_model("test_vit", num_classes=1000).state_dict(), path)
    content = torch.load(run, weights_only=True)
    content["meta"]["config"] = content["meta"]["config"].replace("num_classes: 1000", "num_classes: 10")
    content["state_dict"]["model.head.weight"] = content["state_dict"]["model.head.weight"][:10].clone()
    content["state_dict"]["model.head.bias"] = content["state_dict"]["model.head.bias"][:10].clone()
    torch.save(content, tmp_path / "ten.pt")
    with pytest.raises(ValueError, match="has 10 classes: these data sets need the 1000 of ImageNet-1k"):
        load_candidate(str(tmp_path / "ten.pt"))


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
