"""Blocks from GGUF files, the format of llama.cpp, plain or quantised.

An architecture of llama.cpp is a family of the table under other names: its metadata is turned into the family's
``config.json``, and its tensors are read under the family's row with GGUF's names in it. Three things differ in the
tensors themselves (source: llama.cpp's ``convert_hf_to_gguf.py``): LLaMA and Granite keep the two members of a rotary
pair in neighbouring rows, as Meta does; Gemma's norms hold ``1 + weight``; and norms are float32 in any file.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from math import prod
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from frozenllm.core.families import find_family
from frozenllm.core.family import Family
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
# Key of the family's config.json -> key of the metadata, after the architecture's name.
_KEYS = {
    "hidden_size": "embedding_length",
    "num_hidden_layers": "block_count",
    "num_attention_heads": "attention.head_count",
    "num_key_value_heads": "attention.head_count_kv",
    "head_dim": "attention.key_length",
    "intermediate_size": "feed_forward_length",
    "rms_norm_eps": "attention.layer_norm_rms_epsilon",
    "max_position_embeddings": "context_length",
    "rope_theta": "rope.freq_base",
}
_REQUIRED = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "rms_norm_eps")
_PLAIN = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "F64": torch.float64}
_BIASES = {"qkv_bias": "attn.q", "out_bias": "attn.o", "ffn_bias": "ffn.up"}


@dataclass(frozen=True)
class _Architecture:
    """What is particular about one of llama.cpp's architectures.

    Attributes:
        keys: As `_KEYS`, in addition.
        tensors: As `_TENSORS`, where a name differs.
        paired: Whether the rows of queries and keys are in the order of rotary pairs.
        offset: Whether norms are stored with the family's offset added.
    """

    keys: Mapping[str, str] = field(default_factory=dict)
    tensors: Mapping[str, str] = field(default_factory=dict)
    paired: bool = False
    offset: bool = False


_FUSED = dict.fromkeys(("attn.q", "attn.k", "attn.v"), "attn_qkv") | {"ffn.gate": "ffn_up"}
_WINDOW = {"sliding_window": "attention.sliding_window"}
ARCHITECTURES: dict[str, _Architecture] = {
    "llama": _Architecture(paired=True),  # also Mistral
    "qwen2": _Architecture(),
    "qwen3": _Architecture(),
    "gemma": _Architecture(offset=True),
    "gemma2": _Architecture(keys={**_WINDOW, "attn_logit_softcapping": "attn_logit_softcapping"}, offset=True),
    "phi3": _Architecture(keys=_WINDOW, tensors=_FUSED),
    "olmo2": _Architecture(),
    "granite": _Architecture(
        keys={"attention_multiplier": "attention.scale", "residual_multiplier": "residual_scale"}, paired=True
    ),
}


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
        config = _config(path, header, name, architecture)
        family = _family(find_family(config), architecture, header)
        super().__init__(source, config, _GGUFFile(path, header, config, family, architecture), family=family)
        self.kind = f"GGUF file, architecture {name}"


class _GGUFFile(TensorFiles):
    """The tensors of a GGUF file as the family has them: rows reordered, offsets taken off, values dequantised."""

    def __init__(
        self, path: Path, header: GGUFHeader, config: Mapping[str, Any], family: Family, architecture: _Architecture
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


def _family(family: Family, architecture: _Architecture, header: GGUFHeader) -> Family:
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


def _config(path: Path, header: GGUFHeader, name: str, architecture: _Architecture) -> dict[str, Any]:
    """The metadata as the family's ``config.json``."""
    metadata = header.metadata
    config: dict[str, Any] = {"model_type": name}
    for key, stored in {**_KEYS, **architecture.keys}.items():
        value = metadata.get(f"{name}.{stored}")
        if isinstance(value, list):  # one number per layer
            if len(set(value)) != 1:
                raise ValueError(f"{path}: {name}.{stored} differs between layers, which is not supported.")
            value = value[0]
        if value is not None:
            config[key] = value
    missing = [f"{name}.{_KEYS[key]}" for key in _REQUIRED if key not in config]
    if missing:
        raise ValueError(f"{path}: the metadata lacks {', '.join(missing)}.")
    for key in ("hidden_size", "num_hidden_layers", "num_attention_heads"):
        if not isinstance(config[key], int) or isinstance(config[key], bool) or config[key] < 1:
            raise ValueError(f"{path}: {name}.{_KEYS[key]} must be a positive whole number, not {config[key]!r}.")
    config.setdefault("num_key_value_heads", config["num_attention_heads"])
    config.setdefault("head_dim", config["hidden_size"] // config["num_attention_heads"])
    config["sliding_window"] = config.get("sliding_window") or None  # Phi-4 says 0
    if name == "gemma2" and config["num_hidden_layers"] == 46:
        # The metadata has no query scale: llama.cpp, too, knows the 27B by its layers.
        config["query_pre_attn_scalar"] = config["hidden_size"] // config["num_attention_heads"]
    elif name == "gemma2":
        config["query_pre_attn_scalar"] = config["head_dim"]
    config.update(_rotary(path, header, name, config))
    return config


def _rotary(path: Path, header: GGUFHeader, name: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """Rotary share and scaling, under the names of ``config.json``."""
    metadata = header.metadata
    fields: dict[str, Any] = {}
    width = metadata.get(f"{name}.rope.dimension_count")
    if isinstance(width, int) and isinstance(config["head_dim"], int) and 0 < width < config["head_dim"]:
        fields["partial_rotary_factor"] = width / config["head_dim"]
    scaling = f"{name}.rope.scaling."
    kind, original = metadata.get(f"{scaling}type", "none"), metadata.get(f"{scaling}original_context_length")
    divisors = {
        part: _floats(path, header, f"rope_{part}.weight") for part in ("freqs", "factors_short", "factors_long")
    }
    if divisors["freqs"] is not None:
        # LLaMA 3's scaling, stored as the divisor of each frequency.
        same = {"short_factor": divisors["freqs"], "long_factor": divisors["freqs"], "attention_factor": 1.0}
        fields["rope_scaling"] = {"rope_type": "longrope", "original_max_position_embeddings": original or 1, **same}
    elif divisors["factors_short"] is not None and divisors["factors_long"] is not None:
        fields["rope_scaling"] = {
            "rope_type": "longrope",
            "short_factor": divisors["factors_short"],
            "long_factor": divisors["factors_long"],
            "attention_factor": metadata.get(f"{scaling}attn_factor"),
        }
        fields["original_max_position_embeddings"] = original
    elif kind not in ("none", None):
        fields["rope_scaling"] = {"rope_type": kind, "factor": metadata.get(f"{scaling}factor", 1.0)}
    return fields


def _floats(path: Path, header: GGUFHeader, name: str) -> list[float] | None:
    """A short float32 tensor as numbers."""
    tensor = header.tensors.get(name)
    if tensor is None:
        return None
    count = tensor.shape[0]
    if tensor.type != 0 or len(tensor.shape) != 1 or tensor.start + 4 * count > header.size:
        raise ValueError(f"{path}: truncated or damaged: tensor {name} is not a list of float32 in the file.")
    with path.open("rb") as file:
        file.seek(tensor.start)
        return np.frombuffer(file.read(4 * count), dtype="<f4").tolist()
