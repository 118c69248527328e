"""What every reader of weights has in common: tensors that are described first and read one at a time."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

from frozenllm.core.spec import BlockSpec

STORED_DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


@dataclass(frozen=True)
class Quantization:
    """How quantised weights are stored.

    Attributes:
        name: Name of the format, such as ``"Q4_K"``.
        bytes_per_weight: Stored size of a weight, its share of the scales included.
    """

    name: str
    bytes_per_weight: float


@dataclass(frozen=True)
class TensorInfo:
    """A tensor as a file describes it.

    Attributes:
        file: Name of the file, for messages.
        name: Name inside the file.
        shape: Its shape.
        dtype: Data type it is stored in; of quantised tensors, the one that they are read as.
        quantization: How it is stored, where it is quantised.
    """

    file: str
    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    quantization: Quantization | None = None


class TensorFiles(ABC):
    """Named tensors in one or several files, whatever the format.

    Attributes:
        where: The folder or file, for messages.
    """

    where: str

    @abstractmethod
    def names(self) -> Collection[str]:
        """Names of all tensors."""

    @abstractmethod
    def info(self, name: str) -> TensorInfo:
        """Description of a tensor, from the file's header.

        Raises:
            ValueError: The file lacks it, or cannot be read.
        """

    @abstractmethod
    def read(self, name: str) -> Tensor:
        """The tensor, on the CPU, in its stored dtype; it may be a view of a memory-mapped file.

        Raises:
            ValueError: The file is damaged.
        """


@dataclass(frozen=True)
class LazyTensor:
    """A canonical tensor that is read when it is needed.

    Attributes:
        file: File or files that hold it, for messages.
        name: Its name, or names, there.
        shape: Canonical shape.
        dtype: Stored data type; of quantised tensors, the one that they are read as.
        read: Reads it.
        quantization: How it is stored, where it is quantised.
    """

    file: str
    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    read: Callable[[], Tensor]
    quantization: Quantization | None = None

    @property
    def nbytes(self) -> int:
        """Stored size in bytes."""
        width = self.dtype.itemsize if self.quantization is None else self.quantization.bytes_per_weight
        return round(prod(self.shape) * width)

    @property
    def stored(self) -> str:
        """Name of the stored data type or quantisation."""
        return str(self.dtype).removeprefix("torch.") if self.quantization is None else self.quantization.name


class LazyTensors(Mapping[str, Tensor]):
    """Canonical name -> tensor, read on every access and never kept.

    Args:
        parts: Canonical name -> how to read it.
    """

    def __init__(self, parts: Mapping[str, LazyTensor]) -> None:
        self.parts = dict(parts)

    def __getitem__(self, name: str) -> Tensor:
        # The caller may build its model inside `torch.device("meta")`.
        with torch.device("cpu"), torch.no_grad():
            return self.parts[name].read()

    def __contains__(self, name: object) -> bool:
        return name in self.parts

    def __iter__(self) -> Iterator[str]:
        return iter(self.parts)

    def __len__(self) -> int:
        return len(self.parts)


class BlockSource(ABC):
    """A language model (or a part of one) that blocks can be read from.

    A new kind of source (another file format, a hub) is a subclass of this and one line in `resolve.open_source`.

    Attributes:
        source: What the record names as the source; `reload_blocks` gives it to `open_source` again.
        revision: Resolved revision of a hub repository, or None.
        layers: Layers that can be read, by their index in the language model.
        kind: The layout in words, for ``frozenllm inspect``.
    """

    source: str
    revision: str | None = None
    layers: tuple[int, ...]
    kind: str

    @property
    def default_layers(self) -> tuple[int, ...]:
        """Layers to take where the user names none: the last one."""
        return self.layers[-1:]

    def localize(self, layers: tuple[int, ...]) -> BlockSource:
        """A source with the weights of these layers on this machine; the source itself unless it is a remote one."""
        return self

    def verify(self, layers: tuple[int, ...], sha256: str) -> None:  # noqa: B027 - most sources cannot know
        """Raise where the source knows what these layers hash to, and it is something else."""

    @abstractmethod
    def spec(self, layer: int) -> BlockSpec:
        """What a layer computes; reads no weights."""

    @abstractmethod
    def tensors(self, layer: int) -> LazyTensors:
        """All tensors of a layer, checked against the spec's names and shapes.

        Raises:
            ValueError: A tensor is missing, superfluous, or of another shape or dtype.
        """

    @abstractmethod
    def final_norm(self) -> LazyTensors:
        """The norm after the model's last layer; empty where the model has none."""


def check_info(info: TensorInfo, shape: tuple[int, ...], reason: str) -> None:
    """Raise unless a stored tensor has the shape it should have, and a plain floating point type.

    Args:
        info: The stored tensor.
        shape: What it should be.
        reason: Where the expectation comes from, such as ``"config.json"``.

    Raises:
        ValueError: One sentence that names file and tensor.
    """
    if info.dtype not in STORED_DTYPES:
        raise ValueError(
            f"{info.file}: tensor {info.name} is stored as {info.dtype}, so the file seems to be quantised; "
            "only float32, float16, bfloat16 and float64 weights can be read."
        )
    if info.shape != shape:
        raise ValueError(f"{info.file}: tensor {info.name} has the shape {info.shape}, but {reason} asks for {shape}.")
