"""Toy videos: formats, and that nothing but the order of the frames tells the class."""

from __future__ import annotations

import json
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from frozenllm.video import toy
from frozenllm.video.toy import CLASSES, TEMPLATES, TRUTH, moving_digit, write_toy_frames, write_toy_videos

SMALL = {"size": 16, "num_frames": 6, "train_videos": 8, "val_videos": 4}
DIGIT = np.outer(np.arange(8), np.arange(8)[::-1]) * 5.0  # no symmetry, no two columns alike


def video(label: int, seed: int, frames: int = 6, size: int = 16) -> np.ndarray:
    return moving_digit(DIGIT, label, frames, size, np.random.default_rng(seed)).frames


def test_one_class_is_another_played_backwards() -> None:
    # Whatever is drawn for a video gives its twin of the opposite class too, in the other order.
    for seed in range(10):
        for there, back in ((0, 1), (2, 3)):
            np.testing.assert_array_equal(video(there, seed), video(back, seed)[::-1])


def test_a_set_of_frames_is_equally_likely_in_every_class() -> None:
    """With four frames all sets can be counted: pairings of positions and sizes, up to the choice of the offsets."""

    def kinds(label: int) -> Counter[frozenset[tuple[int, int]]]:
        found: Counter[frozenset[tuple[int, int]]] = Counter()
        for seed in range(600):
            found[frozenset(states(video(label, seed, 4, 32)))] += 1
        return found

    def states(frames: np.ndarray) -> list[tuple[int, int]]:
        """Position relative to the smallest digit's, and rank of the size, both read off the pixels."""
        lit = [np.flatnonzero(frame.any((0, 2))) for frame in frames]
        widths = [len(columns) for columns in lit]
        centres = [np.angle(np.exp(2j * np.pi * columns / 32).sum()) / (2 * np.pi) * 4 for columns in lit]
        ranks = np.argsort(np.argsort(widths))
        origin = centres[int(np.argmin(widths))]
        return [(round(c - origin) % 4, int(r)) for c, r in zip(centres, ranks, strict=True)]

    counts = [kinds(label) for label in range(4)]
    sets = set().union(*counts)
    assert len(sets) == 6  # pairings of four positions with four sizes, up to rotation
    for kind in sets:
        for count in counts:  # each 1/6 of 600, six standard deviations wide
            assert abs(count[kind] - 100) < 55


@pytest.mark.parametrize("time", [0, 3, 5])
def test_single_frames_are_equally_distributed_at_every_time(time: int) -> None:
    """Mean and spread of lit columns and of size, over many videos, are those of all classes at any time."""

    def statistics(label: int) -> np.ndarray:
        lit = np.stack([video(label, seed)[time].any((0, 2)) for seed in range(400)])
        return np.concatenate([lit.mean(0), [lit.sum(1).mean() / 16, lit.sum(1).std() / 16]])

    reference = statistics(0)
    for label in range(1, 4):
        np.testing.assert_allclose(statistics(label), reference, atol=0.16)


def by_rule(frames: np.ndarray) -> str:
    """The class by positions and sizes that are read off the frames in their order."""
    lit = [np.flatnonzero(frame.any((0, 2))) for frame in frames]
    centres = np.array([np.angle(np.exp(2j * np.pi * columns / frames.shape[2]).sum()) for columns in lit])
    steps = np.angle(np.exp(1j * np.diff(centres)))  # on the circle
    grows = np.diff([len(columns) for columns in lit])
    scores = {
        "left": (steps < 0).mean(),
        "right": (steps > 0).mean(),
        "approaching": (grows >= 0).mean(),
        "leaving": (grows <= 0).mean(),
    }
    return max(scores, key=scores.__getitem__)


def test_the_order_tells_the_class_and_shuffled_frames_do_not() -> None:
    rng = np.random.default_rng(0)
    ordered, shuffled = [], []
    for label, name in enumerate(CLASSES):
        for seed in range(60):
            frames = video(label, seed, 12, 48)
            ordered.append(by_rule(frames) == name)
            shuffled.append(by_rule(rng.permutation(frames)) == name)
    assert np.mean(ordered) > 0.97  # the rule is deceived where jumps happen to be in order
    assert abs(np.mean(shuffled) - 0.25) < 0.12  # chance, four standard deviations wide


def test_frames_are_in_the_official_format(toy_frames_root: Path) -> None:
    root = toy_frames_root
    labels = json.loads((root / "labels.json").read_text())
    assert sorted(labels.values()) == ["0", "1", "2", "3"]
    assert not any("[" in name for name in labels)
    ids = set()
    for part, listed, count in (("train", "train", 24), ("validation", "val", 8)):
        entries = json.loads((root / f"{part}.json").read_text())
        assert len(entries) == count
        assert Counter(entry["template"] for entry in entries) == dict.fromkeys(TEMPLATES, count // 4)
        rows = (root / "frame_lists" / f"{listed}.csv").read_text().splitlines()
        assert rows[0] == "original_vido_id video_id frame_id path labels"
        assert len(rows) == 1 + 16 * count
        first = rows[1].split(" ")
        assert first[3] == f"{first[0]}/{first[0]}_000001.jpg"
        with Image.open(root / "frames" / first[3]) as image:
            assert image.size == (32, 32)
        ids |= {entry["id"] for entry in entries}
    assert len(ids) == 32


def test_videos_are_h264_and_show_the_same(toy_frames_root: Path, toy_videos_root: Path) -> None:
    line = (toy_videos_root / "val.csv").read_text().splitlines()[0]
    path, label = line.split(" ")
    with av.open(str(toy_videos_root / path)) as container:
        stream = container.streams.video[0]
        assert stream.codec_context.name == "h264"
        assert stream.average_rate == 12
        decoded = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(stream)])
    name = Path(path).stem
    frames = sorted((toy_frames_root / "frames" / name).iterdir())
    images = np.stack([np.asarray(Image.open(frame)) for frame in frames])
    assert decoded.shape == images.shape == (16, 32, 32, 3)
    assert np.abs(decoded.astype(float) - images).mean() < 6
    entries = json.loads((toy_frames_root / "validation.json").read_text())
    assert [e["template"] for e in entries if e["id"] == name] == [TEMPLATES[int(label)]]


