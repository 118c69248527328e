"""ImageNet-S in its real layout: ids, crops, rules for tokens, and what happens to broken masks."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from frozenllm.core.training import UNREADABLE, BrokenSample
from frozenllm.vision2d.imagenet_s import IGNORED, class_ids, imagenet_s, ink, mask_of_ids
from frozenllm.vision2d.masks import TokenRule
from frozenllm.vision2d.toy_imagenet_s import SIZE, write_toy_imagenet_s

WHOLE = {"input_size": SIZE, "crop_pct": 1.0}


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six digits of each class, one of which is for validation."""
    return write_toy_imagenet_s(tmp_path_factory.mktemp("toy") / "ImageNetS10", views=2, limit=6)


def test_ids_are_red_and_256_green(tmp_path):
    mask = Image.new("RGB", (3, 1))
    mask.putdata([(7, 0, 0), (150, 3, 99), (232, 3, 0)])
    mask.save(tmp_path / "mask.png")
    ids = class_ids(Image.open(tmp_path / "mask.png"))
    assert ids.tolist() == [[7, 918, IGNORED]]
    assert class_ids(mask_of_ids(ids.numpy())).equal(ids)


def test_the_toy_has_the_real_layout(toy):
    assert sorted(p.name for p in toy.iterdir()) == ["toy.json", "train", "validation", "validation-segmentation"]
    images = sorted((toy / "validation").glob("*/*.JPEG"))
    assert len(images) == 10
    assert len(list((toy / "train").glob("*/*.JPEG"))) == 10 * 5 * 2
    for number, path in enumerate(images):
        mask = Image.open(toy / "validation-segmentation" / path.parent.name / f"{path.stem}.png")
        assert mask.mode == "RGB"
        assert mask.size == Image.open(path).size == (SIZE, SIZE)
        assert class_ids(mask).unique().tolist() == [0, number + 1, IGNORED]
    written = {p.stem.partition("_")[0] for p in (toy / "train").glob("*/*")}
    assert not written & {p.stem.partition("_")[0] for p in images}


def test_the_object_is_where_the_mask_says(toy):
    data = imagenet_s(toy, WHOLE)
    for index in range(len(data)):
        ids = data[index]["mask"].numpy()
        grey = np.asarray(data.picture(index).convert("L"), dtype=float)
        assert grey[(ids != 0) & (ids != IGNORED)].mean() > grey[ids == 0].mean() + 60
        assert data[index]["targets"] == index


def test_image_and_mask_take_the_same_crop(tmp_path):
    # Red left of column 60, green from row 40: seen in the image, and written as ids 5 and 300 in the mask.
    pixels, ids = np.zeros((90, 130, 3), dtype=np.uint8), np.zeros((90, 130), dtype=np.int64)
    pixels[:, :60, 0], ids[:, :60] = 255, 5
    pixels[40:, :, 1], ids[40:] = 255, 300
    for folder, picture in (("validation", Image.fromarray(pixels)), ("validation-segmentation", mask_of_ids(ids))):
        (tmp_path / folder / "n01440764").mkdir(parents=True)
        picture.save(tmp_path / folder / "n01440764" / ("a.JPEG" if folder == "validation" else "a.png"), quality=100)
    data = imagenet_s(tmp_path, {"input_size": 64, "crop_pct": 0.875, "interpolation": "bicubic"})
    data.mask.classes = None  # ids of a larger data set
    shown, mask = np.asarray(data.picture(0), dtype=int), data[0]["mask"].numpy()
    assert mask.shape == (64, 64)
    assert data[0]["inputs"].shape == (3, 64, 64)
    assert (((shown[..., 1] > 127) == (mask == 300)).mean()) > 0.97
    assert (((shown[..., 0] > 127) & (shown[..., 1] < 127)) == (mask == 5)).mean() > 0.97


@settings(max_examples=50, deadline=None)
@given(
    rule=st.sampled_from(["any", "majority", "centre", "fraction>=0.25", "fraction>=1"]),
    rows=st.integers(1, 3),
    columns=st.integers(1, 3),
    side=st.integers(1, 4),
    seed=st.integers(0, 999),
)
def test_rules_equal_counting(rule, rows, columns, side, seed):
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, (1, rows * side, columns * side), generator=generator)  # 2 = ignored
    relevant, counted = TokenRule(rule).tokens(ids == 1, ids == 2, (rows, columns))
    for row in range(rows):
        for column in range(columns):
            patch = ids[0, row * side : (row + 1) * side, column * side : (column + 1) * side]
            token = row * columns + column
            hits, known = int((patch == 1).sum()), int((patch != 2).sum())
            counts = 2 * known >= side * side
            share = hits / known if known else 0.0
            expected = {"any": hits > 0, "majority": share > 0.5, "fraction>=0.25": share >= 0.25}.get(rule, share == 1)
            if rule == "centre":
                middle = patch[side // 2, side // 2]
                counts, expected = bool(middle != 2), bool(middle == 1)
            assert counted[0, token] == counts
            assert relevant[0, token] == (expected and counts)


@pytest.mark.parametrize("rule", ["most", "fraction>=0", "fraction>=1.5", "fraction>=x", "fraction", ""])
def test_unknown_rules_are_named(rule):
    with pytest.raises(ValueError, match="rule for tokens must be any, majority"):
        TokenRule(rule)


def _break(root: Path, how: str) -> Path:
    path = sorted((root / "validation-segmentation").glob("*/*.png"))[3]
    if how == "missing":
        path.unlink()
    elif how == "damaged":
        path.write_bytes(path.read_bytes()[:60])
    elif how == "another size":
        Image.new("RGB", (5, 5)).save(path)
    else:
        mask_of_ids(np.full((SIZE, SIZE), 77)).save(path)
    return path


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("missing", "has no mask"),
        ("damaged", "cannot be read as a mask"),
        ("another size", "another image's mask"),
        ("another class", "holds class 77, but there are 10 classes"),
    ],
)
def test_broken_masks_are_named_or_counted(tmp_path, caplog, how, message):
    root = write_toy_imagenet_s(tmp_path / "toy", views=1, limit=2)
    path = _break(root, how)
    data = imagenet_s(root, WHOLE)
    with pytest.raises(BrokenSample, match=message) as error:
        [data[i] for i in range(len(data))]
    assert str(path) in str(error.value)
    data = imagenet_s(root, WHOLE, on_error="skip")
    with caplog.at_level(logging.WARNING):
        items = [data[i] for i in range(len(data))]
    assert data.num_unreadable == 1
    assert message in caplog.text
    assert [i for i, item in enumerate(items) if item["targets"] == UNREADABLE] == [3]
    assert (items[3]["mask"] == IGNORED).all()
    assert items[3]["inputs"].shape == items[0]["inputs"].shape


def test_folders_that_are_not_imagenet_s_are_refused(tmp_path, toy):
    with pytest.raises(ValueError, match="holds no validation/"):
        imagenet_s(tmp_path)
    (tmp_path / "validation" / "n1").mkdir(parents=True)
    with pytest.raises(ValueError, match="holds no validation-segmentation/"):
        imagenet_s(tmp_path)
    (tmp_path / "validation-segmentation" / "n2").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"lacks classes that .* has: n1"):
        imagenet_s(tmp_path)


def test_ink_is_what_is_bright():
    picture = Image.fromarray(np.array([[0, 100, 128, 255]], dtype=np.uint8)).convert("RGB")
    assert class_ids(ink(Path("x"), picture)).tolist() == [[0, 0, 1, 1]]
