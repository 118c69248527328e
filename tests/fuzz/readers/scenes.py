"""Scans of rooms, questions about them, word vectors."""

from __future__ import annotations

import functools
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from registry import reader

from frozenllm.vqa.scenes.arrays import read_scene
from frozenllm.vqa.scenes.files import _published, answers_of, sqa3d_questions
from frozenllm.vqa.scenes.scannet import read_labels, scan_arrays
from frozenllm.vqa.scenes.words import Vocabulary, glove
from frozenllm.vqa.toy import write_rooms


@functools.cache
def _rooms() -> Path:
    return write_rooms(train=2, val=1, test=1, per_room=4)


class _Scan:
    @staticmethod
    def folder(folder: Path) -> Path:
        shutil.copy(_rooms() / "scannetv2-labels.combined.tsv", folder)
        scan = next(iter(sorted((_rooms() / "scans").iterdir())))
        return Path(shutil.copytree(scan, folder / scan.name))

    @staticmethod
    def read(path: Path) -> Any:
        folder = path.parent if path.suffix != ".tsv" else next(p for p in path.parent.iterdir() if p.is_dir())
        return scan_arrays(folder, read_labels(folder.parent / "scannetv2-labels.combined.tsv"))

    @staticmethod
    def check(found: Any, expected: Any) -> None:
        assert set(found) == set(expected)
        for name, array in found.items():
            assert np.isfinite(array).all(), f"{name} is not finite"


@reader("vqa: ScanNet mesh")
class Mesh(_Scan):
    @staticmethod
    def write(folder: Path) -> Path:
        return next(_Scan.folder(folder).glob("*_vh_clean_2.ply"))


@reader("vqa: ScanNet aggregation", "json")
class Aggregation(_Scan):
    @staticmethod
    def write(folder: Path) -> Path:
        return next(_Scan.folder(folder).glob("*.aggregation.json"))


@reader("vqa: ScanNet segments", "json")
class Segments(_Scan):
    @staticmethod
    def write(folder: Path) -> Path:
        return next(_Scan.folder(folder).glob("*.segs.json"))


@reader("vqa: ScanNet alignment", "lines")
class Alignment(_Scan):
    @staticmethod
    def write(folder: Path) -> Path:
        return next(_Scan.folder(folder).glob("*.txt"))


@reader("vqa: ScanNet labels", "lines")
class ScanLabels(_Scan):
    @staticmethod
    def write(folder: Path) -> Path:
        return _Scan.folder(folder).parent / "scannetv2-labels.combined.tsv"


@reader("vqa: SQA3D questions", "json")
class SituatedQuestions:
    @staticmethod
    def write(folder: Path) -> Path:
        root = Path(shutil.copytree(_rooms() / "sqa_task", folder / "sqa_task"))
        return next(root.rglob("*questions_train*.json"))

    @staticmethod
    def read(path: Path) -> Any:
        root = path
        while root.name != "sqa_task":
            root = root.parent
        _published.cache_clear()
        return answers_of(str(root.parent)), sqa3d_questions(str(root.parent), "train")

    @staticmethod
    def check(found: Any, expected: Any) -> None:
        answers, questions = found
        assert questions
        assert all(isinstance(answer, str) for answer in answers)
        for question in questions:
            assert isinstance(question.question, str)
            assert isinstance(question.situation, str)
            assert isinstance(question.scene_id, str)
            assert len(question.pose) == 7
            assert np.isfinite(question.pose).all()


@reader("vqa: SQA3D annotations", "json")
class SituatedAnnotations(SituatedQuestions):
    @staticmethod
    def write(folder: Path) -> Path:
        SituatedQuestions.write(folder)
        return next((folder / "sqa_task").rglob("*annotations_train*.json"))


@reader("vqa: SQA3D answer_dict.json", "json")
class AnswerDictionary(SituatedQuestions):
    @staticmethod
    def write(folder: Path) -> Path:
        SituatedQuestions.write(folder)
        return next((folder / "sqa_task").rglob("answer_dict.json"))


@reader("vqa: prepared scene")
class PreparedScene:
    @staticmethod
    def write(folder: Path) -> Path:
        shutil.copytree(_rooms() / "scannet_data", folder / "scannet_data")
        return next((folder / "scannet_data").glob("*_aligned_vert.npy"))

    @staticmethod
    def read(path: Path) -> Any:
        return read_scene(path.parent, path.name.removesuffix("_aligned_vert.npy"))

    @staticmethod
    def check(found: Any, expected: Any) -> None:
        for name, array in vars(found).items():
            if isinstance(array, np.ndarray) and np.issubdtype(array.dtype, np.floating):
                assert np.isfinite(array).all(), f"{name} is not finite"


@reader("vqa: GloVe text", "lines")
class Glove:
    @staticmethod
    def write(folder: Path) -> Path:
        rng = np.random.default_rng(0)
        lines = [f"{word} {' '.join(f'{x:.4f}' for x in rng.normal(size=8))}" for word in ("chair", "left", "table")]
        (folder / "glove.txt").write_text("\n".join(lines) + "\n")
        return folder / "glove.txt"

    @staticmethod
    def read(path: Path) -> Any:
        return glove(path, Vocabulary(["chair", "left", "table"]), width=8)

    @staticmethod
    def check(found: Any, expected: Any) -> None:
        assert found.shape == expected.shape
        assert found.isfinite().all()
