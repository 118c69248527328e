"""Block weights in every layout, checkpoints of runs, studies."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf_files import write_gguf
from harness import digest
from PIL import Image
from registry import finite, reader
from small_models import make_model, save_model
from test_weights_meta import write_meta

from frozenllm.core import load_block, save_block
from frozenllm.core.analysis.study import Finding, Frame, Sample, Study, grid_marks, read_study
from frozenllm.core.training.checkpoint import FORMAT, read_checkpoint


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
        return load_block(place)


@functools.cache
def _llama() -> Any:
    return make_model("llama")


def _saved(folder: Path) -> Path:
    return save_model(_llama(), folder / "model")


@reader("core: block file")
class BlockFile(_Block):
    @staticmethod
    def write(folder: Path) -> Path:
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
        return write_meta(_llama(), folder / "meta") / "consolidated.00.pth"


@reader("core: params.json", "json")
class Params(Safetensors):
    @staticmethod
    def write(folder: Path) -> Path:
        return write_meta(_llama(), folder / "meta") / "params.json"


@reader("core: GGUF")
class GGUF(_Block):
    @staticmethod
    def write(folder: Path) -> Path:
        path = folder / "model.gguf"
        return write_gguf(_llama(), path)

    read = _Block.load


@reader("core: checkpoint of a run")
class Checkpoint:
    @staticmethod
    def write(folder: Path) -> Path:
        path = folder / "last.pt"
        torch.save({"format": FORMAT, "meta": {"config": {}}, "state_dict": {"model.w": torch.ones(64, 8)}}, path)
        return path

    @staticmethod
    def read(path: Path) -> Any:
        return read_checkpoint(path)

    @staticmethod
    def check(found: Any, expected: Any) -> None:
        assert isinstance(found["state_dict"], dict)


@reader("core: study.json", "json")
class StudyFile:
    @staticmethod
    def write(folder: Path) -> Path:
        sample = Sample("a", [Frame(Image.new("RGB", (8, 8)), grid_marks(2, 2))], {"magnitude": [0.0, 0.5, 1.0, 0.25]})
        Study("t", "vision2d", [Finding("IoU", 0.5)], [sample], ["n"]).save(folder)
        return folder / "study" / "study.json"

    @staticmethod
    def read(path: Path) -> Any:
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
