"""Frame folders: pytorchvideo's format and reader, labels, views, broken frames, mistakes in lists."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pytorchvideo.data import SSv2, make_clip_sampler
from torch.utils.data import DataLoader

from frozenllm.core.training import UNREADABLE
from frozenllm.video.data import VideoDataset, collate_videos, ssv2_frames
from frozenllm.video.data.frames import read_frame_lists
from frozenllm.video.toy import write_toy_frames
from frozenllm.video.transforms import EvalTransform

SEGMENTS = {"type": "segments", "num_frames": 4}
TINY = {"size": 16, "num_frames": 6, "train_videos": 8, "val_videos": 8}


def lists(root: Path, part: str = "val") -> dict[str, Any]:
    return {
        "labels": str(root / "labels.json"),
        "annotations": str(root / ("validation.json" if part == "val" else "train.json")),
        "frame_list": str(root / "frame_lists" / f"{part}.csv"),
        "frames": str(root / "frames"),
    }


def data(root: Path, part: str = "val", **options: Any) -> VideoDataset:
    chosen = {"sampling": SEGMENTS, "transform": {"size": 16}, "train": part == "train", **options}
    return ssv2_frames(**lists(root, part), **chosen)


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    """A tiny copy that may be damaged."""
    return write_toy_frames(tmp_path / "tiny", **TINY)


def test_frames_and_labels_are_those_of_pytorchvideos_data_set(toy_frames_root: Path) -> None:
    files = lists(toy_frames_root)
    theirs = SSv2(
        files["labels"],
        files["annotations"],
        files["frame_list"],
        make_clip_sampler("constant_clips_per_video", 1.0, 1),
        video_sampler=torch.utils.data.SequentialSampler,
        video_path_prefix=files["frames"],
    )
    ours = read_frame_lists(**files)
    entries = json.loads(Path(files["annotations"]).read_text())
    seen = 0
    for sample in theirs:
        index = sample["video_index"]
        frames = ours.frames(index, np.arange)
        assert frames.dtype == torch.uint8
        torch.testing.assert_close(frames.permute(1, 0, 2, 3).float(), sample["video"])
        assert ours.labels[index] == sample["label"]
        assert ours.name(index) == entries[index]["id"]
        seen += 1
    assert seen == len(ours) == len(entries) == 8


def test_chosen_frames_are_the_right_files(toy_frames_root: Path) -> None:
    source = read_frame_lists(**lists(toy_frames_root))
    frames = source.frames(3, lambda length: np.array([length - 1, 0, 5, 5]))
    for frame, number in zip(frames, (16, 1, 6, 6), strict=True):
        name = source.name(3)
        with Image.open(toy_frames_root / "frames" / name / f"{name}_{number:06d}.jpg") as image:
            expected = np.asarray(image.convert("RGB")).astype(int)
        assert np.abs(frame.permute(1, 2, 0).numpy() - expected).max() <= 2  # two JPEG decoders


def test_samples_of_a_video_share_frames_and_not_augmentation(toy_frames_root: Path) -> None:
    transform = {"size": 16, "scale": [0.5, 0.9]}
    one = data(toy_frames_root, "train", samples_per_video=3, transform=transform)
    sample = one[5]
    assert sample["inputs"].shape == (3, 4, 3, 16, 16)
    assert sample["targets"].tolist() == [one.source.labels[5]] * 3
    assert sample["video"].tolist() == [5] * 3
    assert not torch.equal(sample["inputs"][0], sample["inputs"][1])
    batch = collate_videos([one[i] for i in range(4)])
    assert batch["inputs"].shape == (12, 4, 3, 16, 16)
    assert batch["video"].tolist() == [0, 1, 2, 3] * 3  # no neighbours of one video
    assert batch["targets"].tolist() == one.source.labels[[0, 1, 2, 3] * 3].tolist()
    plain = data(
        toy_frames_root, "train", samples_per_video=3, transform={"size": 32, "scale": [1, 1], "ratio": [1, 1]}
    )
    clips = plain[5]["inputs"]
    assert torch.equal(clips[0], clips[2])  # without augmentation: the same frames


def test_views_and_labels_line_up(toy_frames_root: Path) -> None:
    views = data(toy_frames_root, views={"temporal": 2, "spatial": 3}, transform={"size": 16, "resize": 24})
    assert len(views) == 8 * 6
    transform = EvalTransform(16, resize=24)
    batch = [views[i] for i in (47, 0, 13, 9, 10)]  # in any order
    for index, sample in zip((47, 0, 13, 9, 10), batch, strict=True):
        video, t, s = index // 6, index % 6 // 3, index % 3
        assert sample["video"] == video
        assert sample["targets"] == views.source.labels[video]
        frames = views.source.frames(video, lambda length, t=t: views.sampling.view(length, t, 2))
        torch.testing.assert_close(sample["inputs"], transform.crop(transform.resize(frames), s, 3))


def test_views_decode_their_video_once(toy_frames_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    views = data(toy_frames_root, views={"temporal": 2, "spatial": 3})
    frames, calls = views.source.frames, []
    monkeypatch.setattr(views.source, "frames", lambda *args: calls.append(args[0]) or frames(*args))
    for _ in DataLoader(views, batch_size=12):
        pass
    assert calls == list(range(8))


def damage(root: Path, source: Any) -> dict[int, str]:
    """Breaks four videos, each in its way; what the log should say, by video."""
    paths = {video: Path(source.frame_paths(video)[2]) for video in (1, 2, 4, 7)}
    paths[1].unlink()
    paths[2].write_bytes(b"")
    paths[4].write_bytes(paths[4].read_bytes()[:40])
    Image.new("RGB", (8, 8)).save(paths[7])
    return {
        1: f"{source.name(1)} lacks the frame {paths[1]}",
        2: f"{source.name(2)} has a frame that is no image: {paths[2]}",
        4: f"{source.name(4)} has a frame that is no image: {paths[4]}",
        7: f"{source.name(7)} has frames of different sizes",
    }


ALL = {"type": "dense", "num_frames": 6, "stride": 1}


def test_broken_frames_are_skipped_counted_and_named(tiny: Path, caplog: pytest.LogCaptureFixture) -> None:
    one = data(tiny, views={"temporal": 1, "spatial": 2}, sampling=ALL, on_error="skip")
    words = damage(tiny, one.source)
    with caplog.at_level(logging.WARNING):
        samples = [one[i] for i in range(16)] + [one[2]]
    assert {s["video"] for s in samples if s["targets"] == UNREADABLE} == {1, 2, 4, 7}
    assert [s["video"] for s in samples[:16]] == [i // 2 for i in range(16)]
    assert all(s["inputs"].shape == (6, 3, 16, 16) for s in samples)
    assert one.num_unreadable == 4  # videos, not views
    assert len(caplog.records) == 4
    for word, record in zip(words.values(), caplog.records, strict=True):
        assert word in record.getMessage()


def test_training_takes_the_next_readable_video(tiny: Path) -> None:
    one = data(tiny, "train", sampling=ALL, on_error="skip", samples_per_video=2)
    damage(tiny, one.source)
    found = [one[i]["video"].tolist() for i in range(8)]
    assert found == [[v, v] for v in (0, 3, 3, 3, 5, 5, 6, 0)]
    assert [one[i]["targets"].tolist() for i in (1, 7)] == [[one.source.labels[v]] * 2 for v in (3, 0)]


def test_the_other_policy_raises_one_sentence(tiny: Path) -> None:
    one = data(tiny, sampling=ALL)
    for video, words in damage(tiny, one.source).items():
        with pytest.raises(ValueError, match="repair or remove it, or set on_error to skip") as caught:
            one[video]
        assert words in str(caught.value)
        assert "\n" not in str(caught.value)
    assert one[0]["targets"] != UNREADABLE


def test_workers_share_the_count(tiny: Path) -> None:
    one = data(tiny, sampling=ALL, on_error="skip")
    damage(tiny, one.source)
    batches = list(DataLoader(one, batch_size=2, num_workers=2))
    assert sum((b["targets"] == UNREADABLE).sum().item() for b in batches) == 4
    assert one.num_unreadable == 4


def test_videos_without_frames_in_the_list_are_left_out_by_policy(tiny: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tiny / "frame_lists" / "val.csv"
    entries = json.loads((tiny / "validation.json").read_text())
    gone = {entries[0]["id"], entries[5]["id"]}
    path.write_text("\n".join(r for r in path.read_text().splitlines() if r.split(" ")[0] not in gone) + "\n")
    with pytest.raises(ValueError, match=f"no frames of 2 of the 8 videos in .*, the first being {entries[0]['id']}"):
        data(tiny)
    with caplog.at_level(logging.WARNING):
        one = data(tiny, on_error="skip")
    assert "left out" in caplog.text
    labels = data(write_toy_frames(tiny.parent / "whole", **TINY)).source.labels
    assert [one.source.name(i) for i in range(6)] == [e["id"] for e in entries if e["id"] not in gone]
    assert one.source.labels.tolist() == np.delete(labels, [0, 5]).tolist()


def change(name: str, edit: Callable[[str], str]) -> Callable[[Path], None]:
    def apply(root: Path) -> None:
        (root / name).write_text(edit((root / name).read_text()))

    return apply


MISTAKES = [
    (lambda root: (root / "labels.json").unlink(), "labels.json does not exist; data.labels should name"),
    (lambda root: (root / "frame_lists" / "val.csv").unlink(), "data.frame_list should name the frame list"),
    (lambda root: shutil.rmtree(root / "frames"), "data.frames should name the folder of the frames"),
    (change("labels.json", lambda text: text[:20]), "labels.json cannot be read as JSON"),
    (change("labels.json", lambda text: '["a"]'), "should map every template to a number"),
    (change("labels.json", lambda text: text.replace('"3"', '"7"')), "should number its 4 classes from 0 to 3"),
    (change("validation.json", lambda text: '{"id": "1"}'), "should be a list of videos"),
    (change("validation.json", lambda text: '[{"id": 801}]'), 'entry 0 has no "id" of type string'),
    (change("validation.json", lambda text: '[{"id": "9"}]'), "video 9 has no template .the official test list"),
    (change("validation.json", lambda text: '[{"id": "9", "template": "Eating [it]"}]'), "template 'Eating it' of"),
    (change("validation.json", lambda text: text.replace('"id": "10"', '"id": "9"')), "lists the video 9 twice"),
    (change("validation.json", lambda text: "[]"), "validation.json lists no videos"),
    (change("frame_lists/val.csv", lambda text: text[text.index("\n") + 1 :]), "should begin with the line"),
    (change("frame_lists/val.csv", lambda text: text.replace("9_000002", "9 _000002")), r"line 3: '9 0 1 9/9 _000002"),
    (change("frame_lists/val.csv", lambda text: text + "9 0\n"), "val.csv, line 50: '9 0' is not"),
]  # fmt: skip


@pytest.mark.parametrize(("break_it", "words"), MISTAKES)
def test_mistakes_in_the_lists_give_one_sentence(break_it: Callable[[Path], None], words: str, tiny: Path) -> None:
    break_it(tiny)
    with pytest.raises(ValueError, match=words) as caught:
        data(tiny)
    assert "\n" not in str(caught.value)


def test_wrong_options_are_named(toy_frames_root: Path) -> None:
    root = toy_frames_root
    for options, words in [
        ({"num_classes": 2}, "has class [23], but num_classes is 2"),
        ({"on_error": "ignore"}, "raise or skip"),
        ({"views": {"spatial": 0}}, "`temporal` and `spatial` from 1"),
        ({"views": {"space": 3}}, "`temporal` and `spatial` from 1"),
        ({"samples_per_video": 2}, "for training"),
        ({"transform": {"size": 16, "scale": [0.5, 1]}}, "scale"),
        ({"transform": {"size": 32, "resize": 16}}, "resize 16 is below"),
        ({"views": {}, "random_frames": True}, "random_frames is for evaluation"),
    ]:
        with pytest.raises(ValueError, match=words):
            data(root, **options)
    with pytest.raises(ValueError, match="Views are for evaluation"):
        data(root, "train", views={"temporal": 2})
    with pytest.raises(ValueError, match=r"Set data\.labels"):
        ssv2_frames(None, None, None, None, sampling=SEGMENTS, transform={"size": 16})
