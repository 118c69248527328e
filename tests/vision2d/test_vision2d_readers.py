"""Folders, tar files, WebDataset shards and Hugging Face data sets: the same images, order and errors."""

from __future__ import annotations

import importlib.util
import io
import json
import logging
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from frozenllm.core.training import (
    UNREADABLE,
    CrossEntropy,  # noqa: F401 (the engine's registry, before the data sets register)
)
from frozenllm.core.training.data import SeededDataset
from frozenllm.vision2d.archives import ShardReader, TarReader
from frozenllm.vision2d.data import image_folder
from frozenllm.vision2d.sources import open_reader

CLASSES = ("n01440764", "n01443537", "n02007558")
needs_webdataset = pytest.mark.skipif(importlib.util.find_spec("webdataset") is None, reason="webdataset is missing")
needs_datasets = pytest.mark.skipif(importlib.util.find_spec("datasets") is None, reason="datasets is missing")


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")


def png(seed: int, size: int = 12) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def write_folder(root: Path, split: str, per_class: int = 3, classes: tuple[str, ...] = CLASSES) -> Path:
    for c, name in enumerate(classes):
        (root / split / name).mkdir(parents=True)
        for i in range(per_class):
            (root / split / name / f"{name}_{10 * i}.png").write_bytes(png(100 * c + i))
    return root


