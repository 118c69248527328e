"""ScanObjectNN's h5 files and ModelNet40's text files and pickles, sound and damaged."""

from __future__ import annotations

import logging
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from frozenllm.core.training import UNREADABLE
from frozenllm.pointcloud.data import VARIANTS, PointClouds, modelnet40, scanobjectnn
from frozenllm.pointcloud.data.arrays import load_arrays
from frozenllm.pointcloud.data.clouds import holdout
from frozenllm.pointcloud.ops import farthest_point_sample
from frozenllm.pointcloud.toy import write_modelnet, write_scanobjectnn
from frozenllm.pointcloud.toy_shapes import SHAPES, make_clouds


@pytest.fixture(scope="module")
def scans(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_scanobjectnn(tmp_path_factory.mktemp("data") / "scans", train=32, test=16, points=64)


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_modelnet(tmp_path_factory.mktemp("data") / "shapes", train=16, test=8, points=96)


@pytest.mark.parametrize("variant", VARIANTS)
def test_scans_have_the_published_layout(scans: Path, variant: str) -> None:
    """As the official reader opens them: by name, ``data`` and ``label`` as arrays."""
    folder, name = {
        "objectbg": ("main_split", "objectdataset"),
        "objectonly": ("main_split_nobg", "objectdataset"),
        "hardest": ("main_split", "objectdataset_augmentedrot_scale75"),
    }[variant]
    for split, file_split, count in (("train", "training", 32), ("test", "test", 16)):
        with h5py.File(scans / folder / f"{file_split}_{name}.h5", "r") as file:
            points, labels = np.array(file["data"]).astype(np.float32), np.array(file["label"]).astype(int)
        data = scanobjectnn(str(scans), variant, split, num_classes=8)
        assert len(data) == count == len(points)
        sample = data[5]
        assert np.array_equal(sample["inputs"].numpy(), points[5])  # as they are stored
        assert sample["targets"] == labels[5]
        assert sample["index"] == 5
        assert sorted(np.unique(data.targets)) == list(range(8))


def test_variants_differ_and_seeds_repeat(tmp_path: Path, scans: Path) -> None:
    clouds = [scanobjectnn(str(scans), variant, "train")[0]["inputs"] for variant in VARIANTS]
    assert not torch.equal(clouds[0], clouds[1])
    assert not torch.equal(clouds[0], clouds[2])
    again = write_scanobjectnn(tmp_path / "again", train=32, test=16, points=64)
    assert torch.equal(scanobjectnn(str(again), "objectbg", "train")[0]["inputs"], clouds[0])
    with pytest.raises(ValueError, match="written with other settings"):
        write_scanobjectnn(again, train=8, test=16, points=64)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("")
    with pytest.raises(ValueError, match="something else than toy data"):
        write_scanobjectnn(tmp_path / "mine")


def test_no_shape_is_told_by_its_size() -> None:
    clouds, labels, _ = make_clouds(160, 64, seed=3)
    radius = np.linalg.norm(clouds - clouds.mean(axis=1, keepdims=True), axis=2).max(axis=1)
    means = [radius[labels == label].mean() for label in range(len(SHAPES))]
    assert max(means) - min(means) < 0.1


def test_text_files_and_pickle_are_one(shapes: Path, tmp_path: Path) -> None:
    """Text is thinned as `farthest_point_sample` says, scaled into the unit sphere, and kept as Point-BERT's pickle."""
    root = shutil.copytree(shapes, tmp_path / "shapes")
    read = modelnet40(str(root), "train", points=64, num_classes=8)
    names = (root / "modelnet40_train.txt").read_text().split()
    raw = np.loadtxt(root / names[3].rpartition("_")[0] / f"{names[3]}.txt", delimiter=",").astype(np.float32)[:, :3]
    kept = raw[farthest_point_sample(torch.from_numpy(raw)[None], 64)[0]]
    kept = kept - kept.mean(axis=0)
    kept = kept / np.sqrt((kept**2).sum(axis=1).max())
    np.testing.assert_allclose(read[3]["inputs"], kept, atol=1e-6)
    assert read[3]["targets"] == list(SHAPES).index(names[3].rpartition("_")[0])
    path = root / "modelnet40_train_64pts_fps.dat"
    with path.open("rb") as file:  # as the official reader does
        points, labels = pickle.load(file)
    assert points[3].shape == (64, 6)
    assert (labels[3].shape, labels[3].dtype) == ((1,), np.int32)
    shutil.rmtree(root / "sphere")
    again = modelnet40(str(root), "train", points=64, num_classes=8)
    assert all(torch.equal(a["inputs"], b["inputs"]) for a, b in zip(again, read, strict=True))
    direct = write_modelnet(tmp_path / "pickles", train=16, test=8, points=96, text=False)
    whole = modelnet40(str(direct), "test", points=96)
    np.testing.assert_allclose(
        whole[0]["inputs"], modelnet40(str(shapes), "test", points=96, cache=False)[0]["inputs"], atol=1e-5
    )


def test_a_folder_that_cannot_be_written_is_read_anyway(
    shapes: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: Any) -> None:
        raise PermissionError(13, "Permission denied")

    root = shutil.copytree(shapes, tmp_path / "shapes")
    monkeypatch.setattr(os, "replace", refuse)
    assert len(modelnet40(str(root), "train", points=80)) == 16
    assert "cannot be kept (Permission denied)" in caplog.text
    assert not list(root.glob("*.dat*")) + list(root.glob(".*dat*"))


@settings(max_examples=40, deadline=None)
@given(counts=st.lists(st.integers(0, 9), min_size=1, max_size=5), share=st.floats(0.05, 0.9), seed=st.integers(0, 3))
def test_parts_share_out_every_class(counts: list[int], share: float, seed: int) -> None:
    labels = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(counts)), counts))
    fit, out = (holdout(labels, part, share, seed) for part in ("fit", "heldout"))
    assert sorted([*fit, *out]) == list(range(len(labels)))
    for label, count in enumerate(counts):
        assert (labels[out] == label).sum() == (min(round(share * count), count - 1) if count else 0)


