"""Preparing Something-Something V2: forms, broken files, stopping and going on, several workers."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch

from frozenllm.core.film import write_film
from frozenllm.video import prepare as module
from frozenllm.video.data import read_video, ssv2_frames, video_csv
from frozenllm.video.prepare import main, prepare
from frozenllm.video.toy import CLASSES, TEMPLATES, moving_digit

EVAL: dict[str, Any] = {"sampling": {"type": "segments", "num_frames": 4}, "transform": {"size": 16}}
BROKEN = {"4": "is empty", "9": "cannot be decoded", "11": "There is no video file"}


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve videos as published: annotations, and webm; three of them broken."""
    root = tmp_path_factory.mktemp("ssv2")
    (root / "videos").mkdir()
    plain = {template.replace("[", "").replace("]", ""): str(i) for i, template in enumerate(TEMPLATES)}
    (root / "something-something-v2-labels.json").write_text(json.dumps(plain))
    rng = np.random.default_rng(0)
    digit = rng.uniform(0, 255, (8, 8))
    for part, ids in (("train", range(1, 9)), ("validation", range(9, 13))):
        entries = [{"id": str(i), "label": "é", "template": TEMPLATES[i % 4], "placeholders": []} for i in ids]
        (root / f"something-something-v2-{part}.json").write_text(json.dumps(entries))
        for i in ids:
            frames = moving_digit(digit, i % 4, 6 + i % 3, 32, rng).frames[:, :24]
            write_film(frames, root / "videos" / f"{i}.webm", 12, codec="libvpx", options={"b": "1M"})
    (root / "videos" / "4.webm").write_bytes(b"")
    (root / "videos" / "9.webm").write_bytes(b"no video" * 200)
    (root / "videos" / "11.webm").unlink()
    return root


def run(original: Path, out: Path, **options: Any) -> dict[str, Any]:
    return prepare(original, original / "videos", out, progress=False, **options)


def contents(root: Path) -> dict[str, bytes]:
    return {
        str(file.relative_to(root)): file.read_bytes()
        for file in root.rglob("*")
        if file.is_file() and file.name != "done.jsonl"  # workers finish in any order
    }