def test_digits_of_the_parts_are_different_images(monkeypatch: pytest.MonkeyPatch) -> None:
    used: dict[str, set[bytes]] = {"train": set(), "val": set()}
    for part, images in used.items():
        monkeypatch.setattr(toy, "moving_digit", lambda digit, *args, images=images: images.add(digit.tobytes()))
        for _ in toy._videos({"seed": 0, "size": 16, "num_frames": 4, "train_videos": 300, "val_videos": 300}, part):
            pass
    assert min(map(len, used.values())) > 150
    assert not used["train"] & used["val"]
    source = {(digit * (255 / 16)).tobytes() for digit in load_digits().images}
    assert used["train"] | used["val"] <= source


def test_toys_are_written_once_and_the_same_for_a_seed(tmp_path: Path) -> None:
    root = write_toy_frames(tmp_path / "a", **SMALL, seed=3)
    stamp = (root / "toy.json").stat().st_mtime_ns
    assert write_toy_frames(root, **SMALL, seed=3) == root
    assert (root / "toy.json").stat().st_mtime_ns == stamp
    other = write_toy_frames(tmp_path / "b", **SMALL, seed=3)
    files = sorted(p.relative_to(root) for p in root.rglob("*") if p.is_file())
    assert files == sorted(p.relative_to(other) for p in other.rglob("*") if p.is_file())
    assert all((root / f).read_bytes() == (other / f).read_bytes() for f in files)
    third = write_toy_frames(tmp_path / "c", **SMALL, seed=4)
    assert any((root / f).read_bytes() != (third / f).read_bytes() for f in files)
    assert {p.name for p in tmp_path.iterdir()} == {"a", "b", "c"}  # no scratch folders are left


def test_toys_leave_other_folders_alone_and_survive_a_race(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(ValueError, match=r"mine holds something else"):
        write_toy_videos(tmp_path / "mine", **SMALL)
    with ThreadPoolExecutor(3) as pool:
        roots = list(pool.map(lambda path: write_toy_videos(path, **SMALL), [tmp_path / "race"] * 3))
    assert len(set(roots)) == 1
    with pytest.raises(ValueError, match="other settings"):
        write_toy_videos(tmp_path / "race", **{**SMALL, "size": 20})
    with pytest.raises(ValueError, match="other settings"):  # frames are no videos
        write_toy_frames(tmp_path / "race", **SMALL)
    with pytest.raises(ValueError, match="even size"):
        write_toy_videos(tmp_path / "odd", size=15)
    assert {p.name for p in tmp_path.iterdir()} == {"mine", "race"}


def test_the_truth_names_the_digit_in_every_frame(toy_frames_root: Path) -> None:
    known = json.loads((toy_frames_root / TRUTH).read_text())["videos"]
    assert len(known) == 32
    for name, truth in known.items():
        assert all(truth["moves"])  # the digit never rests
        for number, (left, top, right, bottom) in enumerate(truth["boxes"], start=1):
            image = np.asarray(Image.open(toy_frames_root / "frames" / name / f"{name}_{number:06d}.jpg")).max(axis=2)
            inside = np.zeros((32, 32), dtype=bool)
            inside[top:bottom, np.arange(left, right) % 32] = True
            assert image[~inside].max() < 60  # JPEG bleeds a little
            assert image[inside].max() > 100


@pytest.mark.parametrize("label", range(4))
def test_a_digit_that_moves_for_a_while_rests_before_and_after(label: int) -> None:
    """All that rests is one and the same frame, which is among those of the motion: it cannot tell the class."""
    for seed in range(20):
        clip = moving_digit(DIGIT, label, 12, 32, np.random.default_rng(seed), 5)
        moves = np.flatnonzero(clip.moves)
        assert len(moves) == 5
        assert moves[-1] - moves[0] == 4
        resting = clip.frames[~clip.moves]
        assert (resting == resting[0]).all()
        np.testing.assert_array_equal(clip.frames[moves[-1]], resting[0])
        changed = [not np.array_equal(a, b) for a, b in pairwise(clip.frames)]
        expected = clip.moves[1:]
        np.testing.assert_array_equal(changed, expected)


def test_a_motion_longer_than_its_video_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="moves in 3 to 6 frames, not in 7"):
        write_toy_frames(tmp_path / "toy", **SMALL, moving=7)