def test_parts_of_a_file(scans: Path) -> None:
    options = {"num_classes": 8, "share": 0.25, "split_seed": 1}
    parts = {p: scanobjectnn(str(scans), "hardest", "train", part=p, **options) for p in ("all", "fit", "heldout")}
    assert {p: len(d) for p, d in parts.items()} == {"all": 32, "fit": 24, "heldout": 8}
    assert sorted(parts["heldout"].targets) == list(range(8))
    with pytest.raises(ValueError, match="leaves the part heldout empty"):
        scanobjectnn(str(scans), "hardest", "train", part="heldout", share=0.01)
    with pytest.raises(ValueError, match="part must be one of all, fit, heldout, not 'val'"):
        scanobjectnn(str(scans), "hardest", "train", part="val")
    with pytest.raises(ValueError, match="between 0 and 1, not 1"):
        scanobjectnn(str(scans), "hardest", "train", part="fit", share=1.0)


def test_clouds_that_cannot_be_used(caplog: pytest.LogCaptureFixture) -> None:
    clouds, labels, _ = make_clouds(8, 32)
    clouds[2, 5, 1], clouds[4] = np.nan, 0.5
    where = {"where": "f.h5", "num_classes": 8, "normalize": True}
    strict = PointClouds(clouds, labels, **where)
    with pytest.raises(ValueError, match=r"f\.h5: cloud 2 has coordinates that are not finite; repair or remove it"):
        strict[2]
    with pytest.raises(ValueError, match="all points of cloud 4 are one"):
        strict[4]
    train = PointClouds(clouds, labels, train=True, on_error="skip", **where)
    assert train[2]["targets"] == labels[3]
    assert train.num_unreadable == 1
    test = PointClouds(clouds, labels, on_error="skip", **where)
    with caplog.at_level(logging.WARNING):
        stand_in = test[4]
    assert stand_in["targets"] == UNREADABLE
    assert stand_in["inputs"].shape == (32, 3)
    assert "cloud 4" in caplog.text


