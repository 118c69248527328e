"""`Family`: how the ``config.json`` and the tensor names of a model family map onto `BlockSpec`.

The rows themselves are in `families.py`. Reading a config never imports transformers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from frozenllm.core.spec import BlockSpec

Config = Mapping[str, Any]
MAX_LAYERS = 10_000  # a damaged config must not make a list of billions

_ACTIVATIONS = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
}
# BlockSpec field -> key of config.json, where a row does not say otherwise.
_KEYS = {
    "hidden_size": "hidden_size",
    "num_heads": "num_attention_heads",
    "num_kv_heads": "num_key_value_heads",
    "head_dim": "head_dim",
    "intermediate_size": "intermediate_size",
    "norm_eps": "rms_norm_eps",
    "activation": "hidden_act",
    "max_positions": "max_position_embeddings",
}
_SIZES = ("hidden_size", "num_heads", "num_kv_heads", "head_dim", "intermediate_size")
_OPTIONAL_SIZES = ("sliding_window", "max_positions")
_NUMBERS = ("norm_eps", "norm_offset", "residual_scale", "rotary_fraction")
_OPTIONAL_NUMBERS = ("query_scale", "attn_softcap", "rotary_base")
_SWITCHES = ("qkv_bias", "out_bias", "ffn_bias", "gated", "final_norm")


@dataclass(frozen=True, kw_only=True)
class Family:
    """One row of the table.

    Attributes:
        name: Short name, shown by ``frozenllm families``.
        models: Well-known models of this family, for people.
        model_types: Values of ``model_type`` in ``config.json``.
        architectures: Class names in ``architectures``, used where ``model_type`` is missing.
        defaults: What transformers assumes for keys that ``config.json`` leaves out.
        keys: `BlockSpec` field -> key of ``config.json``, where it differs from the usual one.
        fixed: `BlockSpec` fields that are the same for the whole family.
        derived: `BlockSpec` field -> function of (config with defaults, layer index).
        num_layers: Key of ``config.json`` with the number of layers.
        rotary: Whether the family has rotary positions.
        rotary_base: Older key of the rotary base, beside ``rope_parameters``.
        rotary_fraction: Older key of the rotated share of a head; None where the family rotates whole heads.
        roots: Prefixes that tensor names may have, with and without the language-model head.
        layer: What follows the root for layer ``{i}``.
        tensors: Canonical name without ``.weight`` or ``.bias`` -> name inside the layer. Names that several entries
            share are one stored tensor whose rows are those entries', in this order.
        final_norm: Name of the norm after the last layer, without ``.weight`` or ``.bias``.
        ignored: Names inside a layer that carry no weights (masks, rotary tables).
        transposed: Whether projections are stored (in_features, out_features).
        interleaved: Whether the rows of a shared tensor go head by head (q, k, v of the first head, of the second...).
    """

    name: str
    models: str
    model_types: tuple[str, ...]
    architectures: tuple[str, ...]
    defaults: Config
    tensors: Mapping[str, str]
    keys: Mapping[str, str] = field(default_factory=dict)
    fixed: Mapping[str, Any] = field(default_factory=dict)
    derived: Mapping[str, Callable[[Config, int], Any]] = field(default_factory=dict)
    num_layers: str = "num_hidden_layers"
    rotary: bool = True
    rotary_base: str = "rope_theta"
    rotary_fraction: str | None = None
    roots: tuple[str, ...] = ("model.", "")
    layer: str = "layers.{i}."
    final_norm: str = "norm"
    ignored: tuple[str, ...] = ("self_attn.rotary_emb.inv_freq",)
    transposed: bool = False
    interleaved: bool = False

    def layer_count(self, config: Config) -> int:
        """Number of decoder layers that a config declares.

        Raises:
            ValueError: It is not a positive whole number.
        """
        count = {**self.defaults, **config}[self.num_layers]
        if not isinstance(count, int) or isinstance(count, bool) or not 1 <= count <= MAX_LAYERS:
            raise ValueError(f'"{self.num_layers}" must be a whole number from 1 to {MAX_LAYERS}, not {count!r}.')
        return count

    def spec(self, config: Config, layer: int) -> BlockSpec:
        """What layer ``layer`` of the model computes.

        Args:
            config: The parsed ``config.json``.
            layer: Index counted from 0; some families alternate between kinds of layers.

        Raises:
            ValueError: A value of the config is of the wrong kind or not supported.
        """
        config = {**self.defaults, **config}
        values: dict[str, Any] = {name: config.get(key) for name, key in {**_KEYS, **self.keys}.items()}
        values["activation"] = spec_activation(values["activation"])
        if values["num_kv_heads"] is None:
            values["num_kv_heads"] = values["num_heads"]
        values.update(_rotary(self, config, layer))
        values.update(self.fixed)
        for name, function in self.derived.items():
            values[name] = function(config, layer)
        if values["head_dim"] is None:
            _require_size("num_heads", values["num_heads"])
            _require_size("hidden_size", values["hidden_size"])
            values["head_dim"] = values["hidden_size"] // values["num_heads"]
        check_values(values)
        return BlockSpec(**values)


def check_values(values: Mapping[str, Any]) -> None:
    """Raise where a field of a `BlockSpec`, read from a file, is of the wrong kind.

    Raises:
        ValueError: One sentence that names the field.
    """
    for name in _SIZES:
        _require_size(name, values[name])
    for name in _OPTIONAL_SIZES:
        if values.get(name) is not None:
            _require_size(name, values[name])
    for name in (*_NUMBERS, *_OPTIONAL_NUMBERS):
        value = values.get(name, 0.0)
        if value is None and name in _OPTIONAL_NUMBERS:
            continue
        if not isinstance(value, int | float) or not math.isfinite(value):
            raise ValueError(f"{name} must be a number, not {value!r}.")
    for name in _SWITCHES:
        if not isinstance(values.get(name, False), bool):
            raise ValueError(f"{name} must be true or false, not {values[name]!r}.")
    if not isinstance(values.get("rotary_scaling") or {}, dict):
        raise ValueError(f"rotary_scaling must be an object, not {values['rotary_scaling']!r}.")


def _require_size(name: str, value: Any) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{name} must be a positive whole number, not {value!r}.")


def spec_activation(name: Any) -> str:
    """`BlockSpec.activation` for a name of transformers'.

    Raises:
        ValueError: The block has no such activation.
    """
    if name not in _ACTIVATIONS:
        raise ValueError(f"Activation {name!r} is not supported; known are {', '.join(_ACTIVATIONS)}.")
    return _ACTIVATIONS[name]


def layer_type(config: Config, layer: int) -> str | None:
    """What ``layer_types`` says about a layer, or None where the config has no such list."""
    types = config.get("layer_types")
    return types[layer] if isinstance(types, list) and layer < len(types) else None


def _rotary(family: Family, config: Config, layer: int) -> dict[str, Any]:
    """Rotary fields of the spec, from ``rope_parameters`` (transformers 5) or the older keys."""
    if not family.rotary:
        return {"rotary_base": None}
    entry = config.get("rope_scaling") or config.get("rope_parameters") or {}
    if any(isinstance(value, dict) for value in entry.values()):  # one entry per layer type
        entry = entry.get(layer_type(config, layer)) or {}
    entry = dict(entry)
    base = entry.pop("rope_theta", config.get(family.rotary_base, 10000.0))
    fraction = entry.pop("partial_rotary_factor", None)
    if family.rotary_fraction is None:
        fraction = 1.0
    elif fraction is None:
        fraction = config.get(family.rotary_fraction, 1.0)
    kind = entry.pop("type", "default")
    kind = entry.pop("rope_type", kind)
    fields: dict[str, Any] = {"rotary_base": float(base), "rotary_fraction": float(fraction)}
    if kind == "default":
        return fields
    if kind in ("su", "yarn") and "short_factor" in entry:  # older names in Phi-3's configs
        kind = "longrope"
    if kind in ("llama3", "yarn", "longrope"):
        outer = config.get("original_max_position_embeddings")
        inner = entry.get("original_max_position_embeddings")
        entry["original_max_position_embeddings"] = outer or inner or config.get("max_position_embeddings")
    return {**fields, "rotary_scaling": {"rope_type": kind, **entry}}
