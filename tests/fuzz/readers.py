"""Every reader of outside files, with a valid file to damage and what an accepted one must satisfy."""

from __future__ import annotations

import functools
import importlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from harness import Reader, digest

for _module in (  # before processes are forked, so that each need not import them again
    "av",
    "gguf_files",
    "test_weights_meta",
    "frozenllm.core.training",
    "frozenllm.core.analysis.study",
    "frozenllm.motion.data",
    "frozenllm.motion.toy",
    "frozenllm.pointcloud.data",
    "frozenllm.pointcloud.toy",
    "frozenllm.video.data",
    "frozenllm.vision2d.data",
    "frozenllm.vqa.data",
    "frozenllm.vqa.toy",
):
    importlib.import_module(_module)

READERS: list[Reader] = []


def reader(name: str, form: str = "bytes") -> Callable[[type], type]:
    """Register a class with static ``write``, ``read`` and ``check``."""

    def register(cls: type) -> type:
        READERS.append(Reader(name, cls.write, cls.read, cls.check, form))
        return cls

    return register


def finite(tensors: Any) -> None:
    """All numbers are finite."""
    for tensor in tensors:
        assert torch.as_tensor(np.asarray(tensor)).isfinite().all() if not torch.is_tensor(tensor) else True
        assert not torch.is_tensor(tensor) or tensor.isfinite().all()


def weights(block: Any) -> dict[str, torch.Tensor]:
    """The tensors of a loaded block."""
    return {name: buffer for name, buffer in block.named_buffers() if buffer.is_floating_point()}


class _Block:
    """A block loaded from a folder or a file; as large as the valid one, and finite."""

    @staticmethod
    def check(block: Any, expected: Any) -> None:
        finite(weights(block).values())

    @staticmethod
    def load(place: Path) -> Any:
        from frozenllm.core import load_block

        return load_block(place)


@functools.cache
def _llama() -> Any:
    from small_models import make_model

    return make_model("llama")


def _saved(folder: Path) -> Path:
    from small_models import save_model

    return save_model(_llama(), folder / "model")


@reader("core: block file")
class BlockFile(_Block):
    @staticmethod
    def write(folder: Path) -> Path:
        from frozenllm.core import load_block, save_block

        save_block(load_block(_saved(folder)), folder / "block.safetensors")
        return folder / "block.safetensors"

    read = _Block.load

    @staticmethod
    def check(block: Any, expected: Any) -> None:
        assert digest(weights(block)) == digest(weights(expected)), "other weights than were saved"


@reader("core: model.safetensors")
class Safetensors(_Block):
    @staticmethod
    def write(folder: Path) -> Path:
        return _saved(folder) / "model.safetensors"

    @staticmethod
    def read(path: Path) -> Any:
        return _Block.load(path.parent)


@reader("core: config.json", "json")
class Config(Safetensors):
    @staticmethod
    def write(folder: Path) -> Path:
        return _saved(folder) / "config.json"


@reader("core: pytorch_model.bin")
class Bin(Safetensors):
    @staticmethod
    def write(folder: Path) -> Path:
        place = _saved(folder)
        (place / "model.safetensors").unlink()
        torch.save(_llama().state_dict(), place / "pytorch_model.bin")
        return place / "pytorch_model.bin"


@reader("core: consolidated.00.pth")
class Meta(Safetensors):
    @staticmethod
    def write(folder: Path) -> Path:
        from test_weights_meta import write_meta

        return write_meta(_llama(), folder / "meta") / "consolidated.00.pth"


@reader("core: params.json", "json")
class Params(Safetensors):
    @staticmethod
    def write(folder: Path) -> Path:
        from test_weights_meta import write_meta

        return write_meta(_llama(), folder / "meta") / "params.json"


@reader("core: GGUF")
class GGUF(_Block):
    @staticmethod
    def write(folder: Path) -> Path:
        from gguf_files import write_gguf

        path = folder / "model.gguf"
        return write_gguf(_llama(), path)

    read = _Block.load


@reader("core: checkpoint of a run")
class Checkpoint:
    @staticmethod
    def write(folder: Path) -> Path:
        from frozenllm.core.training.checkpoint import FORMAT

        path = folder / "last.pt"
        torch.save({"format": FORMAT, "meta": {"config": {}}, "state_dict": {"model.w": torch.ones(64, 8)}}, path)
        return path

    @staticmethod
    def read(path: Path) -> Any:
        from frozenllm.core.training.checkpoint import read_checkpoint

        return read_checkpoint(path)

    @staticmethod
    def check(found: Any, expected: Any) -> None:
        assert isinstance(found["state_dict"], dict)