def add(archive: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    archive.addfile(info, io.BytesIO(data))


def pack(folder: Path, to: Path, inside: bool = False) -> None:
    """`tar -cf train.tar train`, or `tar -C train -cf train.tar .`"""
    with tarfile.open(to, "w") as archive:
        archive.add(folder, arcname="." if inside else folder.name)


def items(dataset: Any) -> list[tuple[bytes, int]]:
    return [(np.asarray(image).tobytes(), target) for image, target in (dataset[i] for i in range(len(dataset)))]


@pytest.mark.parametrize("inside", [False, True])
def test_a_tar_is_the_folder_it_was_packed_from(tmp_path: Path, inside: bool) -> None:
    folder = write_folder(tmp_path / "folder", "train", per_class=12)
    write_folder(folder, "val", classes=CLASSES[1:])
    tarred = tmp_path / "tarred"
    tarred.mkdir()
    for split in ("train", "val"):
        pack(folder / split, tarred / f"{split}.tar", inside)
    for split in ("train", "val"):
        expected, found = image_folder(str(folder), split), image_folder(str(tarred), split)
        # Nothing but the decoded image: a transform of None is timm's default, so compare the readers' bytes as well.
        assert [t for _, t in expected.reader.samples] == found.reader.targets.tolist()
        for i in range(len(expected)):
            assert expected.reader[i][0].read() == found.reader[i][0].read()
            assert torch.equal(expected[i][0], found[i][0])
    assert set(found.reader.targets.tolist()) == {1, 2}, "val lacks the first class, and keeps the others' numbers"


def test_classes_are_in_plain_sorted_order_everywhere(tmp_path: Path) -> None:
    """As in torchvision's ImageFolder and the official tar reader; timm alone would sort class_2 before class_10."""
    folder = write_folder(tmp_path, "train", 1, ("class_10", "class_2"))
    pack(folder / "train", tmp_path / "val.tar")
    for split in ("train", "val"):
        assert image_folder(str(folder), split).reader.class_to_idx == {"class_10": 0, "class_2": 1}


def test_members_of_another_form_are_left_out_and_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "train.tar"
    with tarfile.open(path, "w") as archive:
        add(archive, f"train/{CLASSES[0]}/a.png", png(0))
        add(archive, f"./train/{CLASSES[1]}/b.png", png(1))
        add(archive, "README.png", png(2))
        add(archive, f"train/deep/{CLASSES[1]}/c.png", png(3))
        add(archive, f"train/{CLASSES[1]}/notes.txt", b"text")
        add(archive, f"train/{CLASSES[1]}/._b.png", png(4))
    with caplog.at_level(logging.INFO):
        reader = TarReader(path)
    assert reader.filenames() == [f"./train/{CLASSES[1]}/b.png", f"train/{CLASSES[0]}/a.png"]
    assert reader.targets.tolist() == [1, 0]
    assert "left out 4 files" in caplog.text


def test_workers_read_one_tar_at_the_same_time(tmp_path: Path) -> None:
    """A file opened before the fork would be shared, its position too."""
    folder = write_folder(tmp_path, "train", per_class=20)
    pack(folder / "train", tmp_path / "val.tar")
    dataset = image_folder(str(folder), "val", transform={"input_size": 12, "crop_pct": 1.0})
    alone = torch.stack([dataset[i][0] for i in range(len(dataset))])
    loaded = torch.cat([images for images, _ in DataLoader(dataset, batch_size=4, num_workers=2)])
    assert torch.equal(alone, loaded)


def test_local_readers_mistakes(tmp_path: Path) -> None:
    folder = write_folder(tmp_path, "train")
    write_folder(folder, "val", classes=(CLASSES[0], "n99999999"))
    cases: list[tuple[Any, str, dict[str, Any], str]] = [
        (None, "train", {}, "No data folder is given"),
        (tmp_path / "nowhere", "train", {}, "does not exist"),
        (folder, "test", {}, r"holds neither test/ nor test.tar"),
        (folder, "val", {}, "train lacks: n99999999"),
        (folder, "val", {"num_classes": 2}, "train lacks: n99999999"),
        (folder, "train", {"num_classes": 2}, "has 3 classes, but num_classes is 2"),
        (folder, "train", {"source": "nonsense"}, "source 'nonsense' is unknown"),
        (folder, "train", {"source": "tfds/imagenet"}, "only stream"),
        (folder, "train", {"target_key": "label"}, "target_key is for data with a source"),
    ]
    for root, split, options, words in cases:
        with pytest.raises(ValueError, match=words) as caught:
            image_folder(root if root is None else str(root), split, **options)
        assert "\n" not in str(caught.value)
    for name in CLASSES:
        for path in (folder / "train" / name).iterdir():
            path.unlink()
    with pytest.raises(ValueError, match="holds no images in subfolders"):
        image_folder(str(folder), "train")


def test_damaged_tars(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "data", "train")
    whole = tmp_path / "whole.tar"
    pack(folder / "train", whole)
    content = whole.read_bytes()
    cut = tmp_path / "cut.tar"
    cut.write_bytes(content[: TarReader(whole)._places[-1, 1] + 5])
    packed = tmp_path / "packed.tar"
    with tarfile.open(packed, "w:gz") as archive:
        archive.add(folder / "train", arcname="train")
    empty = tmp_path / "empty.tar"
    with tarfile.open(empty, "w") as archive:
        add(archive, "a.png", png(0))
    long = tmp_path / "long.tar"
    header, record = tarfile.TarInfo("pax"), b"99999999999999999999 a=b\n"  # a length beyond what an index can be
    header.type, header.size = tarfile.XHDTYPE, len(record)
    long.write_bytes(header.tobuf() + record.ljust(512, b"\0") + content)
    for path, words in [
        (long, "long.tar cannot be read as an uncompressed tar file: it is damaged"),
        (cut, "cut.tar cannot be read as an uncompressed tar file: it is cut short"),
        (packed, "packed.tar cannot be read as an uncompressed tar file: it is damaged, or compressed"),
        (empty, "empty.tar holds no images named <folder>/<class>/<file>"),
        (tmp_path / "none.tar", "There is no tar file at"),
    ]:
        with pytest.raises(ValueError, match=words):
            TarReader(path)
    reader = TarReader(whole)
    whole.write_bytes(content[: len(content) // 3])  # shortened after it was indexed
    with pytest.raises(OSError, match="the archive ends after"):
        reader[len(reader) - 1]


def write_shards(root: Path, broken: bool = False, info: bool = True) -> Path:
    root.mkdir()
    lengths, number = [], 0
    for shard in range(2):
        with tarfile.open(root / f"toy-train-{shard}.tar", "w") as archive:
            for _ in range(3 - shard):
                key = f"s{number:04d}"
                data = b"not an image" if broken and number == 1 else png(number)
                add(archive, f"{key}.png", data)
                add(archive, f"{key}.cls", str(number % 3).encode())
                add(archive, f"{key}.json", json.dumps({"fine": 5 - number, "nested": {"label": 1}}).encode())
                number += 1
        lengths.append(3 - shard)
    if info:
        split = {"name": "train", "num_samples": number, "shard_lengths": lengths}
        split["filenames"] = [f"toy-train-{shard}.tar" for shard in range(2)]
        (root / "_info.json").write_text(json.dumps({"splits": {"train": split}}))
    return root


@needs_webdataset
def test_webdataset_shards(tmp_path: Path) -> None:
    root = write_shards(tmp_path / "shards")
    dataset = image_folder(str(root), "train", source="wds/")
    assert dataset.reader.targets.tolist() == [0, 1, 2, 0, 1]
    assert [dataset.reader[i][0].read() for i in range(5)] == [png(i) for i in range(5)]
    pattern = open_reader(str(root), "toy-train-{0..1}.tar", source="wds/toy")
    assert pattern.filenames(absolute=True) == dataset.reader.filenames(absolute=True)
    assert pattern.filename(4, absolute=True).endswith("toy-train-1.tar:s0004.png")
    other = open_reader(str(root), "train", source="WDS/", target_key="nested/label")
    assert other.targets.tolist() == [1] * 5
    assert open_reader(str(root), "toy-train-1.tar", source="wds/").targets.tolist() == [0, 1]


@needs_webdataset
def test_webdataset_and_timms_own_reader_agree(tmp_path: Path) -> None:
    from timm.data import create_dataset

    root = write_shards(tmp_path / "shards")
    theirs = [(np.asarray(image), target) for image, target in create_dataset("wds/", str(root), split="train")]
    ours = open_reader(str(root), "train", source="wds/")
    assert len(theirs) == len(ours)
    for (image, target), index in zip(theirs, range(5), strict=True):
        file, label = ours[index]
        assert label == target
        assert np.array_equal(np.asarray(Image.open(file)), image)


@needs_webdataset
def test_webdataset_mistakes(tmp_path: Path) -> None:
    root = write_shards(tmp_path / "shards")
    for split, options, words in [
        ("val", {}, "has no shards for the part 'val'"),
        ("toy-train-7.tar", {}, "There is no tar file at .*toy-train-7.tar"),
        ("train", {"num_classes": 2}, "has 3 classes, but num_classes is 2"),
        ("train", {"target_key": "coarse"}, "sample s0000 has no class: a number coarse in its .json is missing"),
        ("train", {"input_key": "tiff"}, r"sample s0000 has no image \(tiff\)"),
        ("train", {"target_key": "fine"}, None),
        ("https://host/toy-{0..1}.tar", {}, "is not a local file"),
    ]:
        if words is None:
            assert open_reader(str(root), split, source="wds/", **options).targets.tolist() == [5, 4, 3, 2, 1]
            continue
        with pytest.raises(ValueError, match=words):
            open_reader(str(root), split, source="wds/", **options)
    info = json.loads((root / "_info.json").read_text())
    info["splits"]["train"]["num_samples"] = 6
    (root / "_info.json").write_text(json.dumps(info))
    with pytest.raises(ValueError, match="hold 5 labelled samples instead of 6"):
        open_reader(str(root), "train", source="wds/")
    for missing in (None, str(tmp_path / "no")):
        with pytest.raises(ValueError, match="the folder that holds the shards"):
            open_reader(missing, "train", source="wds/")


def test_samples_without_a_label_are_left_out(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as archive:
        for number, label in enumerate((3, -1, 2)):
            add(archive, f"d/s{number}.jpg", png(number))
            add(archive, f"d/s{number}.cls", str(label).encode())
    assert ShardReader([path]).targets.tolist() == [3, 2]


def write_hub(root: Path, images: list[bytes | None], labels: list[int]) -> Path:
    import datasets

    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "cow", "dog"])})
    rows = {"image": [data and {"bytes": data, "path": f"{i}.png"} for i, data in enumerate(images)], "label": labels}
    root.mkdir()
    datasets.Dataset.from_dict(rows, features=features).to_parquet(root / "train-00000-of-00001.parquet")
    return root


