"""What is known of the ImageNet family, and its scores by hand: class lists, counts, mean accuracy and mCE."""

from __future__ import annotations

import pkgutil
from pathlib import Path

import pytest
import torch
from timm.data import ImageNetInfo
from toy_imagenet import (
    SIZE,
    WNIDS,
)

from frozenllm.core.training import UNREADABLE
from frozenllm.vision2d.robustness import Counts, corruption_scores, evaluation
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