@reader("core: study.json", "json")
class StudyFile:
    @staticmethod
    def write(folder: Path) -> Path:
        from PIL import Image

        from frozenllm.core.analysis.study import Finding, Frame, Sample, Study, grid_marks

        sample = Sample("a", [Frame(Image.new("RGB", (8, 8)), grid_marks(2, 2))], {"magnitude": [0.0, 0.5, 1.0, 0.25]})
        Study("t", "vision2d", [Finding("IoU", 0.5)], [sample], ["n"]).save(folder)
        return folder / "study" / "study.json"

    @staticmethod
    def read(path: Path) -> Any:
        from frozenllm.core.analysis.study import read_study

        return read_study(path.parent.parent)

    @staticmethod
    def check(found: Any, expected: Any) -> None:
        assert found is not None
        for entry in found.findings:
            assert isinstance(entry.name, str)
            assert isinstance(entry.value, int | float)
            assert np.isfinite(entry.value)
        for sample in found.samples:
            assert all(0 <= value <= 1 for values in sample.activations.values() for value in values)


@reader("vision2d: image")
class ImageFile:
    @staticmethod
    def write(folder: Path) -> Path:
        from PIL import Image

        pixels = np.random.default_rng(0).integers(0, 255, (24, 24, 3), dtype=np.uint8)
        for name in ("a", "b"):
            (folder / "train" / name).mkdir(parents=True)
            Image.fromarray(pixels).save(folder / "train" / name / "x.jpg")
        return folder / "train" / "a" / "x.jpg"

    @staticmethod
    def read(path: Path) -> Any:
        from frozenllm.vision2d.data import image_folder

        return image_folder(str(path.parent.parent.parent), "train").read(0)

    @staticmethod
    def check(found: Any, expected: Any) -> None:
        assert found[1] == expected[1]


@reader("vision2d: tar")
class TarFile(ImageFile):
    @staticmethod
    def write(folder: Path) -> Path:
        import tarfile

        ImageFile.write(folder)
        with tarfile.open(folder / "train.tar", "w") as archive:
            archive.add(folder / "train", arcname="train")
        shutil.rmtree(folder / "train")
        return folder / "train.tar"

    @staticmethod
    def read(path: Path) -> Any:
        from frozenllm.vision2d.data import image_folder

        data = image_folder(str(path.parent), "train")
        return [data.read(index) for index in range(len(data))]

    @staticmethod
    def check(found: Any, expected: Any) -> None:
        assert found
        assert all(0 <= label < 2 for _, label in found)


@reader("video: mp4")
class Mp4:
    @staticmethod
    def write(folder: Path) -> Path:
        from frozenllm.core.film import write_film

        frames = np.random.default_rng(0).integers(0, 255, (12, 32, 32, 3), dtype=np.uint8)
        write_film(frames, folder / "a.mp4")
        return folder / "a.mp4"

    @staticmethod
    def read(path: Path) -> Any:
        from frozenllm.video.data.decoding import read_video

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
        from frozenllm.video.data.annotations import check_labels, read_csv

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
        from frozenllm.video.data.annotations import read_annotations

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


@reader("pointcloud: h5")
class H5:
    @staticmethod
    def write(folder: Path) -> Path:
        from frozenllm.pointcloud.toy import write_scanobjectnn

        root = write_scanobjectnn(folder / "scans", train=6, test=3, points=32)
        return next(path for path in sorted(root.rglob("*.h5")) if "training" in path.name)

    @staticmethod
    def read(path: Path) -> Any:
        from frozenllm.pointcloud.data.scanobjectnn import read_h5

        return read_h5(path)

    @staticmethod
    def check(found: Any, expected: Any) -> None:
        clouds, labels = found
        assert clouds.ndim == 3
        assert clouds.shape[2] == 3
        assert len(clouds) == len(labels) > 0
        assert np.issubdtype(labels.dtype, np.integer)


@reader("pointcloud: text of a shape", "lines")
class ShapeText:
    @staticmethod
    def write(folder: Path) -> Path:
        from frozenllm.pointcloud.toy import write_modelnet

        root = write_modelnet(folder / "shapes", train=4, test=2, points=24)
        listed = (root / "modelnet40_train.txt").read_text().split()[0]
        return root / listed.rsplit("_", 1)[0] / f"{listed}.txt"

    @staticmethod
    def read(path: Path) -> Any:
        from frozenllm.pointcloud.data.modelnet import read_text

        return read_text(path.parent.parent, "train", points=16)

    @staticmethod
    def check(found: Any, expected: Any) -> None:
        clouds, labels = found
        assert len(clouds) == len(labels) == len(expected[0])
        finite(clouds)


@reader("pointcloud: .dat of pickled arrays")
class Dat:
    @staticmethod
    def write(folder: Path) -> Path:
        import pickle

        rng = np.random.default_rng(0)
        clouds = [rng.normal(size=(16, 6)).astype(np.float32) for _ in range(3)]
        path = folder / "modelnet40_train_8192pts_fps.dat"
        path.write_bytes(pickle.dumps([clouds, [np.array([i]) for i in range(3)]]))
        return path

    @staticmethod
    def read(path: Path) -> Any:
        from frozenllm.pointcloud.data.modelnet import read_dat

        return read_dat(path)

    @staticmethod
    def check(found: Any, expected: Any) -> None:
        clouds, labels = found
        assert len(clouds) == len(labels)
        assert all(cloud.ndim == 2 for cloud in clouds)


