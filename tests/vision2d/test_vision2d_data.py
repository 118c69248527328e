"""Toy data, image folders, broken images, mixup, accuracy."""

from __future__ import annotations

import random
import shutil
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder

from frozenllm.core.training import UNREADABLE, Accuracy
from frozenllm.vision2d.data import Mixup, digits, image_folder
from frozenllm.vision2d.toy import write_digits

TRANSFORM = {"input_size": 16, "crop_pct": 1.0}


def test_digits_are_the_real_ones_in_imagenets_layout(digits_root: Path) -> None:
    train, val = ImageFolder(str(digits_root / "train")), ImageFolder(str(digits_root / "val"))
    assert train.classes == val.classes == [str(d) for d in range(10)]
    assert len(train) + len(val) == 1797
    assert 350 <= len(val) <= 370
    source = load_digits()
    seen = set()
    for folder in (train, val):
        for path, label in folder.samples[::37]:
            index = int(Path(path).stem)
            assert source.target[index] == label
            with Image.open(path) as image:
                assert image.size == (32, 32)
                small = np.asarray(image.convert("L").resize((8, 8), Image.Resampling.BOX), dtype=float)
            assert np.corrcoef(small.ravel(), source.images[index].ravel())[0, 1] > 0.95
        seen |= {Path(path).stem for path, _ in folder.samples}
    assert len(seen) == 1797  # no image is in both parts


def test_digits_are_written_once_and_the_same_for_a_seed(tmp_path: Path) -> None:
    root = write_digits(tmp_path / "a", size=8, seed=3)
    assert write_digits(root, size=8, seed=3) == root
    other = write_digits(tmp_path / "b", size=8, seed=3)
    files = sorted(p.relative_to(root) for p in root.rglob("*.png"))
    assert files == sorted(p.relative_to(other) for p in other.rglob("*.png"))
    assert all((root / f).read_bytes() == (other / f).read_bytes() for f in files)
    third = write_digits(tmp_path / "c", size=8, seed=4)
    assert files != sorted(p.relative_to(third) for p in third.rglob("*.png"))
    assert {p.name for p in tmp_path.iterdir()} == {"a", "b", "c"}  # no scratch folders are left


def test_images_are_those_of_torchvisions_loader(digits_root: Path) -> None:
    ours, theirs = image_folder(str(digits_root), "val", transform=TRANSFORM), ImageFolder(str(digits_root / "val"))
    assert len(ours) == len(theirs)
    by_name = {Path(path).name: label for path, label in theirs.samples}
    for index in range(0, len(ours), 29):
        image, label = ours[index]
        assert image.shape == (3, 16, 16)
        assert label == by_name[Path(ours.reader.filename(index)).name]


def test_tar_files_hold_the_same_data(digits_root: Path, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "val.tar", "w") as tar:
        tar.add(digits_root / "val", "val")
    folder, packed = (image_folder(str(r), "val", transform=TRANSFORM) for r in (digits_root, tmp_path))
    assert len(folder) == len(packed)
    for index in (0, 100, 358):
        torch.testing.assert_close(folder[index], packed[index])
    loader = DataLoader(packed, batch_size=64, num_workers=2)
    assert sum(len(targets) for _, targets in loader) == 359


def test_classes_are_numbered_by_the_training_folder(digits_root: Path, tmp_path: Path) -> None:
    root = tmp_path / "data"
    shutil.copytree(digits_root / "train", root / "train")
    shutil.copytree(digits_root / "val" / "7", root / "val" / "7")
    part = image_folder(str(root), "val", transform=TRANSFORM, num_classes=10)
    assert {part[i][1] for i in range(len(part))} == {7}
    with pytest.raises(ValueError, match=r"has 10 classes, but num_classes is 9"):
        image_folder(str(root), "val", num_classes=9)
    (root / "val" / "eleven").mkdir()
    with pytest.raises(ValueError, match=r"train lacks: eleven"):
        image_folder(str(root), "val")


@pytest.mark.parametrize(("make", "words"), [
    (lambda p: None, "set data.root"),
    (lambda p: str(p / "absent"), "absent does not exist"),
    (lambda p: str(p), "holds neither val/ nor val.tar"),
    (lambda p: (p / "val" / "cat").mkdir(parents=True) or str(p), "holds no images"),
])  # fmt: skip
def test_missing_data_gives_one_sentence(make: Any, words: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=words) as caught:
        image_folder(make(tmp_path), "val")
    assert "\n" not in str(caught.value)


def test_unknown_transform_option_is_named(digits_root: Path) -> None:
    with pytest.raises(ValueError, match="color_jiter"):
        image_folder(str(digits_root), "val", transform={"color_jiter": 0.1})
    with pytest.raises(ValueError, match="raise or skip"):
        image_folder(str(digits_root), "val", on_error="ignore")


