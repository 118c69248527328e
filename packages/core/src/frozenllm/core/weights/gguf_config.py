"""Which architectures of llama.cpp can be read, and their metadata as the ``config.json`` of a model family.

Source: llama.cpp's ``convert_hf_to_gguf.py``, which writes these files.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from frozenllm.core.weights.gguf_header import GGUFHeader

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


@dataclass(frozen=True)
class Architecture:
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
ARCHITECTURES: dict[str, Architecture] = {
    "llama": Architecture(paired=True),  # also Mistral
    "qwen2": Architecture(),
    "qwen3": Architecture(),
    "gemma": Architecture(offset=True),
    "gemma2": Architecture(keys={**_WINDOW, "attn_logit_softcapping": "attn_logit_softcapping"}, offset=True),
    "phi3": Architecture(keys=_WINDOW, tensors=_FUSED),
    "olmo2": Architecture(),
    "granite": Architecture(
        keys={"attention_multiplier": "attention.scale", "residual_multiplier": "residual_scale"}, paired=True
    ),
}


def gguf_config(path: Path, header: GGUFHeader, name: str, architecture: Architecture) -> dict[str, Any]:
    """The metadata as the family's ``config.json``.

    Args:
        path: The file.
        header: Its header.
        name: Its architecture.
        architecture: What is particular about that.

    Raises:
        ValueError: An entry is missing or of the wrong kind.
    """
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