def tensors(value: Any) -> list[torch.Tensor]:
    """All tensors of nested dicts."""
    if torch.is_tensor(value):
        return [value]
    return [tensor for entry in value.values() for tensor in tensors(entry)] if isinstance(value, dict) else []


class _Sample:
    """A sample as a model gets it."""

    @staticmethod
    def check(found: Any, expected: Any) -> None:
        assert set(found) == set(expected)
        for tensor in tensors(found):
            assert not tensor.is_floating_point() or tensor.isfinite().all()


@functools.cache
def _argoverse2() -> Path:
    from frozenllm.motion.toy import write_toy_argoverse2

    return write_toy_argoverse2(train=1, val=1, test=1)


def _scenario(folder: Path) -> Path:
    source = next((_argoverse2() / "val").iterdir())
    return Path(shutil.copytree(source, folder / "val" / source.name))


@reader("motion: scenario parquet")
class Parquet(_Sample):
    @staticmethod
    def write(folder: Path) -> Path:
        return next(_scenario(folder).glob("scenario_*.parquet"))

    @staticmethod
    def read(path: Path) -> Any:
        from frozenllm.motion.data import argoverse2

        return argoverse2(path.parents[2], "val").read(0)


@reader("motion: map json", "json")
class MapJson(Parquet):
    @staticmethod
    def write(folder: Path) -> Path:
        return next(_scenario(folder).glob("log_map_archive_*.json"))


@functools.cache
def _argoverse1() -> Path:
    from frozenllm.motion.toy import write_toy_argoverse1

    return write_toy_argoverse1(train=1, val=1, test=1)


@reader("motion: sequence csv", "lines")
class Sequence(_Sample):
    @staticmethod
    def write(folder: Path) -> Path:
        shutil.copytree(_argoverse1() / "val", folder / "val")
        shutil.copytree(_argoverse1() / "map_files", folder / "map_files")
        return next((folder / "val" / "data").iterdir())

    @staticmethod
    def read(path: Path) -> Any:
        from frozenllm.motion.data import argoverse1

        return argoverse1(path.parents[2], "val").read(0)


@reader("motion: vector map xml")
class VectorMap:
    @staticmethod
    def write(folder: Path) -> Path:
        return Path(shutil.copy(next((_argoverse1() / "map_files").glob("*.xml")), folder))

    @staticmethod
    def read(path: Path) -> Any:
        from frozenllm.motion.data.argoverse1 import read_vector_map

        return read_vector_map.__wrapped__(path)  # past the cache

    @staticmethod
    def check(found: Any, expected: Any) -> None:
        for value in vars(found).values():
            assert not np.issubdtype(value.dtype, np.floating) or np.isfinite(value).all()


@functools.cache
def _vqa() -> Path:
    from frozenllm.vqa.toy import write_vqa

    return write_vqa(train=6, val=3, test=2)


class _Questions:
    @staticmethod
    def read(path: Path) -> Any:
        from frozenllm.vqa.data.vqav2 import _read_json, vqav2_records

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
    from frozenllm.vqa.toy import write_flickr

    return write_flickr(train=4, val=2, test=2)


@reader("vqa: Karpathy's json", "json")
class Captions:
    @staticmethod
    def write(folder: Path) -> Path:
        root = Path(shutil.copytree(_flickr(), folder / "flickr"))
        return next(root.rglob("dataset_flickr30k.json"))

    @staticmethod
    def read(path: Path) -> Any:
        from frozenllm.vqa.data.flickr30k import flickr30k_images

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
        import pyarrow as pa

        table = pa.table(
            {"image": [b"x" * 40] * 4, "caption": [["a", "b"]] * 4, "image_id": [str(i) for i in range(4)]}
        )
        path = folder / "f30k_caption_karpathy_train.arrow"
        with pa.OSFile(str(path), "wb") as sink, pa.RecordBatchFileWriter(sink, table.schema) as writer:
            writer.write_table(table)
        return path

    @staticmethod
    def read(path: Path) -> Any:
        from frozenllm.vqa.data.flickr30k import flickr30k_images

        return flickr30k_images(str(path.parent), "train", protocol="honest", format="arrow")

    check = Captions.check


@functools.cache
def _rooms() -> Path:
    from frozenllm.vqa.toy import write_rooms

    return write_rooms(train=2, val=1, test=1, per_room=4)


class _Scan:
    @staticmethod
    def folder(folder: Path) -> Path:
        shutil.copy(_rooms() / "scannetv2-labels.combined.tsv", folder)
        scan = next(iter(sorted((_rooms() / "scans").iterdir())))
        return Path(shutil.copytree(scan, folder / scan.name))

    @staticmethod
    def read(path: Path) -> Any:
        from frozenllm.vqa.scenes.scannet import read_labels, scan_arrays

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
        from frozenllm.vqa.scenes.files import _published, answers_of, sqa3d_questions

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
        from frozenllm.vqa.scenes.arrays import read_scene

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
        from frozenllm.vqa.scenes.words import Vocabulary, glove

        return glove(path, Vocabulary(["chair", "left", "table"]), width=8)

    @staticmethod
    def check(found: Any, expected: Any) -> None:
        assert found.shape == expected.shape
        assert found.isfinite().all()
