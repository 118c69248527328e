"""GGUF files as llama.cpp's ``convert_hf_to_gguf.py`` writes them, made with the gguf library."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType
from torch import Tensor

_NAMES = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.qkv_proj": "attn_qkv",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.gate_up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "post_feedforward_layernorm": "post_ffw_norm",
    "pre_feedforward_layernorm": "ffn_norm",
}
_AFTER_ATTENTION = {"gemma2": "post_attention_norm", "olmo2": "post_attention_norm"}  # elsewhere it is the FFN's norm


def write_gguf(
    model,
    path: Path,
    kind: GGMLQuantizationType = GGMLQuantizationType.F16,
    pack: dict[GGMLQuantizationType, Callable[[np.ndarray], np.ndarray]] | None = None,
    metadata: dict[str, object] | None = None,
    norms: torch.dtype = torch.float32,
    kinds: dict[str, GGMLQuantizationType] | None = None,
) -> Path:
    """Write a transformers model.

    Args:
        model: The model.
        path: Where to.
        kind: How matrices are stored.
        pack: Packers of formats that the library cannot write: float32 rows -> bytes.
        metadata: Entries to change; None removes one.
        norms: What norms and biases are stored in; the converter always takes float32.
        kinds: How single matrices are stored, by a part of their names.
    """
    name = {"mistral": "llama"}.get(model.config.model_type, model.config.model_type)
    writer = gguf.GGUFWriter(path, name)
    for key, value in {**_metadata(model.config, name), **(metadata or {})}.items():
        if isinstance(value, str):
            writer.add_string(key, value)
        elif isinstance(value, float):
            writer.add_float32(key, value)
        elif isinstance(value, list):
            writer.add_array(key, value)
        elif value is not None:
            writer.add_uint32(key, value)
    writer.add_array("tokenizer.ggml.tokens", [f"<{i}>" for i in range(model.config.vocab_size)])
    default = kind
    for stored, tensor in _tensors(model, name).items():
        kind = next((own for part, own in (kinds or {}).items() if part in stored), default)
        if tensor.ndim == 1:
            _add(writer, stored, tensor.to(norms))
        elif kind in (pack or {}):
            rows = tensor.float().numpy()
            writer.add_tensor(stored, pack[kind](rows), raw_dtype=kind)
        elif kind in (GGMLQuantizationType.F16, GGMLQuantizationType.BF16):
            _add(writer, stored, tensor.to(torch.float16 if kind == GGMLQuantizationType.F16 else torch.bfloat16))
        else:
            writer.add_tensor(stored, gguf.quants.quantize(tensor.float().numpy(), kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _add(writer: gguf.GGUFWriter, name: str, tensor: Tensor) -> None:
    tensor = tensor.contiguous()
    if tensor.dtype == torch.bfloat16:  # numpy has no such type
        raw = tensor.view(torch.uint8).numpy()
        writer.add_tensor(name, raw, raw_dtype=GGMLQuantizationType.BF16)
    else:
        writer.add_tensor(name, tensor.numpy())


def _metadata(config, name: str) -> dict[str, object]:
    rope = dict(config.rope_parameters)
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    values = {
        "block_count": config.num_hidden_layers,
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": config.num_key_value_heads,
        "attention.layer_norm_rms_epsilon": float(config.rms_norm_eps),
        "attention.key_length": width if width * config.num_attention_heads != config.hidden_size else None,
        "rope.dimension_count": int(width * rope.get("partial_rotary_factor", 1.0))
        if name in ("llama", "phi3")
        else None,
        "rope.freq_base": float(rope["rope_theta"]),
        "vocab_size": config.vocab_size,
    }
    if name == "gemma2":
        values["attention.sliding_window"] = config.sliding_window
        values["attn_logit_softcapping"] = float(config.attn_logit_softcapping)
        values["attention.key_length"] = width
    if name == "phi3":
        values["attention.sliding_window"] = config.sliding_window or 0
    if name == "granite":
        values["attention.scale"] = float(config.attention_multiplier)
        values["residual_scale"] = float(config.residual_multiplier)
    if rope["rope_type"] == "linear":
        values |= {"rope.scaling.type": "linear", "rope.scaling.factor": float(rope["factor"])}
    if rope["rope_type"] == "longrope":
        original = config.original_max_position_embeddings
        stretch = config.max_position_embeddings / original
        values["rope.scaling.original_context_length"] = original
        values["rope.scaling.attn_factor"] = float((1 + np.log(stretch) / np.log(original)) ** 0.5)
    return {f"{name}.{key}": value for key, value in values.items()}


def _tensors(model, name: str) -> dict[str, Tensor]:
    config = model.config
    tensors: dict[str, Tensor] = {}
    rope = config.rope_parameters
    if rope["rope_type"] == "llama3":
        tensors["rope_freqs.weight"] = _llama3_divisors(config)
    if rope["rope_type"] == "longrope":
        tensors["rope_factors_long.weight"] = torch.tensor(rope["long_factor"])
        tensors["rope_factors_short.weight"] = torch.tensor(rope["short_factor"])
    for stored, tensor in model.state_dict().items():
        tensor = tensor.detach()
        if "gemma" in name and stored.endswith("norm.weight"):
            tensor = tensor.float() + 1
        if name in ("llama", "granite") and ".q_proj." in stored:
            tensor = _to_pairs(tensor, config.num_attention_heads)
        if name in ("llama", "granite") and ".k_proj." in stored:
            tensor = _to_pairs(tensor, config.num_key_value_heads)
        tensors[_name(stored, name)] = tensor
    return tensors


def _name(stored: str, model: str) -> str:
    outside = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
    stem, kind = stored.rsplit(".", 1)
    if stem in outside:
        return f"{outside[stem]}.{kind}"
    _, _, index, inside = stem.split(".", 3)
    names = {**_NAMES, "post_attention_layernorm": _AFTER_ATTENTION.get(model, "ffn_norm")}
    return f"blk.{index}.{names[inside]}.{kind}"


def _to_pairs(tensor: Tensor, heads: int) -> Tensor:
    """From two halves per head to neighbouring rotary pairs."""
    return torch.stack([half for half in tensor.view(heads, 2, -1, *tensor.shape[1:]).unbind(1)], dim=2).flatten(0, 2)


def _llama3_divisors(config) -> Tensor:
    """What the converter stores for LLaMA 3's rotary scaling: original frequency over scaled one."""
    rope = config.rope_parameters
    width = config.head_dim
    frequencies = rope["rope_theta"] ** -(torch.arange(0, width, 2, dtype=torch.float64) / width)
    waves = 2 * torch.pi / frequencies
    original = rope["original_max_position_embeddings"]
    slow, fast = original / rope["low_freq_factor"], original / rope["high_freq_factor"]
    smooth = (original / waves - rope["low_freq_factor"]) / (rope["high_freq_factor"] - rope["low_freq_factor"])
    between = 1 / ((1 - smooth) / rope["factor"] + smooth)
    divisors = torch.where(waves < fast, 1.0, torch.where(waves > slow, rope["factor"], between))
    return divisors.float()