@needs_datasets
def test_hugging_face_datasets(tmp_path: Path) -> None:
    root = write_hub(tmp_path / "hub", [png(i) for i in range(5)], [0, 1, 2, 0, 1])
    dataset = image_folder(str(tmp_path / "cache"), "train", source=f"hfds/{root}", num_classes=3)
    assert dataset.reader.targets.tolist() == [0, 1, 2, 0, 1]
    assert [dataset[i][1] for i in range(5)] == [0, 1, 2, 0, 1]
    assert [dataset.reader[i][0].read() for i in range(5)] == [png(i) for i in range(5)]
    assert dataset.reader.class_to_idx == {"cat": 0, "cow": 1, "dog": 2}
    for options, words in [
        ({"num_classes": 2}, "num_classes is 2"),
        ({"target_key": "kind"}, "cannot be read"),
    ]:
        with pytest.raises(ValueError, match=words):
            image_folder(str(tmp_path / "cache"), "train", source=f"hfds/{root}", **options)
    with pytest.raises(ValueError, match=r"hfds/.* \(validation\) cannot be read: .*validation"):
        image_folder(str(tmp_path / "cache"), "validation", source=f"hfds/{root}")
    with pytest.raises(ValueError, match=r"hfds/no/such \(train\) cannot be read"):
        image_folder(str(tmp_path / "cache"), "train", source="hfds/no/such")
    unlabelled = write_hub(tmp_path / "test", [png(0), png(1)], [0, -1])
    with pytest.raises(ValueError, match="images without labels"):
        image_folder(str(tmp_path / "cache"), "train", source=f"hfds/{unlabelled}")


