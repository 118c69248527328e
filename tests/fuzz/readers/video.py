"""Films and the lists of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from registry import reader

from frozenllm.core.film import write_film
from frozenllm.video.data.annotations import check_labels, read_annotations, read_csv
from frozenllm.video.data.decoding import read_video


@reader("video: mp4")
class Mp4:
    @staticmethod
    def write(folder: Path) -> Path:
        frames = np.random.default_rng(0).integers(0, 255, (12, 32, 32, 3), dtype=np.uint8)
        write_film(frames, folder / "a.mp4")
        return folder / "a.mp4"

    @staticmethod
    def read(path: Path) -> Any:
        return read_video(path, lambda available: np.linspace(0, available - 1, 4).round().astype(int), "pyav")

    @staticmethod
    def check(found: Any, expected: Any) -> None:
        assert found.shape[:2] == (4, 3)
        assert found.dtype == torch.uint8


@reader("video: csv", "lines")
class VideoCsv:
    @staticmethod
    def write(folder: Path) -> Path:
        (folder / "train.csv").write_text("".join(f"videos/{i}.mp4 {i % 3}\n" for i in range(9)))
        return folder / "train.csv"

    @staticmethod
    def read(path: Path) -> Any:
        videos = read_csv(path)
        check_labels(videos, 3, path)
        return videos

    @staticmethod
    def check(found: Any, expected: Any) -> None:
        assert found
        assert all(video.name and 0 <= video.label < 3 for video in found)


@reader("video: annotations", "json")
class Annotations:
    @staticmethod
    def write(folder: Path) -> Path:
        (folder / "labels.json").write_text(json.dumps({"Holding something": "0", "Pushing something": "1"}))
        entries = [{"id": str(i), "label": "x", "template": "Holding [something]"} for i in range(4)]
        (folder / "train.json").write_text(json.dumps(entries))
        return folder / "train.json"

    @staticmethod
    def read(path: Path) -> Any:
        return read_annotations(path.parent / "labels.json", path)

    @staticmethod
    def check(found: Any, expected: Any) -> None:
        assert all(isinstance(video.name, str) and video.label in (0, 1) for video in found)


@reader("video: labels.json", "json")
class Labels(Annotations):
    @staticmethod
    def write(folder: Path) -> Path:
        Annotations.write(folder)
        return folder / "labels.json"

    @staticmethod
    def read(path: Path) -> Any:
        return Annotations.read(path.parent / "train.json")
