"""Toy data in Something-Something V2's formats: moving handwritten digits whose class is the order of the frames.

A video is a set of frames in which one digit (scikit-learn's: real images) stands at evenly spread horizontal positions
in evenly spread sizes, paired at random. The class says what orders the set: the position, downwards (left) or upwards
(right), or the size, upwards (approaching) or downwards (leaving). Positions and sizes run in a circle and start
anywhere, so a digit that goes out on the left comes back on the right.

Hence every set of frames is equally likely in every class, and so is every single frame at every time: nothing but the
order tells the class.

With ``moving`` the digit goes round its circle in that many frames in a row, somewhere in the video, and rests before
and after: only these frames tell the class. ``toy_truth.json`` says which they are, and where the digit is.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from frozenllm.core.film import write_film
from frozenllm.core.toy_folder import write_once
from frozenllm.video.toy_digits import CLASSES, Clip, moving_digit

TEMPLATES = (
    "Moving [something] to the left",
    "Moving [something] to the right",
    "[Something] coming closer",
    "[Something] going away",
)
"""Names by class index, with the placeholders of the official annotations."""
PARTS = {"train": "train", "val": "validation"}
"""Names of the parts, and those of their annotation files."""

_FORMAT = 2
TRUTH = "toy_truth.json"
"""File beside the official ones: ``size`` of the frames, and under ``videos`` id -> ``boxes`` and ``moves`` of
`frozenllm.video.toy_digits.Clip`."""
_FRAME_RATE = 12  # Something-Something V2's


def write_toy_frames(
    root: str | os.PathLike[str] | None = None,
    *,
    size: int = 32,
    num_frames: int = 16,
    seed: int = 0,
    train_videos: int = 800,
    val_videos: int = 200,
    moving: int | None = None,
) -> Path:
    """Writes the moving digits as Something-Something V2 frame folders, once.

    The folder holds ``labels.json``, ``train.json`` and ``validation.json`` (the official annotations' format), the
    frame lists ``frame_lists/{train,val}.csv`` (SlowFast's and pytorchvideo's format), and the frames as
    ``frames/<id>/<id>_<number from 1, six digits>.jpg``; and `TRUTH`, which real data lacks. It appears whole or not
    at all; an existing one with the same settings is left as it is, also when several processes ask for it at the same
    time.

    Args:
        root: The folder to write; None for one in the user's cache.
        size: Width and height of the frames in pixels, even.
        num_frames: Frames of a video.
        seed: Chooses digits and motions.
        train_videos: Videos to train on, equally many of every class.
        val_videos: Videos to evaluate on, of other images.
        moving: Frames in which the digit moves; None for all.

    Returns:
        The folder.

    Raises:
        ValueError: The folder holds something else, or a size is not possible.
    """
    return _written("frames", root, size, num_frames, seed, train_videos, val_videos, moving, _write_frames)


def write_toy_videos(
    root: str | os.PathLike[str] | None = None,
    *,
    size: int = 32,
    num_frames: int = 16,
    seed: int = 0,
    train_videos: int = 800,
    val_videos: int = 200,
    moving: int | None = None,
) -> Path:
    """Writes the same videos as mp4 files (H.264, 12 frames a second), once.

    The folder holds ``videos/<id>.mp4``, VideoMAE's lists ``{train,val}.csv`` with a line ``videos/<id>.mp4 <label>``
    per video, and the annotations of `write_toy_frames`.

    Args and errors are those of `write_toy_frames`.
    """
    return _written("videos", root, size, num_frames, seed, train_videos, val_videos, moving, _write_videos)


def _written(
    kind: str,
    root: str | os.PathLike[str] | None,
    size: int,
    num_frames: int,
    seed: int,
    train_videos: int,
    val_videos: int,
    moving: int | None,
    write: Callable[[Path, dict[str, Any]], None],
) -> Path:
    if size < 8 or size % 2 or num_frames < 4:
        raise ValueError(f"Toy videos need an even size from 8 and 4 frames or more, not {size} and {num_frames}.")
    if min(train_videos, val_videos) < len(CLASSES):
        raise ValueError(f"Toy videos: each part needs {len(CLASSES)} videos or more.")
    if moving is not None and not 3 <= moving <= num_frames:
        raise ValueError(f"Toy videos: the digit moves in 3 to {num_frames} frames, not in {moving}.")
    manifest = {
        "data": f"moving digits, {kind}",
        "format": _FORMAT,
        "size": size,
        "num_frames": num_frames,
        "seed": seed,
        "train_videos": train_videos,
        "val_videos": val_videos,
        "moving": moving,
    }
    return write_once(root, f"moving-digits-{kind}", manifest, lambda folder: write(folder, manifest))


def _videos(manifest: dict[str, Any], part: str) -> Iterator[tuple[str, int, Clip]]:
    """Id, class and clip of every video of a part."""
    from sklearn.datasets import load_digits  # slow to import, and needed once

    digits = load_digits().images * (255 / 16)  # the source counts ink from 0 to 16
    seed, size, num_frames = manifest["seed"], manifest["size"], manifest["num_frames"]
    order = np.random.default_rng(seed).permutation(len(digits))
    held_out = len(digits) // 5
    images = order[held_out:] if part == "train" else order[:held_out]
    number = manifest[f"{part}_videos"]
    rng = np.random.default_rng([seed, list(PARTS).index(part)])
    labels = rng.permutation(np.arange(number) % len(CLASSES))
    first = 1 if part == "train" else 1 + manifest["train_videos"]
    for index, label in enumerate(labels.tolist()):
        digit = digits[images[rng.integers(len(images))]]
        yield str(first + index), label, moving_digit(digit, label, num_frames, size, rng, manifest.get("moving"))


def _annotate(root: Path, part: str, videos: list[tuple[str, int]]) -> None:
    plain = {template.replace("[", "").replace("]", ""): str(i) for i, template in enumerate(TEMPLATES)}
    (root / "labels.json").write_text(json.dumps(plain, indent=1) + "\n")
    entries = [
        {
            "id": name,
            "label": TEMPLATES[label].replace("[something]", "a digit").replace("[Something]", "A digit"),
            "template": TEMPLATES[label],
            "placeholders": ["a digit"],
        }
        for name, label in videos
    ]
    (root / f"{PARTS[part]}.json").write_text(json.dumps(entries, indent=1) + "\n")


def _truth(clip: Clip) -> dict[str, Any]:
    return {"boxes": clip.boxes.tolist(), "moves": clip.moves.tolist()}


def _write_frames(root: Path, manifest: dict[str, Any]) -> None:
    (root / "frame_lists").mkdir()
    known: dict[str, Any] = {}
    for part in PARTS:
        rows, videos = ["original_vido_id video_id frame_id path labels"], []
        for number, (name, label, clip) in enumerate(_videos(manifest, part)):
            known[name] = _truth(clip)
            videos.append((name, label))
            (root / "frames" / name).mkdir(parents=True)
            for time, frame in enumerate(clip.frames):
                path = f"{name}/{name}_{time + 1:06d}.jpg"
                Image.fromarray(frame).save(root / "frames" / path, quality=95)
                rows.append(f'{name} {number} {time} {path} ""')
        (root / "frame_lists" / f"{part}.csv").write_text("\n".join(rows) + "\n")
        _annotate(root, part, videos)
    (root / TRUTH).write_text(json.dumps({"size": manifest["size"], "videos": known}) + "\n")


def _write_videos(root: Path, manifest: dict[str, Any]) -> None:
    (root / "videos").mkdir()
    known: dict[str, Any] = {}
    for part in PARTS:
        rows, videos = [], []
        for name, label, clip in _videos(manifest, part):
            known[name] = _truth(clip)
            write_film(clip.frames, root / "videos" / f"{name}.mp4", _FRAME_RATE)
            videos.append((name, label))
            rows.append(f"videos/{name}.mp4 {label}")
        (root / f"{part}.csv").write_text("\n".join(rows) + "\n")
        _annotate(root, part, videos)
    (root / TRUTH).write_text(json.dumps({"size": manifest["size"], "videos": known}) + "\n")