@pytest.mark.parametrize(("source", "library"), [("hfds/a/b", "datasets"), ("wds/", "webdataset")])
def test_a_missing_library_is_one_sentence(monkeypatch: pytest.MonkeyPatch, source: str, library: str) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ImportError, match=rf"needs {library}, not installed here: pip install 'frozenllm-vision2d\["):
        open_reader(".", "train", source=source)


def sources(root: Path) -> Iterator[tuple[str, dict[str, Any], str]]:
    """The five images of the shards, the second one broken, in every form; and what the broken one is called."""
    data = [b"not an image" if i == 1 else png(i) for i in range(5)]
    labels = [0, 1, 2, 0, 1]
    folder = root / "folder"
    for i, (content, label) in enumerate(zip(data, labels, strict=True)):
        (folder / "train" / CLASSES[label]).mkdir(parents=True, exist_ok=True)
        (folder / "train" / CLASSES[label] / f"{i}.png").write_bytes(content)
    yield "folder", {"root": str(folder)}, f"{CLASSES[1]}/1.png"
    tarred = root / "tarred"
    tarred.mkdir()
    pack(folder / "train", tarred / "train.tar")
    yield "tar", {"root": str(tarred)}, f"train.tar:train/{CLASSES[1]}/1.png"
    if importlib.util.find_spec("webdataset"):
        shards = write_shards(root / "shards", broken=True)
        yield "wds", {"root": str(shards), "source": "wds/"}, "toy-train-0.tar:s0001.png"
    if importlib.util.find_spec("datasets"):
        hub = write_hub(root / "hub", data, labels)
        yield "hfds", {"root": str(root / "cache"), "source": f"hfds/{hub}"}, "[1] (1.png)"


def test_broken_images_by_policy_in_every_form(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for kind, options, name in sources(tmp_path):
        with pytest.raises(ValueError, match="on_error must be"):
            image_folder(**options, split="train", on_error="ignore")
        strict = image_folder(**options, split="train")
        broken = next(i for i in range(5) if strict.reader[i][0].read() == b"not an image")
        with pytest.raises(ValueError, match="cannot be read as an image") as caught:
            strict[broken]
        assert name in str(caught.value), kind
        caplog.clear()
        held_out = image_folder(**options, split="train", on_error="skip")
        targets = [held_out[i][1] for i in range(5)]
        assert targets[broken] == UNREADABLE
        assert targets.count(UNREADABLE) == 1
        held_out[broken]
        assert held_out.num_unreadable == 1
        assert caplog.text.count("Skipped") == 1
        assert name in caplog.text
        train = image_folder(**options, split="train", on_error="skip", train=True)
        torch.manual_seed(0)
        replaced = train[broken][1]
        assert replaced == train.reader[(broken + 1) % 5][1]
        assert train.num_unreadable == 1


def test_an_image_that_is_null_is_a_broken_one(tmp_path: Path) -> None:
    pytest.importorskip("datasets")
    root = write_hub(tmp_path / "hub", [png(0), None], [0, 1])
    dataset = image_folder(str(tmp_path / "cache"), "train", source=f"hfds/{root}", on_error="skip")
    assert [dataset[0][1], dataset[1][1]] == [0, UNREADABLE]


def test_augmentation_depends_on_seed_epoch_and_sample_in_every_form(tmp_path: Path) -> None:
    """The same image at the same index is augmented alike, whatever it was read from and whatever was read before."""
    transform = {"input_size": 8, "scale": [0.2, 1.0], "color_jitter": 0.4}
    drawn: dict[str, torch.Tensor] = {}
    for kind, options, _ in sources(tmp_path):
        dataset = image_folder(**options, split="train", train=True, transform=transform, on_error="skip")
        seeded = SeededDataset(dataset, seed=3, role="train")
        first = seeded[1, 0, 0]["inputs"]  # image 0 is the first one in every form
        seeded[0, 4, 0]
        assert torch.equal(first, seeded[1, 0, 0]["inputs"])
        assert not torch.equal(first, seeded[2, 0, 0]["inputs"])
        drawn[kind] = first
    assert len(drawn) >= 2
    for kind, first in drawn.items():
        assert torch.equal(first, drawn["folder"]), kind
