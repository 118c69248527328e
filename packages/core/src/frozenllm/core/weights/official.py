"""Blocks from checkpoints of the official release (Pang et al., ICLR 2024): a whole visual model with the block inside.

The block is ``llama.layers.<i>.*`` under Meta's names and in Meta's row order, beside ``llama.norm.weight``, which the
official code never loads: it holds ones. Such a file says neither how many heads the block has nor which layer of the
language model it was.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from frozenllm.core.spec import BlockSpec
from frozenllm.core.weights.files import refuse_lfs_pointer
from frozenllm.core.weights.meta import TENSOR_NAMES, pairs_to_halves
from frozenllm.core.weights.pickles import load_pickle
from frozenllm.core.weights.sources import BlockSource, LazyTensor, LazyTensors, TensorFiles, TensorInfo, check_info

PREFIX = "llama."
SUFFIXES = (".pth", ".pt", ".bin", ".tar")
NUM_HEADS = 32  # of LLaMA-7B, the only model that was released
NORM_EPS = 1e-6  # in all three official code bases
_STATES = ("model", "base_model", "state_dict", "module")  # images and video; point clouds; other trainers


class OfficialFile(TensorFiles):
    """The model inside a training checkpoint, whatever else (optimizer, ``argparse.Namespace``) is beside it.

    Args:
        path: The file; its tensors are memory-mapped.

    Raises:
        ValueError: As `load_pickle`, or the file holds no named tensors.
    """

    def __init__(self, path: Path) -> None:
        self.where = str(path)
        refuse_lfs_pointer(path)
        self.tensors = _model_state(load_pickle(path, allow_namespace=True), path)

    def names(self) -> Collection[str]:
        return self.tensors.keys()

    def info(self, name: str) -> TensorInfo:
        tensor = self.read(name)
        return TensorInfo(self.where, name, tuple(tensor.shape), tensor.dtype)

    def read(self, name: str) -> Tensor:
        if name not in self.tensors:
            raise ValueError(f"{self.where}: tensor {name} is missing.")
        return self.tensors[name]


class OfficialCheckpoint(BlockSource):
    """The language-model block inside an official checkpoint.

    Its layers count from 0 inside the file, whatever layer of the language model they were.

    Args:
        path: The file.
        num_heads: Query heads of the block; None means LLaMA-7B's 32.

    Raises:
        ValueError: The file is missing, damaged, or holds no block.
    """

    kind = "official checkpoint"

    def __init__(self, path: Path, num_heads: int | None = None) -> None:
        self.source = os.path.abspath(path)
        self._num_heads = NUM_HEADS if num_heads is None else num_heads
        if self._num_heads < 1:
            raise ValueError(f"The number of heads must be positive, not {num_heads}.")
        self._file = OfficialFile(path)
        numbers = {int(m[1]) for name in self._file.names() if (m := re.match(r"llama\.layers\.(\d+)\.", name))}
        if not numbers:
            raise ValueError(
                f"{path}: holds no language-model block: no tensor is named llama.layers.0.*, as in checkpoints of the "
                "official release; to read a language model, give the folder that holds its config or params.json."
            )
        self.layers = tuple(sorted(numbers))

    @property
    def default_layers(self) -> tuple[int, ...]:
        """All layers of the file."""
        return self.layers

    def spec(self, layer: int) -> BlockSpec:
        def shape(name: str) -> tuple[int, ...]:
            info = self._file.info(self._stored(layer, name))
            if len(info.shape) != 2:
                raise ValueError(f"{info.file}: tensor {info.name} has the shape {info.shape}, not that of a matrix.")
            return info.shape

        rows, width = shape("attn.q.weight")
        head_dim, rest = divmod(rows, self._num_heads)
        kv_rows = shape("attn.k.weight")[0]
        if rest or head_dim % 2 or kv_rows % head_dim:
            raise ValueError(
                f"{self._file.where}: {rows} query rows and {kv_rows} key rows do not make {self._num_heads} heads; "
                "tell how many heads the block has."
            )
        try:
            return BlockSpec(
                hidden_size=width,
                num_heads=self._num_heads,
                num_kv_heads=kv_rows // head_dim,
                head_dim=head_dim,
                intermediate_size=shape("ffn.gate.weight")[0],
                norm_eps=NORM_EPS,
            )
        except ValueError as error:
            raise ValueError(f"{self._file.where}: {error}") from error

    def tensors(self, layer: int) -> LazyTensors:
        spec = self.spec(layer)
        prefix = f"{PREFIX}layers.{layer}."
        known = {prefix + name for name in TENSOR_NAMES.values()}
        extra = sorted(
            name for name in self._file.names() if name.startswith(prefix) and name not in known and "rope" not in name
        )
        if extra:
            raise ValueError(
                f"{self._file.where}: layer {layer} also holds {', '.join(extra[:3])}: not a plain LLaMA block."
            )
        heads = {"attn.q.weight": spec.num_heads, "attn.k.weight": spec.num_kv_heads}
        return LazyTensors(
            {
                name: self._part(self._stored(layer, name), shape, heads.get(name))
                for name, shape in spec.tensor_shapes().items()
            }
        )

    def final_norm(self) -> LazyTensors:
        shapes = self.spec(self.layers[-1]).final_norm_shapes()
        return LazyTensors({name: self._part(f"{PREFIX}norm.weight", shape, None) for name, shape in shapes.items()})

    def _stored(self, layer: int, name: str) -> str:
        return f"{PREFIX}layers.{layer}.{TENSOR_NAMES[name]}"

    def _part(self, stored: str, shape: tuple[int, ...], heads: int | None) -> LazyTensor:
        info = self._file.info(stored)
        check_info(info, shape, "the rest of the block")

        def read() -> Tensor:
            tensor = self._file.read(stored)
            return tensor if heads is None else pairs_to_halves(tensor, heads)

        return LazyTensor(info.file, stored, shape, info.dtype, read)


def _model_state(content: Any, path: Path) -> dict[str, Tensor]:
    """Name -> tensor of the model, without the prefix that DistributedDataParallel gives."""
    if not isinstance(content, Mapping):
        raise ValueError(f"{path}: holds a {type(content).__name__}, not a checkpoint.")
    state: Any = next((content[key] for key in _STATES if isinstance(content.get(key), Mapping)), content)
    tensors = {name: t.detach() for name, t in state.items() if isinstance(name, str) and isinstance(t, Tensor)}
    if not tensors:
        raise ValueError(f'{path}: holds no model: neither "model" nor the file itself has named tensors.')
    if all(name.startswith("module.") for name in tensors):
        tensors = {name.removeprefix("module."): t for name, t in tensors.items()}
    return tensors