@pytest.fixture
def damaged(tmp_path: Path) -> Path:
    """Six images per part, two of which are broken in different ways, in the middle and at the end."""
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        folder = tmp_path / split / "thing"
        folder.mkdir(parents=True)
        for index in range(6):
            image = Image.fromarray(rng.integers(0, 256, (20, 20, 3), dtype=np.uint8))
            image.save(folder / f"{index}.png")
        whole = (folder / "2.png").read_bytes()
        (folder / "2.png").write_bytes(whole[: len(whole) // 2])
        (folder / "5.png").write_bytes(b"not an image")
    return tmp_path


@pytest.mark.parametrize("workers", [0, 2])
def test_broken_images_are_replaced_in_training(damaged: Path, workers: int, caplog: pytest.LogCaptureFixture) -> None:
    data = image_folder(str(damaged), "train", train=False, transform=TRANSFORM, on_error="skip")
    data.train = True
    for _ in range(2):
        batches = list(DataLoader(data, batch_size=3, num_workers=workers))
        assert [len(targets) for _, targets in batches] == [3, 3]
        images = torch.cat([images for images, _ in batches])
        assert torch.equal(images[2], images[3])
        assert torch.equal(images[5], images[0])
        assert torch.cat([targets for _, targets in batches]).tolist() == [0] * 6
    assert data.num_unreadable == 2
    if workers == 0:  # once per file; workers log in processes of their own
        assert sorted(Path(r.getMessage().split()[3]).name for r in caplog.records) == ["2.png", "5.png"]


def test_broken_images_are_left_out_of_evaluation(damaged: Path) -> None:
    data = image_folder(str(damaged), "val", transform=TRANSFORM, on_error="skip")
    images, targets = next(iter(DataLoader(data, batch_size=6)))
    assert targets.tolist() == [0, 0, UNREADABLE, 0, 0, UNREADABLE]
    assert images.shape == (6, 3, 16, 16)
    metric = Accuracy(topk=[1])
    scores = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 0.0], [1.0, 0.0], [1.0, 0.0]])
    samples = [{"scores": s, "target": int(t)} for s, t in zip(scores, targets, strict=True)]
    for half in (samples[:4], samples[4:]):
        metric.process(None, half)
    assert metric.evaluate(6) == {"accuracy/top1": 75.0, "accuracy/unreadable": 2.0}
    metric.process(None, [samples[2]])
    with pytest.raises(ValueError, match="Not one sample"):
        metric.evaluate(1)


def test_broken_images_raise_by_default(damaged: Path) -> None:
    data = image_folder(str(damaged), "train", train=True, transform=TRANSFORM)
    with pytest.raises(ValueError, match=r"2\.png cannot be read as an image"):
        data[2]
    for path in (damaged / "train" / "thing").glob("*.png"):
        path.write_bytes(b"")
    data = image_folder(str(damaged), "train", train=True, transform=TRANSFORM, on_error="skip")
    with pytest.raises(ValueError, match="in a row cannot be read"):
        data[0]


def test_accuracy_counts_the_k_best() -> None:
    metric = Accuracy(topk=[1, 2])
    scores = torch.tensor([[3.0, 2.0, 1.0], [3.0, 2.0, 1.0], [3.0, 2.0, 1.0], [1.0, 2.0, 3.0]])
    metric.process(None, [{"scores": s, "target": t} for s, t in zip(scores, (0, 1, 2, 2), strict=True)])
    assert metric.evaluate(4) == {"accuracy/top1": 50.0, "accuracy/top2": 75.0}


def test_augmentation_follows_the_global_generators(digits_root: Path) -> None:
    options = {"input_size": 32, "auto_augment": "rand-m9-mstd0.5-inc1", "re_prob": 0.5, "re_mode": "pixel"}
    data = digits(str(digits_root), "train", train=True, transform=options)

    def draw(seed: int) -> torch.Tensor:
        torch.manual_seed(seed), np.random.seed(seed), random.seed(seed)
        return data[5][0]

    assert torch.equal(draw(1), draw(1))
    assert not torch.equal(draw(1), draw(2))


def test_mixup_is_timms_and_wants_pairs() -> None:
    mix = Mixup(mixup_alpha=0.8, cutmix_alpha=0.0, label_smoothing=0.1, num_classes=4)
    images, targets = torch.randn(4, 3, 8, 8), torch.tensor([0, 1, 2, 3])
    np.random.seed(0)
    mixed, soft = mix(images.clone(), targets)
    np.random.seed(0)
    np.random.rand()  # whether to mix at all
    lam = np.random.beta(0.8, 0.8)
    torch.testing.assert_close(mixed, images * lam + images.flip(0) * (1 - lam), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(soft.sum(1), torch.ones(4))
    assert soft[0, 0] == pytest.approx(lam * 0.9 + 0.025, abs=1e-5)
    with pytest.raises(ValueError, match="must be even, not 3"):
        mix(images[:3], targets[:3])
