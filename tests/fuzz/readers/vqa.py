"""Questions and captions, as json and as Arrow tables."""

from __future__ import annotations

import functools
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
from registry import reader

from frozenllm.vqa.data.flickr30k import flickr30k_images
from frozenllm.vqa.data.vqav2 import _read_json, vqav2_records
from frozenllm.vqa.toy import write_flickr, write_vqa


@functools.cache
def _vqa() -> Path:
    return write_vqa(train=6, val=3, test=2)


class _Questions:
    @staticmethod
    def read(path: Path) -> Any:
        root = path.parent
        while not (root / "toy.json").exists():
            root = root.parent
        _read_json.cache_clear()
        return vqav2_records(str(root), "train", protocol="meter")

    @staticmethod
    def check(found: Any, expected: Any) -> None:
        assert found
        for record in found:
            assert isinstance(record.question, str)
            assert record.majority is None or isinstance(record.majority, str)
            assert all(isinstance(answer, str) for answer in record.answers or ())
            assert isinstance(record.question_id, int)


@reader("vqa: questions json", "json")
class Questions(_Questions):
    @staticmethod
    def write(folder: Path) -> Path:
        root = Path(shutil.copytree(_vqa(), folder / "vqa"))
        return root / "v2_OpenEnded_mscoco_train2014_questions.json"


@reader("vqa: annotations json", "json")
class VQAAnnotations(_Questions):
    @staticmethod
    def write(folder: Path) -> Path:
        root = Path(shutil.copytree(_vqa(), folder / "vqa"))
        return root / "v2_mscoco_train2014_annotations.json"


@functools.cache
def _flickr() -> Path:
    return write_flickr(train=4, val=2, test=2)


@reader("vqa: Karpathy's json", "json")
class Captions:
    @staticmethod
    def write(folder: Path) -> Path:
        root = Path(shutil.copytree(_flickr(), folder / "flickr"))
        return next(root.rglob("dataset_flickr30k.json"))

    @staticmethod
    def read(path: Path) -> Any:
        root = path.parent
        while not (root / "toy.json").exists():
            root = root.parent
        return flickr30k_images(str(root), "train")

    @staticmethod
    def check(found: Any, expected: Any) -> None:
        for image in found:
            assert image.captions
            assert all(isinstance(caption, str) for caption in image.captions)


@reader("vqa: arrow")
class Arrow:
    @staticmethod
    def write(folder: Path) -> Path:
        table = pa.table(
            {"image": [b"x" * 40] * 4, "caption": [["a", "b"]] * 4, "image_id": [str(i) for i in range(4)]}
        )
        path = folder / "f30k_caption_karpathy_train.arrow"
        with pa.OSFile(str(path), "wb") as sink, pa.RecordBatchFileWriter(sink, table.schema) as writer:
            writer.write_table(table)
        return path

    @staticmethod
    def read(path: Path) -> Any:
        return flickr30k_images(str(path.parent), "train", protocol="honest", format="arrow")

    check = Captions.check
