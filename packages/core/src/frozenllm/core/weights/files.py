"""Tensor files of transformers' layout: safetensors and ``.bin``, one file or sharded with an index."""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from frozenllm.core.weights.pickles import load_pickle
from frozenllm.core.weights.sources import TensorFiles, TensorInfo

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
_LFS = b"version https://git-lfs"


class SafetensorsFile(TensorFiles):
    """One safetensors file; only its header is read until a tensor is asked for.

    Args:
        path: The file.

    Raises:
        ValueError: The file is missing, truncated or something else.
    """

    def __init__(self, path: Path) -> None:
        self.where = str(path)
        refuse_lfs_pointer(path)
        try:
            self._file = safe_open(str(path), framework="pt", device="cpu")
            self._names = frozenset(self._file.keys())
            self.metadata: dict[str, str] = self._file.metadata() or {}
        except (SafetensorError, OSError, UnicodeDecodeError) as error:
            raise ValueError(f"{path}: truncated or not a safetensors file ({error}).") from error

    def names(self) -> Collection[str]:
        return self._names

    def info(self, name: str) -> TensorInfo:
        if name not in self._names:
            raise ValueError(f"{self.where}: tensor {name} is missing.")
        try:
            piece = self._file.get_slice(name)
            shape, stored = tuple(piece.get_shape()), piece.get_dtype()
        except SafetensorError as error:
            raise ValueError(f"{self.where}: tensor {name} cannot be read ({error}).") from error
        # Types that are not in the list (4- and 6-bit floats) are refused as quantised, like bytes.
        return TensorInfo(self.where, name, shape, DTYPES.get(str(stored), torch.uint8))

    def read(self, name: str) -> Tensor:
        try:
            return self._file.get_tensor(name)
        except (SafetensorError, OSError) as error:
            raise ValueError(f"{self.where}: tensor {name} cannot be read ({error}).") from error


class PickleFile(TensorFiles):
    """One ``.bin`` or ``.pth`` file with a flat dictionary of tensors, memory-mapped.

    Args:
        path: The file.

    Raises:
        ValueError: As `load_pickle`, or the file holds something else than a dictionary.
    """

    def __init__(self, path: Path) -> None:
        self.where = str(path)
        refuse_lfs_pointer(path)
        content = load_pickle(path)
        if not isinstance(content, dict):
            raise ValueError(f"{path}: holds a {type(content).__name__}, not a dictionary of tensors.")
        self._tensors = {name: t for name, t in content.items() if isinstance(name, str) and isinstance(t, Tensor)}

    def names(self) -> Collection[str]:
        return self._tensors.keys()

    def info(self, name: str) -> TensorInfo:
        tensor = self.read(name)
        return TensorInfo(self.where, name, tuple(tensor.shape), tensor.dtype)

    def read(self, name: str) -> Tensor:
        if name not in self._tensors:
            raise ValueError(f"{self.where}: tensor {name} is missing.")
        return self._tensors[name].detach()


class ShardedFiles(TensorFiles):
    """Several files with an index that says which one holds which tensor; a file is opened when it is needed.

    Args:
        index: The ``*.index.json``.
        kind: Reader of one file.

    Raises:
        ValueError: The index is damaged.
    """

    def __init__(self, index: Path, kind: type[SafetensorsFile] | type[PickleFile]) -> None:
        self.where = str(index.parent)
        self._index, self._kind = index, kind
        self._open: dict[str, TensorFiles] = {}
        shards = read_json(index).get("weight_map")
        if not isinstance(shards, dict) or not all(isinstance(shard, str) for shard in shards.values()):
            raise ValueError(f'{index}: has no "weight_map" from tensor names to files.')
        for shard in set(shards.values()):
            if Path(shard).name != shard:
                raise ValueError(f"{index}: names the file {shard!r}, which is not inside its folder.")
        self._shards: dict[str, str] = shards

    def names(self) -> Collection[str]:
        return self._shards.keys()

    def info(self, name: str) -> TensorInfo:
        return self.shard(name).info(name)

    def read(self, name: str) -> Tensor:
        return self.shard(name).read(name)

    def shard(self, name: str) -> TensorFiles:
        """The file that holds a tensor.

        Raises:
            ValueError: The index does not know the tensor, or the file is missing or damaged.
        """
        if name not in self._shards:
            raise ValueError(f"{self._index}: tensor {name} is missing.")
        shard = self._shards[name]
        if shard not in self._open:
            self._open[shard] = self.open_shard(shard, name)
        return self._open[shard]

    def open_shard(self, shard: str, tensor: str) -> TensorFiles:
        """Open one of the files, because it should hold ``tensor``.

        Raises:
            ValueError: It is missing or damaged.
        """
        path = self._index.parent / shard
        if not path.is_file():
            raise ValueError(f"{path}: missing, but {self._index.name} says that it holds the tensor {tensor}.")
        return self._kind(path)


def open_tensor_files(folder: Path) -> TensorFiles:
    """The weights of a local folder in transformers' layout; safetensors are preferred.

    Raises:
        ValueError: The folder has none, or they are damaged.
    """
    if (path := folder / "model.safetensors").is_file():
        return SafetensorsFile(path)
    if (path := folder / "model.safetensors.index.json").is_file():
        return ShardedFiles(path, SafetensorsFile)
    if (path := folder / "pytorch_model.bin").is_file():
        return PickleFile(path)
    if (path := folder / "pytorch_model.bin.index.json").is_file():
        return ShardedFiles(path, PickleFile)
    raise ValueError(
        f"{folder}: has a config.json but no weights; expected model.safetensors or pytorch_model.bin, or their "
        "*.index.json with the files it names."
    )


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file that holds an object.

    Raises:
        ValueError: It is missing, is not JSON, or holds something else.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror}).") from error
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: is not valid JSON ({error}).") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path}: holds a JSON {type(content).__name__}, not an object.")
    return content


def refuse_lfs_pointer(path: Path) -> None:
    """Raise where a clone without Git LFS left a pointer in the place of the weights."""
    try:
        with path.open("rb") as file:
            start = file.read(len(_LFS))
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror}).") from error
    if start == _LFS:
        raise ValueError(f'{path}: is a Git LFS pointer, not the weights; run "git lfs pull" in its folder.')
