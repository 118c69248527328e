"""Block files: one safetensors file that holds layers of a language model, their spec and where they came from.

Tensors are named ``layers.<position>.<canonical name>`` and ``final_norm.*``, in the dtype of their source, queries and
keys in transformers' row order. The metadata entry ``frozenllm`` is JSON: format version, specs and record.
"""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from frozenllm.core.family import check_values
from frozenllm.core.record import BlockRecord
from frozenllm.core.spec import BlockSpec
from frozenllm.core.weights.contents import BlockContents, cpu_only
from frozenllm.core.weights.files import SafetensorsFile
from frozenllm.core.weights.sources import BlockSource, LazyTensor, LazyTensors, check_info

METADATA_KEY = "frozenllm"
FORMAT_VERSION = 1


class BlockFile(BlockSource):
    """Reader of a block file. Needs neither the network nor transformers.

    Args:
        path: The file.
        source: What the record will name as the source; the file itself by default.
        revision: Resolved revision, where ``source`` is a hub repository.

    Raises:
        ValueError: The file is missing, damaged, or not a block file.
    """

    def __init__(self, path: Path, source: str | None = None, revision: str | None = None) -> None:
        self.source, self.revision = source or os.path.abspath(path), revision
        self._file = SafetensorsFile(path)
        text = self._file.metadata.get(METADATA_KEY)
        if text is None:
            raise ValueError(
                f"{path}: is not a block file of frozenllm; to read a model, give the folder with its config.json."
            )
        try:
            content = json.loads(text)
            if content["version"] != FORMAT_VERSION:
                raise ValueError(f"format version {content['version']!r} is not {FORMAT_VERSION}")
            for spec in content["specs"]:
                check_values(spec)
            self._specs = [BlockSpec.from_dict(spec) for spec in content["specs"]]
            self.origin = BlockRecord(**{**content["record"], "layers": tuple(content["record"]["layers"])})
            if len(self._specs) != len(self.origin.layers) or not self._specs:
                raise ValueError("the numbers of layers and specs differ")
            if not all(isinstance(layer, int) for layer in self.origin.layers):
                raise ValueError("layers are not numbers")
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
            raise ValueError(f"{path}: the description of the block cannot be read ({error}).") from error
        self.layers = self.origin.layers
        self.kind = f"block file, written from {self.origin.source}"

    @property
    def default_layers(self) -> tuple[int, ...]:
        """All layers of the file."""
        return self.layers

    def verify(self, layers: tuple[int, ...], sha256: str) -> None:
        """Raise where the whole file was read and its bytes are not the ones that were written."""
        if layers == self.layers and sha256 != self.origin.sha256:
            raise ValueError(f"{self._file.where}: damaged: its weights do not have the SHA-256 that it records.")

    def spec(self, layer: int) -> BlockSpec:
        return self._specs[self.layers.index(layer)]

    def tensors(self, layer: int) -> LazyTensors:
        prefix = f"layers.{self.layers.index(layer)}."
        return self._read(prefix, self.spec(layer).tensor_shapes())

    def final_norm(self) -> LazyTensors:
        return self._read("", self._specs[-1].final_norm_shapes())

    def _read(self, prefix: str, shapes: dict[str, tuple[int, ...]]) -> LazyTensors:
        return LazyTensors({name: self._part(prefix + name, shape) for name, shape in shapes.items()})

    def _part(self, stored: str, shape: tuple[int, ...]) -> LazyTensor:
        info = self._file.info(stored)
        check_info(info, shape, "its description of the block")
        return LazyTensor(info.file, stored, shape, info.dtype, lambda: self._file.read(stored))


def write_block_file(contents: BlockContents, path: str | os.PathLike[str]) -> None:
    """Write a block file; a file of that name is replaced in one step.

    Args:
        contents: What to write, read into memory once.
        path: Where to; the folder must exist.

    Raises:
        ValueError: The folder is missing or cannot be written.
    """
    path = Path(path)
    description = {
        "version": FORMAT_VERSION,
        "specs": [spec.to_dict() for spec in contents.specs],
        "record": {**vars(contents.record), "layers": list(contents.record.layers)},
    }
    with cpu_only():
        tensors: dict[str, Tensor] = {}
        for position, layer in enumerate(contents.tensors):
            tensors.update({f"layers.{position}.{name}": own_copy(layer[name]) for name in layer})
        tensors.update({name: own_copy(contents.final_norm[name]) for name in contents.final_norm})
    temporary = None
    try:
        handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
        os.close(handle)
        save_file(tensors, temporary, metadata={METADATA_KEY: json.dumps(description, sort_keys=True)})
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
        temporary = None
    except OSError as error:
        raise ValueError(f"{path}: cannot be written ({error.strerror or error}).") from error
    finally:
        if temporary is not None:
            os.unlink(temporary)


def own_copy(tensor: Tensor) -> Tensor:
    """A contiguous copy, since safetensors refuses tensors that share memory."""
    return tensor.detach().clone(memory_format=torch.contiguous_format)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
