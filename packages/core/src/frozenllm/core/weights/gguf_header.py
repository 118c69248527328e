"""The header of a GGUF file (llama.cpp): metadata and tensor descriptions, read without trusting any count in it.

Layout, little-endian: ``GGUF``, version u32, tensor count u64, metadata count u64; per metadata entry a key, a type u32
and the value; per tensor a name, the number of dimensions u32, the dimensions u64 (fastest first), a type u32 and an
offset u64; then, at the next multiple of ``general.alignment``, the data. Strings are a u64 length and UTF-8 bytes.
Source: ``docs/gguf.md`` of the ggml repository. The gguf library's own reader loops over counts that it does not check.
"""

from __future__ import annotations

import mmap
import struct
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

_MAGIC = b"GGUF"
_VERSIONS = (2, 3)  # 1 has other lengths and is years out of use
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_MAX_DIMENSIONS = 4  # as in ggml
_LONGEST_KEPT = 65536  # items of an array; vocabularies are skipped


@dataclass(frozen=True)
class GGUFTensor:
    """A tensor as the header describes it.

    Attributes:
        shape: Slowest dimension first, as in torch.
        type: Number of its ggml type.
        start: First byte in the file.
    """

    shape: tuple[int, ...]
    type: int
    start: int


@dataclass(frozen=True)
class GGUFHeader:
    """What comes before the data.

    Attributes:
        metadata: Key -> value; strings in arrays and very long arrays are left out.
        tensors: Name -> description.
        size: Bytes in the file.
    """

    metadata: dict[str, Any]
    tensors: dict[str, GGUFTensor]
    size: int


def read_header(path: Path) -> GGUFHeader:
    """Read the header of a GGUF file.

    Args:
        path: The file.

    Raises:
        ValueError: It is missing, damaged, of an unknown version, or something else.
    """
    try:
        with path.open("rb") as file:
            if file.read(4) != _MAGIC:
                raise ValueError(f"{path}: is not a GGUF file.")
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                return _Reader(data).header()
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror}).") from error
    except (_Damaged, struct.error, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: truncated or not a GGUF file that can be read ({error}).") from error


class _Damaged(Exception):
    """What is wrong with the header."""


class _Reader:
    def __init__(self, data: mmap.mmap) -> None:
        self._data, self._at = data, len(_MAGIC)

    def header(self) -> GGUFHeader:
        version = self._number("I")
        if version not in _VERSIONS:
            raise _Damaged("it is big-endian" if version & 0xFFFF == 0 else f"its version is {version}")
        tensor_count, entry_count = self._number("Q"), self._number("Q")
        self._require(tensor_count * 24 + entry_count * 13)  # their shortest forms
        metadata: dict[str, Any] = {}
        for _ in range(entry_count):
            key = self._string()
            if key in metadata:
                raise _Damaged(f"the key {key!r} is there twice")
            metadata[key] = self._value(self._number("I"))
        tensors: dict[str, GGUFTensor] = {}
        for _ in range(tensor_count):
            name = self._string()
            if name in tensors:
                raise _Damaged(f"the tensor {name!r} is there twice")
            tensors[name] = self._tensor(name)
        alignment = metadata.get("general.alignment", 32)
        if not isinstance(alignment, int) or alignment < 1 or alignment & (alignment - 1):
            raise _Damaged(f"its alignment is {alignment!r}")
        start = -(-self._at // alignment) * alignment
        placed = {name: GGUFTensor(t.shape, t.type, start + t.start) for name, t in tensors.items()}
        return GGUFHeader(metadata, placed, len(self._data))

    def _tensor(self, name: str) -> GGUFTensor:
        dimensions = self._number("I")
        if not 1 <= dimensions <= _MAX_DIMENSIONS:
            raise _Damaged(f"tensor {name!r} has {dimensions} dimensions")
        shape = tuple(self._number("Q") for _ in range(dimensions))[::-1]
        # 0.125 bytes a weight are less than any type takes.
        if prod(shape) > 8 * len(self._data):
            raise _Damaged(f"tensor {name!r} of the shape {shape} cannot be in {len(self._data)} bytes")
        return GGUFTensor(shape, self._number("I"), self._number("Q"))

    def _value(self, kind: int) -> Any:
        if kind == _STRING:
            return self._string()
        if kind == _ARRAY:
            return self._array()
        if kind not in _SCALARS:
            raise _Damaged(f"a value has the unknown type {kind}")
        return self._number(_SCALARS[kind])

    def _array(self) -> list[Any] | None:
        kind, count = self._number("I"), self._number("Q")
        if kind == _STRING:
            self._require(count * 8)
            for _ in range(count):
                self._skip(self._number("Q"))
            return None
        if kind not in _SCALARS:  # llama.cpp does not know nested arrays either
            raise _Damaged(f"an array holds values of the unknown type {kind}")
        width = struct.calcsize(_SCALARS[kind])
        self._require(count * width)
        if count > _LONGEST_KEPT:
            self._skip(count * width)
            return None
        return [self._number(_SCALARS[kind]) for _ in range(count)]

    def _string(self) -> str:
        length = self._number("Q")
        start = self._at
        self._skip(length)
        return self._data[start : self._at].decode("utf-8")

    def _number(self, code: str) -> Any:
        (value,) = struct.unpack_from(f"<{code}", self._data, self._at)
        self._at += struct.calcsize(code)
        # The shortest decimal that gives this float32 is the number that was meant: 1e-06, not 9.999999974752427e-07.
        return float(str(np.float32(value))) if code == "f" else value

    def _skip(self, length: int) -> None:
        self._require(length)
        self._at += length

    def _require(self, length: int) -> None:
        if length > len(self._data) - self._at:
            raise _Damaged(f"{length} bytes are announced, {len(self._data) - self._at} are left")
