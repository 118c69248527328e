"""Images, in folders and in tar files."""

from __future__ import annotations

import shutil
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from registry import reader

from frozenllm.vision2d.data import image_folder


@reader("vision2d: image")
class ImageFile:
    @staticmethod
    def write(folder: Path) -> Path:
        pixels = np.random.default_rng(0).integers(0, 255, (24, 24, 3), dtype=np.uint8)
        for name in ("a", "b"):
            (folder / "train" / name).mkdir(parents=True)
            Image.fromarray(pixels).save(folder / "train" / name / "x.jpg")
        return folder / "train" / "a" / "x.jpg"

    @staticmethod
    def read(path: Path) -> Any:
        return image_folder(str(path.parent.parent.parent), "train").read(0)

    @staticmethod
    def check(found: Any, expected: Any) -> None:
        assert found[1] == expected[1]


@reader("vision2d: tar")
class TarFile(ImageFile):
    @staticmethod
    def write(folder: Path) -> Path:
        ImageFile.write(folder)
        with tarfile.open(folder / "train.tar", "w") as archive:
            archive.add(folder / "train", arcname="train")
        shutil.rmtree(folder / "train")
        return folder / "train.tar"

    @staticmethod
    def read(path: Path) -> Any:
        data = image_folder(str(path.parent), "train")
        return [data.read(index) for index in range(len(data))]

    @staticmethod
    def check(found: Any, expected: Any) -> None:
        assert found
        assert all(0 <= label < 2 for _, label in found)
