"""Blocks from GGUF files, the format of llama.cpp, plain or quantised.

An architecture of llama.cpp is a family of the table under other names: its metadata is turned into the family's
``config.json``, and its tensors are read under the family's row with GGUF's names in it. Three things differ in the
tensors themselves (source: llama.cpp's ``convert_hf_to_gguf.py``): LLaMA and Granite keep the two members of a rotary
pair in neighbouring rows, as Meta does; Gemma's norms hold ``1 + weight``; and norms are float32 in any file.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from math import prod
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from frozenllm.core.families import find_family
from frozenllm.core.family import Family
from frozenllm.core.weights.gguf_config import ARCHITECTURES, Architecture, gguf_config
from frozenllm.core.weights.gguf_header import GGUFHeader, GGUFTensor, read_header
from frozenllm.core.weights.meta import pairs_to_halves
from frozenllm.core.weights.sources import Quantization, TensorFiles, TensorInfo
from frozenllm.core.weights.transformers_layout import TransformersModel

_TENSORS = {
    "attn_norm": "attn_norm",
    "attn.q": "attn_q",
    "attn.k": "attn_k",
    "attn.v": "attn_v",
    "attn.q_norm": "attn_q_norm",
    "attn.k_norm": "attn_k_norm",
    "attn.o": "attn_output",
    "attn_out_norm": "post_attention_norm",
    "ffn_norm": "ffn_norm",
    "ffn.gate": "ffn_gate",
    "ffn.up": "ffn_up",
    "ffn.down": "ffn_down",
    "ffn_out_norm": "post_ffw_norm",
}
_PLAIN = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "F64": torch.float64}
_BIASES = {"qkv_bias": "attn.q", "out_bias": "attn.o", "ffn_bias": "ffn.up"}


class GGUFModel(TransformersModel):
    """A model in one GGUF file.

    Args:
        source: What the record will name.
        path: The file.

    Raises:
        ValueError: The file is damaged, its architecture is unknown, or the gguf library is missing.
    """

    _described_by = "its metadata"

    def __init__(self, source: str, path: Path) -> None:
        header = read_header(path)
        name = header.metadata.get("general.architecture")
        if not isinstance(name, str) or name not in ARCHITECTURES:
            raise ValueError(
                f"{path}: the architecture {name!r} cannot be read from GGUF files; those that can are "
                f"{', '.join(ARCHITECTURES)}."
            )
        if header.metadata.get("split.count", 1) not in (0, 1):
            raise ValueError(
                f"{path}: is one of {header.metadata['split.count']} parts of a model; join them with llama.cpp's "
                '"llama-gguf-split --merge" first.'
            )
        architecture = ARCHITECTURES[name]
        config = gguf_config(path, header, name, architecture)
        family = _family(find_family(config), architecture, header)
        super().__init__(source, config, _GGUFFile(path, header, config, family, architecture), family=family)
        self.kind = f"GGUF file, architecture {name}"


class _GGUFFile(TensorFiles):
    """The tensors of a GGUF file as the family has them: rows reordered, offsets taken off, values dequantised."""

    def __init__(
        self, path: Path, header: GGUFHeader, config: Mapping[str, Any], family: Family, architecture: Architecture
    ) -> None:
        self.where = str(path)
        self._gguf = _library(path)
        self._header, self._architecture = header, architecture
        self._offset = family.fixed.get("norm_offset", 0.0) if architecture.offset else 0.0
        heads = config["num_attention_heads"]
        self._heads = {"attn_q": heads, "attn_k": config.get("num_key_value_heads", heads)}
        self._data = np.asarray(np.memmap(path, mode="c", dtype=np.uint8))  # private pages: torch wants writable ones

    def names(self) -> Collection[str]:
        return self._header.tensors.keys()

    def info(self, name: str) -> TensorInfo:
        tensor, kind = self._find(name)
        if kind.name in _PLAIN:
            return TensorInfo(self.where, name, tensor.shape, _PLAIN[kind.name])
        weights, size = self._gguf.GGML_QUANT_SIZES[kind]
        return TensorInfo(self.where, name, tensor.shape, torch.float32, Quantization(kind.name, size / weights))

    def read(self, name: str) -> Tensor:
        tensor, kind = self._find(name)
        weights, size = self._gguf.GGML_QUANT_SIZES[kind]
        rows = (*tensor.shape[:-1], tensor.shape[-1] // weights * size)
        raw = self._data[tensor.start : tensor.start + prod(rows)].reshape(rows)
        values = self._values(name, raw, kind)
        stem = name.rsplit(".", 2)[-2]
        if self._architecture.paired and stem in self._heads:
            return pairs_to_halves(values, self._heads[stem])
        return values - self._offset if self._offset and stem.endswith("norm") else values

    def _values(self, name: str, raw: np.ndarray, kind: Any) -> Tensor:
        if kind.name in _PLAIN:
            # A view of the mapped file; data is aligned to 32 bytes unless the file says otherwise.
            aligned = raw if raw.ctypes.data % 8 == 0 else raw.copy()
            return torch.from_numpy(aligned).view(_PLAIN[kind.name])
        try:
            return torch.from_numpy(self._gguf.quants.dequantize(raw, kind))
        except NotImplementedError as error:
            raise ValueError(f"{self.where}: tensor {name} is stored as {kind.name}, which cannot be read.") from error

    def _find(self, name: str) -> tuple[GGUFTensor, Any]:
        """Description of a tensor and its ggml type, after a check that its data is in the file."""
        if name not in self._header.tensors:
            raise ValueError(f"{self.where}: tensor {name} is missing.")
        tensor = self._header.tensors[name]
        try:
            kind = self._gguf.GGMLQuantizationType(tensor.type)
            weights, size = self._gguf.GGML_QUANT_SIZES[kind]
        except (ValueError, KeyError) as error:
            raise ValueError(f"{self.where}: tensor {name} has the unknown type {tensor.type}.") from error
        if tensor.shape[-1] % weights or tensor.start + prod(tensor.shape) // weights * size > self._header.size:
            raise ValueError(f"{self.where}: truncated or damaged: tensor {name} does not fit into the file.")
        return tensor, kind


def _library(path: Path) -> ModuleType:
    try:
        import gguf
        import gguf.quants
    except ImportError as error:
        raise ValueError(
            f'{path}: reading GGUF files needs the gguf library: pip install "frozenllm-core[gguf]".'
        ) from error
    return gguf


def _family(family: Family, architecture: Architecture, header: GGUFHeader) -> Family:
    """The family's row with GGUF's tensor names; which biases there are is read off the tensors."""
    names = {**_TENSORS, **architecture.tensors}

    def present(stem: str) -> Any:
        return lambda _config, layer: f"blk.{layer}.{names[stem]}.bias" in header.tensors

    return replace(
        family,
        derived={**family.derived, **{spec: present(stem) for spec, stem in _BIASES.items()}},
        roots=("",),
        layer="blk.{i}.",
        tensors={stem: names[stem] for stem in family.tensors},
        final_norm="output_norm",
        rotary_fraction="partial_rotary_factor",
        ignored=("attn_rot_embd.weight", "rope_freqs.weight"),
    )