def test_frames_feed_pytorchvideos_layout(original: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    report = run(original, out)
    assert report == json.loads((out / "report.json").read_text())
    assert report["videos"] == {"train": 8, "validation": 4}
    assert report["ready"] == {"train": 7, "validation": 2}
    assert {entry["id"]: entry["part"] for entry in report["broken"]} == {
        "4": "train",
        "9": "validation",
        "11": "validation",
    }
    for entry in report["broken"]:
        assert BROKEN[entry["id"]] in entry["reason"]
        assert f"{entry['id']}.webm" in entry["reason"]
    for part, listed, ids in (("train", "train", "1235678"), ("validation", "val", ["10", "12"])):
        one = ssv2_frames(
            str(out / "labels.json"),
            str(out / f"{part}.json"),
            str(out / "frame_lists" / f"{listed}.csv"),
            str(out / "frames"),
            num_classes=len(CLASSES),
            **EVAL,
        )
        assert [one.source.name(i) for i in range(len(one))] == list(ids)
        assert one.source.labels.tolist() == [int(i) % 4 for i in ids]
        for index, name in enumerate(ids):
            frames = one.source.frames(index, np.arange)
            source = read_video(original / "videos" / f"{name}.webm", np.arange, "pyav")
            assert frames.shape == source.shape == (6 + int(name) % 3, 3, 24, 32)
            assert (frames.int() - source.int()).abs().float().mean() < 4  # JPEG


def test_mp4_feeds_videomaes_lists(original: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run(original, out, to="mp4", height=16)
    assert (out / "val.csv").read_text() == (out / "test.csv").read_text() == "videos/10.mp4 2\nvideos/12.mp4 0\n"
    one = video_csv(str(out / "train.csv"), num_classes=4, **EVAL)
    assert one.source.labels.tolist() == [int(i) % 4 for i in "1235678"]
    with av.open(one.source.name(1)) as container:
        stream = container.streams.video[0]
        assert stream.codec_context.name == "h264"
        assert stream.average_rate == 12
        assert (stream.height, stream.width) == (16, 22)  # 32 x 16 / 24, and even
    assert one.source.frames(1, np.arange).shape[0] == 8


def test_lists_leave_the_videos_where_they_are(original: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run(original, out, to="lists")
    assert not (out / "videos").exists()
    one = video_csv(str(out / "val.csv"), **EVAL)
    assert [one.source.name(i) for i in range(2)] == [str(original / "videos" / f"{i}.webm") for i in (10, 12)]
    assert one[1]["inputs"].shape == (4, 3, 16, 16)


@pytest.mark.parametrize("to", ["frames", "mp4"])
def test_workers_write_the_same(original: Path, tmp_path: Path, to: str) -> None:
    run(original, tmp_path / "one", to=to)
    run(original, tmp_path / "two", to=to, workers=2)
    one, two = contents(tmp_path / "one"), contents(tmp_path / "two")
    assert one.keys() == two.keys()
    for name, content in one.items():
        if name.endswith(".mp4"):  # x264 gives other bytes at times, also in one process
            source = read_video(original / name.replace(".mp4", ".webm"), np.arange, "pyav").float()
            clips = [read_video(tmp_path / root / name, np.arange, "pyav").float() for root in ("one", "two")]
            assert all((clip - source).abs().mean() < 4 for clip in clips)
        else:
            assert two[name] == content
    done = [json.loads(line)["id"] for line in (tmp_path / "two" / "done.jsonl").read_text().splitlines()]
    assert sorted(done, key=int) == [str(i) for i in range(1, 13)]


def test_a_killed_run_goes_on_where_it_was(original: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(original, tmp_path / "whole")
    out = tmp_path / "killed"
    convert = module.convert

    def slow(*args: Any) -> dict[str, Any]:
        result = convert(*args)
        if args[0] == "6":
            time.sleep(600)  # its folder is there, and not noted
        return result

    monkeypatch.setattr(module, "convert", slow)
    child = multiprocessing.get_context("fork").Process(target=run, args=(original, out))
    child.start()
    deadline = time.monotonic() + 60
    while not (out / "frames" / "6").exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert child.pid is not None
    os.kill(child.pid, signal.SIGKILL)
    child.join()
    with open(out / "done.jsonl", "a") as journal:
        journal.write('{"id": "6", "fra')  # as if it had been writing
    (out / "frames" / ".7-123").mkdir()
    (out / "frames" / ".7-123" / "7_000001.jpg").touch()
    shutil.rmtree(out / "frames" / "2")  # lost since

    converted = []
    monkeypatch.setattr(module, "convert", lambda *args: converted.append(args[0]) or convert(*args))
    run(original, out)
    assert converted == ["2", "4", "6", "7", "8", "9", "10", "11", "12"]  # the broken one is tried again
    assert contents(out) == contents(tmp_path / "whole")
    converted.clear()
    run(original, out)
    assert converted == ["4", "9", "11"]
    assert contents(out) == contents(tmp_path / "whole")


def test_a_full_disk_is_no_broken_video(original: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: Any) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="No space left"):
        run(original, tmp_path / "out")
    assert not list((tmp_path / "out" / "frames").iterdir())


def test_the_command_line(original: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["--annotations", str(original), "--videos", str(original / "videos"), "--out", str(tmp_path / "out")]
    main([*command, "--workers", "0", "--limit", "4"])
    out = capsys.readouterr().out
    assert "train: 3 of 4 videos are ready" in out
    assert "validation: 2 of 4 videos are ready" in out
    assert "left out 4 (train): The video file" in out
    with pytest.raises(SystemExit, match=r"error: .* was begun with other settings"):
        main([*command, "--to", "mp4"])
    assert torch.get_num_threads() >= 1


def test_mistakes_give_one_sentence(original: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").touch()
    videos, out = original / "videos", tmp_path / "out"
    for arguments, options, words in [
        ((tmp_path, videos, out), {}, r"holds no labels\.json"),
        ((original, tmp_path / "nowhere", out), {}, "nowhere does not exist"),
        ((original, tmp_path, out), {}, "holds none of the 8 videos"),
        ((original, videos, tmp_path / "mine"), {}, "mine holds something else"),
        ((original, videos, out), {"to": "avi"}, "must be one of frames, mp4, lists"),
        ((original, videos, tmp_path / "mine" / "thesis.txt"), {}, "holds something else"),
        ((original, videos, out), {"height": 0}, "--height must be 1 or more, not 0"),
        ((original, videos, out), {"crf": 52}, "--crf must be 0 to 51, not 52"),
    ]:
        with pytest.raises(ValueError, match=words) as caught:
            prepare(*arguments, progress=False, **options)
        assert "\n" not in str(caught.value)
    assert not out.exists()
