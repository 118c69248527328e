"""Encoded videos: frame for frame what PyAV gives, in every container; lists, folders, damage."""

from __future__ import annotations

import json
import logging
import shutil
import struct
import sys
from dataclasses import make_dataclass
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import av
import numpy as np
import pytest
import torch

from frozenllm.core.film import write_film
from frozenllm.core.training import UNREADABLE, BrokenSample
from frozenllm.video.data import VideoDataset, encoded_videos, read_video, toy_videos, video_csv
from frozenllm.video.data.decoding import DECODERS, pick_decoder
from frozenllm.video.toy import TEMPLATES

SEGMENTS = {"type": "segments", "num_frames": 4}
EVAL = {"sampling": SEGMENTS, "transform": {"size": 16}}
FORMATS = {"a.mp4": "libx264", "b.mp4": "mpeg4", "c.webm": "libvpx", "d.webm": "libvpx-vp9", "e.mkv": "libx264"}
MANY = {"b-frames.mp4": {"bf": "3", "g": "30", "crf": "10"}}


def clip(length: int = 20, height: int = 48, width: int = 64) -> np.ndarray:
    """Frames whose brightness tells their number, with a moving bar."""
    frames = np.zeros((length, height, width, 3), np.uint8)
    for i in range(length):
        frames[i] = 10 + 200 * i // length
        frames[i, :, (3 * i) % (width - 4) : (3 * i) % (width - 4) + 4, 0] = 255
    return frames


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One video in several containers and codecs."""
    folder = tmp_path_factory.mktemp("formats")
    for name, codec in FORMATS.items():
        options = {"b": "2M", "crf": "10"} if "x26" in codec else {"b": "2M"}
        write_film(clip(), folder / name, 12, codec=codec, options=options)
    for name, options in MANY.items():
        write_film(clip(), folder / name, 12, options=options)
    return folder


def works(decoder: str) -> bool:
    try:
        pick_decoder(decoder)
    except ImportError:
        return False
    return True


needs_torchcodec = pytest.mark.skipif(not works("torchcodec"), reason="torchcodec is not installed, or finds no FFmpeg")
each_decoder = pytest.mark.parametrize("decoder", ["pyav", pytest.param("torchcodec", marks=needs_torchcodec)])


@each_decoder
@pytest.mark.parametrize("name", [*FORMATS, *MANY])
def test_frames_are_those_of_pyav(files: Path, name: str, decoder: str) -> None:
    with av.open(str(files / name)) as container:
        expected = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
    assert len(expected) == 20  # the last frame is there, also of webm
    found = read_video(files / name, np.arange, decoder)
    assert found.dtype == torch.uint8
    assert np.abs(found.permute(0, 2, 3, 1).numpy().astype(int) - expected).max() <= 2  # two converters to RGB
    some = read_video(files / name, lambda length: np.array([length - 1, 0, 7, 7]), decoder)
    torch.testing.assert_close(some, found[[19, 0, 7, 7]])


def test_frames_are_those_that_were_written(files: Path) -> None:
    found = read_video(files / "a.mp4", np.arange, "pyav").double().mean((1, 2, 3))
    assert (found.diff() > 5).all()
    np.testing.assert_allclose(found, clip().mean((1, 2, 3)), atol=4)


def test_sound_is_no_matter(tmp_path: Path) -> None:
    path = tmp_path / "sound.mp4"
    with av.open(str(path), "w") as container:
        video, sound = container.add_stream("libx264", rate=12), container.add_stream("aac", rate=44100)
        video.height, video.width, video.pix_fmt = 48, 64, "yuv420p"
        for frame in clip():
            container.mux(video.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        for _ in range(100):
            silence = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
            silence.rate = 44100
            container.mux(sound.encode(silence))
        container.mux(video.encode())
        container.mux(sound.encode())
    assert read_video(path, np.arange, "pyav").shape == (20, 3, 48, 64)


def damaged(files: Path, folder: Path) -> dict[str, str]:
    """Files that cannot be read, and what is to be said of each."""
    whole = (files / "a.mp4").read_bytes()
    (folder / "empty.mp4").touch()
    (folder / "text.mp4").write_text("not a video at all, " * 300)
    (folder / "cut.mp4").write_bytes(whole[: len(whole) // 2])  # the index is at the end, and lost
    webm = (files / "d.webm").read_bytes()
    (folder / "cut.webm").write_bytes(webm[: len(webm) // 2])
    noisy = bytearray((files / "e.mkv").read_bytes())
    noisy[len(noisy) // 3 :] = bytes(len(noisy) - len(noisy) // 3)
    (folder / "zeros.mkv").write_bytes(noisy)
    with av.open(str(folder / "sound.mp4"), "w") as container:
        sound = container.add_stream("aac", rate=44100)
        silence = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        silence.rate = 44100
        container.mux(sound.encode(silence))
        container.mux(sound.encode())
    return {
        "absent.mp4": "There is no video file at",
        "empty.mp4": "is empty",
        "text.mp4": "cannot be decoded",
        "cut.mp4": "cannot be decoded",
        "cut.webm": r"cut short: it ends after (0\.\d|1\.[0-4]) of its 1\.7 seconds",
        "zeros.mkv": r"cut short|cannot be decoded",
        "sound.mp4": r"no video stream|cannot be decoded|No valid stream",
    }


@each_decoder
def test_damaged_files_are_named(files: Path, tmp_path: Path, decoder: str) -> None:
    for name, words in damaged(files, tmp_path).items():
        with pytest.raises(BrokenSample, match=words) as caught:
            read_video(tmp_path / name, np.arange, decoder)
        assert str(tmp_path / name) in str(caught.value)
        assert "\n" not in str(caught.value)


def test_a_stream_copy_cut_in_front_of_its_index_is_cut_short(files: Path, tmp_path: Path) -> None:
    path = tmp_path / "fast.mp4"  # the index comes first, as on web sites: the file opens, and ends early
    with av.open(str(path), "w", options={"movflags": "faststart"}) as container:
        stream = container.add_stream("libx264", rate=12, options={"crf": "1", "g": "4"})
        stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv420p"
        rng = np.random.default_rng(0)
        for _ in range(20):
            noise = rng.integers(0, 255, (48, 64, 3), np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(noise, format="rgb24")))
        container.mux(stream.encode())
    assert len(read_video(path, np.arange, "pyav")) == 20
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(BrokenSample, match=r"fast\.mp4 is cut short: .* of its 1\.7 seconds|cannot be decoded"):
        read_video(path, np.arange, "pyav")


@each_decoder
@pytest.mark.parametrize("turns", [1, 2, 3])
def test_frames_are_turned_as_the_file_says(tmp_path: Path, turns: int, decoder: str) -> None:
    path = tmp_path / "phone.mp4"  # which writes the picture as the sensor lies, and a matrix beside it
    stored = np.zeros((3, 48, 64, 3), np.uint8)
    stored[:, :24, :32] = 255
    write_film(stored, path, 12, options={"crf": "5"})
    one, data = 1 << 16, bytearray(path.read_bytes())
    a, b = {1: (0, one), 2: (-one, 0), 3: (0, -one)}[turns]  # ISO 14496-12: x' = ax + cy, y' = bx + dy, y downwards
    matrix = data.index(b"tkhd") + 44
    data[matrix : matrix + 36] = struct.pack(">9i", a, b, 0, -b, a, 0, 0, 0, 1 << 30)
    path.write_bytes(data)
    found = read_video(path, np.arange, decoder).double().mean((0, 1))
    height, width = ((48, 64), (64, 48))[turns % 2]
    assert found.shape == (height, width)
    bright = {1: (0, 1), 2: (1, 1), 3: (1, 0)}[turns]  # from the upper left clockwise
    halves = found.reshape(2, height // 2, 2, width // 2).mean((1, 3))
    assert divmod(int(halves.argmax()), 2) == bright
    assert halves.max() > 240


@each_decoder
@pytest.mark.parametrize("name", ["screen.webm", "screen.mkv", "screen.mp4"])
def test_a_variable_rate_is_no_damage(tmp_path: Path, name: str, decoder: str) -> None:
    path = tmp_path / name  # as recorders of screens write it: few pictures while nothing moves
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libvpx" if name.endswith("webm") else "libx264", rate=30)
        stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv420p"
        stream.codec_context.time_base = Fraction(1, 1000)
        for number, image in enumerate(clip()):
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.pts, frame.time_base = 33 * number + 967 * max(number - 12, 0), Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    assert len(read_video(path, np.arange, decoder)) == 20


@each_decoder
def test_a_clip_that_was_cut_out_without_encoding_it_anew_is_whole(tmp_path: Path, decoder: str) -> None:
    whole, path = tmp_path / "whole.mp4", tmp_path / "part.mp4"
    write_film(clip(), whole, 10, options={"crf": "5", "g": "20", "bf": "0"})
    with av.open(str(whole)) as given, av.open(str(path), "w") as part:
        source = given.streams.video[0]
        target = part.add_stream_from_template(source)
        for packet in given.demux(source):
            if packet.dts is not None:
                packet.pts, packet.dts = (time - int(1.2 / source.time_base) for time in (packet.pts, packet.dts))
                packet.stream = target
                part.mux(packet)  # all of them: those before 0 are needed by the rest, and hidden
    with av.open(str(path)) as container:
        assert container.streams.video[0].frames == 20
    found = read_video(path, np.arange, decoder).double().mean((1, 2, 3))
    np.testing.assert_allclose(found, clip().mean((1, 2, 3))[12:], atol=4)


def test_decoders_by_name() -> None:
    assert pick_decoder("auto") is pick_decoder("torchcodec" if works("torchcodec") else "pyav")
    with pytest.raises(ValueError, match=f"one of {', '.join(DECODERS)}, not 'decord'"):
        pick_decoder("decord")
    if not works("torchcodec"):
        with pytest.raises(ImportError, match=r"install 'frozenllm-video\[torchcodec\]' and FFmpeg"):
            pick_decoder("torchcodec")


def test_torchcodec_that_does_not_turn_frames_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    old = SimpleNamespace(VideoDecoder=None, VideoStreamMetadata=make_dataclass("VideoStreamMetadata", ["num_frames"]))
    monkeypatch.setitem(sys.modules, "torchcodec", SimpleNamespace(decoders=old))
    monkeypatch.setitem(sys.modules, "torchcodec.decoders", old)
    assert pick_decoder.__wrapped__("auto") is pick_decoder("pyav")
    with pytest.raises(ImportError, match=r"torchcodec does not work here.*before 0\.11 leave the videos of phones"):
        pick_decoder.__wrapped__("torchcodec")


def as_folders(root: Path, out: Path) -> None:
    """The toy videos as <part>/<class>/<file>."""
    for part in ("train", "val"):
        for line in (root / f"{part}.csv").read_text().splitlines():
            path, label = line.split(" ")
            (out / part / f"class{label}").mkdir(parents=True, exist_ok=True)
            shutil.copy(root / path, out / part / f"class{label}")


def as_official(root: Path, out: Path) -> None:
    """The toy videos as the official annotations and <id>.mp4."""
    shutil.copytree(root / "videos", out / "videos")
    for name in ("labels", "train", "validation"):
        shutil.copy(root / f"{name}.json", out)


def test_all_lists_give_the_same_samples(toy_videos_root: Path, tmp_path: Path) -> None:
    as_folders(toy_videos_root, tmp_path / "folders")
    as_official(toy_videos_root, tmp_path / "official")
    official = {key: str(tmp_path / "official" / f"{key}.json") for key in ("labels", "validation")}
    toy = {"train_videos": 24, "val_videos": 8}
    sets: list[VideoDataset] = [
        video_csv(str(toy_videos_root / "val.csv"), num_classes=4, **EVAL),
        video_csv(str(toy_videos_root / "val.csv"), str(toy_videos_root), **EVAL),
        toy_videos(str(toy_videos_root), "val", toy=toy, **EVAL),
        encoded_videos(str(tmp_path / "folders"), "val", num_classes=4, **EVAL),
        encoded_videos(
            str(tmp_path / "official" / "videos"),
            labels=official["labels"],
            annotations=official["validation"],
            **EVAL,
        ),
    ]

    def samples(one: VideoDataset) -> dict[str, Any]:
        return {Path(one.source.name(i)).stem: (one[i]["inputs"], one[i]["targets"]) for i in range(len(one))}

    first = samples(sets[0])
    assert len(first) == 8
    entries = json.loads((toy_videos_root / "validation.json").read_text())
    assert {name: TEMPLATES[label] for name, (_, label) in first.items()} == {e["id"]: e["template"] for e in entries}
    for other in sets[1:]:
        torch.testing.assert_close(samples(other), first, rtol=0, atol=0)


def test_csv_separators_and_spaces(toy_videos_root: Path, tmp_path: Path) -> None:
    source = toy_videos_root / "videos" / "25.mp4"
    (tmp_path / "my videos").mkdir()
    shutil.copy(source, tmp_path / "my videos" / "a b.mp4")
    shutil.copy(source, tmp_path / "c.mp4")
    (tmp_path / "list.csv").write_text(f'"my videos/a b.mp4" 2\nc.mp4,1\n\nc.mp4\t3\n{source} 0\n')
    one = video_csv(str(tmp_path / "list.csv"), **EVAL)
    assert one.source.labels.tolist() == [2, 1, 3, 0]
    assert all(torch.equal(one[i]["inputs"], one[0]["inputs"]) for i in range(4))


@pytest.mark.parametrize(("text", "words"), [
    ("a.mp4\n", r"list\.csv, line 1: 'a\.mp4' is not `path label`"),
    ("25.mp4 0\n25.mp4 cat\n", r"line 2: '25\.mp4 cat' is not `path label`"),
    ("25.mp4 -1\n", "class index from 0"),
    ("path,label\n25.mp4,1\n", "line 1: 'path,label'"),
    ("", "lists no videos"),
    ("elsewhere/25.mp4 0\n", r"its paths do not start from .* \(there is no .*elsewhere.25\.mp4\); set data\.root"),
    ("25.mp4 7\n", "25.mp4 has class 7, but num_classes is 4"),
])  # fmt: skip
def test_mistakes_in_a_csv_give_one_sentence(text: str, words: str, toy_videos_root: Path, tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_text(text)
    with pytest.raises(ValueError, match=words) as caught:
        video_csv(str(tmp_path / "list.csv"), str(toy_videos_root / "videos"), num_classes=4, **EVAL)
    assert "\n" not in str(caught.value)


def test_mistakes_in_folders_give_one_sentence(toy_videos_root: Path, tmp_path: Path) -> None:
    as_folders(toy_videos_root, tmp_path)
    root, labels = str(tmp_path), str(toy_videos_root / "labels.json")
    with pytest.raises(ValueError, match=r"Set data\.root"):
        encoded_videos(None, **EVAL)
    with pytest.raises(ValueError, match="test does not exist"):
        encoded_videos(root, "test", **EVAL)
    with pytest.raises(ValueError, match=r"all does not exist; data\.root should name the part whose classes"):
        encoded_videos(root, "val", train_split="all", **EVAL)
    with pytest.raises(ValueError, match="set both labels and annotations"):
        encoded_videos(root, labels=labels, **EVAL)
    annotations = str(toy_videos_root / "validation.json")
    with pytest.raises(ValueError, match="holds none of the 8 videos in"):
        encoded_videos(root, labels=labels, annotations=annotations, **EVAL)
    with pytest.raises(ValueError, match="class 3, but num_classes is 2"):
        encoded_videos(root, "val", num_classes=2, **EVAL)
    (tmp_path / "val" / "new").mkdir()
    with pytest.raises(ValueError, match="lacks: new"):
        encoded_videos(root, "val", **EVAL)
    (tmp_path / "none" / "class0").mkdir(parents=True)
    with pytest.raises(ValueError, match="holds no videos named <class>/<file>"):
        encoded_videos(root, "none", train_split="train", **EVAL)


def test_hidden_folders_and_files_are_no_classes_and_no_videos(toy_videos_root: Path, tmp_path: Path) -> None:
    as_folders(toy_videos_root, tmp_path)
    before = encoded_videos(str(tmp_path), "val", **EVAL).source
    for part in ("train", "val"):
        (tmp_path / part / ".ipynb_checkpoints").mkdir()  # sorts before all classes
        (tmp_path / part / "class0" / "._0.mp4").write_bytes(b"of a Mac's archive")
    after = encoded_videos(str(tmp_path), "val", **EVAL).source
    assert [after.name(i) for i in range(len(after))] == [before.name(i) for i in range(len(before))]
    np.testing.assert_array_equal(after.labels, before.labels)


def test_damaged_videos_by_policy(
    files: Path, toy_videos_root: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    broken = sorted(damaged(files, tmp_path))
    good = [str(toy_videos_root / "videos" / f"{n}.mp4") for n in (25, 26)]
    paths = [good[0], *broken, good[1]]
    (tmp_path / "list.csv").write_text("".join(f"{path} {i % 4}\n" for i, path in enumerate(paths)))
    one = video_csv(str(tmp_path / "list.csv"), on_error="skip", **EVAL)
    with caplog.at_level(logging.WARNING):
        targets = [one[i]["targets"] for i in range(len(one))]
    assert targets == [0] + [UNREADABLE] * len(broken) + [(len(broken) + 1) % 4]
    assert one.num_unreadable == len(broken)
    assert all(name in caplog.text for name in broken)
    train = video_csv(str(tmp_path / "list.csv"), on_error="skip", train=True, **EVAL)
    assert [train[i]["video"] for i in (0, 1, 3, len(paths) - 1)] == [0, *[len(paths) - 1] * 3]
    strict = video_csv(str(tmp_path / "list.csv"), **EVAL)
    with pytest.raises(ValueError, match=f"{broken[0]}; repair or remove it, or set on_error to skip"):
        strict[1]