def write_h5(path: Path, **arrays: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        for key, value in arrays.items():
            file[key] = value


CLOUDS, LABELS = np.zeros((3, 9, 3), np.float32), np.array([0, 1, 14])


@pytest.mark.parametrize(("arrays", "words"), [
    ({"data": CLOUDS}, "has no key label; it has data"),
    ({"points": CLOUDS}, "has no key data and no label; it has points"),
    ({"da\nta": CLOUDS}, r"it has 'da\\nta'\.$"),
    ({"data": CLOUDS[..., :2], "label": LABELS}, r"data must be numbers of shape \(clouds, points, 3\), not float32"),
    ({"data": CLOUDS[0], "label": LABELS}, r"not float32 \(9, 3\)"),
    ({"data": CLOUDS, "label": LABELS[:2]}, "holds 3 clouds, but 2 classes"),
    ({"data": CLOUDS, "label": LABELS.astype(float)}, "label must be whole numbers"),
    ({"data": CLOUDS, "label": np.array([0, 15, 1])}, "cloud 1 is of class 15, but classes go from 0 to 14"),
    ({"data": CLOUDS, "label": np.array([0, 1, -1])}, "cloud 2 is of class -1"),
    ({"data": CLOUDS[:, :0], "label": LABELS}, "its clouds have no points"),
    ({"data": CLOUDS[:0], "label": LABELS[:0]}, "holds no clouds"),
    ({"data": np.full((3, 9, 3), b"x"), "label": LABELS}, "data must be numbers"),
])  # fmt: skip
def test_odd_h5_files_give_one_sentence(tmp_path: Path, arrays: dict[str, Any], words: str) -> None:
    path = tmp_path / "main_split" / "training_objectdataset.h5"
    write_h5(path, **arrays)
    with pytest.raises(ValueError, match=words) as caught:
        scanobjectnn(str(tmp_path), "objectbg", "train")
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_damaged_and_missing_h5_files_give_one_sentence(tmp_path: Path) -> None:
    path = tmp_path / "main_split" / "test_objectdataset.h5"
    with pytest.raises(ValueError, match="does not exist: ScanObjectNN has main_split/"):
        scanobjectnn(str(tmp_path), "objectbg", "test")
    write_h5(path, data=CLOUDS, label=LABELS)
    content = path.read_bytes()
    for damaged in (content[: len(content) // 2], b"not an h5 file", b""):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match="is damaged or not an h5 file") as caught:
            scanobjectnn(str(tmp_path), "objectbg", "test")
        assert "\n" not in str(caught.value)
    for wrong, words in (
        ({"root": None}, "data.root=/path/to/ScanObjectNN"),
        ({"variant": "easy"}, "data.variant must be one of objectbg, objectonly, hardest, not 'easy'"),
        ({"split": "val"}, "is train or test, not 'val'"),
    ):
        with pytest.raises(ValueError, match=words):
            scanobjectnn(**{"root": str(tmp_path), "variant": "objectbg", "split": "test", **wrong})


class _Danger:
    def __reduce__(self) -> tuple[Any, ...]:
        return (os.system, ("echo this must never run",))


@settings(max_examples=30, deadline=None)
@given(
    protocol=st.integers(0, pickle.HIGHEST_PROTOCOL),
    dtype=st.sampled_from(["f4", "f8", "i4", "i8"]),
    size=st.integers(0, 5),
)
def test_arrays_come_back_from_any_protocol(tmp_path_factory: Any, protocol: int, dtype: str, size: int) -> None:
    content = [[np.arange(3 * size, dtype=dtype).reshape(size, 3).T, np.float32(2.5)], {"a": (1, "b", None)}]
    path = tmp_path_factory.mktemp("p") / "x.dat"
    path.write_bytes(pickle.dumps(content, protocol=protocol))
    found = load_arrays(path)
    np.testing.assert_array_equal(found[0][0], content[0][0])
    assert found[0][0].dtype == content[0][0].dtype
    assert (found[0][1], found[1]) == (2.5, {"a": (1, "b", None)})


def good() -> list[Any]:
    return [[np.zeros((9, 6), np.float32)] * 2, [np.array([1], np.int32)] * 2]


def change(place: tuple[int, ...], value: Any) -> Callable[[], list[Any]]:
    def make() -> list[Any]:
        content = [list(part) for part in good()]
        content[place[0]][place[1]] = value
        return content

    return make


@pytest.mark.parametrize(("make", "words"), [
    (lambda: _Danger(), r"refused, it holds \w+\.system"),
    (lambda: [good()[0], [_Danger()] * 2], "it could run code"),
    (lambda: [np.array([_Danger()], dtype=object)], "it could run code"),
    (lambda: good()[:1], "must hold two lists"),
    (lambda: "text", "must hold two lists"),
    (lambda: [good()[0], good()[1][:1]], "holds 2 clouds, but 1 classes"),
    (change((0, 1), np.zeros((9, 4), np.float32)), r"cloud 1 must be numbers of shape \(points, 3 or 6\)"),
    (change((0, 0), np.array([[None] * 3])), "cloud 0 must be numbers"),
    (change((0, 1), np.zeros((7, 6), np.float32)), r"clouds must all be of one shape"),
    (change((1, 1), np.array([0.5])), "class of cloud 1 must be one whole number"),
    (change((1, 0), np.array([40])), "cloud 0 is of class 40, but classes go from 0 to 39"),
])  # fmt: skip
def test_odd_pickles_give_one_sentence(
    tmp_path: Path, make: Callable[[], Any], words: str, capfd: pytest.CaptureFixture
) -> None:
    path = tmp_path / "modelnet40_train_9pts_fps.dat"
    path.write_bytes(pickle.dumps(make()))
    with pytest.raises(ValueError, match=words) as caught:
        modelnet40(str(tmp_path), "train", points=9)
    assert str(path) in str(caught.value)
    assert "never run" not in capfd.readouterr().out


def test_damaged_pickles_and_text_give_one_sentence(tmp_path: Path, shapes: Path) -> None:
    path = tmp_path / "modelnet40_train_9pts_fps.dat"
    whole = pickle.dumps(good())
    for damaged in (whole[:-40], b"", b"hello", whole[:3]):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match="is damaged or not a pickle") as caught:
            modelnet40(str(tmp_path), "train", points=9)
        assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match=r"give its folder with data\.root"):
        modelnet40(None, "train")
    with pytest.raises(ValueError, match=r"shape_names\.txt cannot be read"):
        modelnet40(str(tmp_path), "test")
    root = shutil.copytree(shapes, tmp_path / "shapes")
    name = (root / "modelnet40_test.txt").read_text().split()[0]
    text = root / name.rpartition("_")[0] / f"{name}.txt"
    lines = text.read_text().splitlines()
    for odd, words in (
        (["1,2,x"] * 99, "cannot be read as lines of x,y,z,nx,ny,nz"),
        (["1,2,3,4"] * 99, "has 4 numbers a line, not 3 or 6"),
        (lines[:20], "has 20 points, fewer than the 90"),
        (["nan,0,0,0,0,0", *lines[1:]], "not finite"),
    ):
        text.write_text("\n".join(odd))
        with pytest.raises(ValueError, match=words) as caught:
            modelnet40(str(root), "test", points=90)
        assert text.name in str(caught.value)
    text.unlink()
    with pytest.raises(ValueError, match="cannot be read"):
        modelnet40(str(root), "test", points=90)
    (root / "modelnet40_test.txt").write_text("spaceship_0001\n")
    with pytest.raises(ValueError, match="spaceship_0001 is of no class"):
        modelnet40(str(root), "test", points=90)
