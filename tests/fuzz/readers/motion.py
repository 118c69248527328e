"""Scenarios, sequences and maps."""

from __future__ import annotations

import functools
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from registry import reader

from frozenllm.motion.data import argoverse1, argoverse2
from frozenllm.motion.data.argoverse1 import read_vector_map
from frozenllm.motion.toy import write_toy_argoverse1, write_toy_argoverse2


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
        return argoverse2(path.parents[2], "val").read(0)


@reader("motion: map json", "json")
class MapJson(Parquet):
    @staticmethod
    def write(folder: Path) -> Path:
        return next(_scenario(folder).glob("log_map_archive_*.json"))


@functools.cache
def _argoverse1() -> Path:
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
        return argoverse1(path.parents[2], "val").read(0)


@reader("motion: vector map xml")
class VectorMap:
    @staticmethod
    def write(folder: Path) -> Path:
        return Path(shutil.copy(next((_argoverse1() / "map_files").glob("*.xml")), folder))

    @staticmethod
    def read(path: Path) -> Any:
        return read_vector_map.__wrapped__(path)  # past the cache

    @staticmethod
    def check(found: Any, expected: Any) -> None:
        for value in vars(found).values():
            assert not np.issubdtype(value.dtype, np.floating) or np.isfinite(value).all()
