"""`build_llm_layer`: from a line of configuration to the module that a host inserts."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from frozenllm.core.ablations import MLPLayer, random_block
from frozenllm.core.layer import FrozenLLMLayer
from frozenllm.core.spec import BlockSpec
from frozenllm.core.weights import load_block, read_specs

KINDS = ("pretrained", "random", "mlp", "none")
_BLOCK_KEYS = ("source", "path", "revision", "layers", "spec", "seed", "dtype", "quantize")
_LAYER_KEYS = (
    "output_norm",
    "adapter_init",
    "positions",
    "attention",
    "trainable",
    "lora_rank",
    "lora_alpha",
    "exact",
    "checkpoint_activations",
)
_MLP_KEYS = ("source", "path", "spec", "hidden_size", "adapter_init")
_USED = {
    "pretrained": tuple(key for key in _BLOCK_KEYS if key not in ("spec", "seed")) + _LAYER_KEYS,
    "random": tuple(key for key in _BLOCK_KEYS if key != "quantize") + _LAYER_KEYS,
    "mlp": _MLP_KEYS,
    "none": (),
}
_KNOWN = {"kind", "name", *_BLOCK_KEYS, *_LAYER_KEYS, *_MLP_KEYS}
# What a config group says for every kind alike; only other values are worth a warning where a kind ignores them.
_USUAL = {
    "layers": [-1],
    "positions": "none",
    "attention": "bidirectional",
    "exact": "auto",
    "trainable": False,
    "checkpoint_activations": False,
}


def build_llm_layer(dim: int, llm: Mapping[str, Any] | str | None, **overrides: Any) -> nn.Module | None:
    """Make the layer that stands between an encoder and its head.

    Args:
        dim: Width of the host's tokens.
        llm: None or ``"none"`` for the host alone; a source of `load_block` (``"bundled"``, a folder, a block file, a
            hub repository), whose last layer is taken; or a mapping with these keys, all optional:

            - ``kind``: ``"pretrained"`` (default), ``"random"``, ``"mlp"`` or ``"none"``;
            - ``source``, ``path`` (a local path that takes the source's place), ``revision``, ``layers``, ``dtype``,
              ``quantize``: see `load_block`;
            - ``spec`` (fields of `BlockSpec`, where there is no source to read it from) and ``seed``, for random
              blocks;
            - ``hidden_size``, for the MLP;
            - the options of `FrozenLLMLayer`.
        **overrides: The host's own defaults for keys that ``llm`` leaves out, such as ``adapter_init``.

    Returns:
        A module with ``forward(tokens, mask=None, readout=None)``, or None for the host alone.

    Raises:
        ValueError: A key or value is unknown.
    """
    if llm is None or llm == "none":
        return None
    given = {"source": llm} if isinstance(llm, str) else {k: v for k, v in llm.items() if v is not None}
    unknown = sorted(set(given) - _KNOWN)
    if unknown:
        raise ValueError(f"Unknown llm option(s) {', '.join(unknown)}; known are {', '.join(sorted(_KNOWN))}.")
    kind = given.pop("kind", "pretrained")
    if kind not in KINDS:
        raise ValueError(f"llm kind must be one of {', '.join(KINDS)}, not {kind!r}.")
    options = {k: v for k, v in {**overrides, **given}.items() if k in _USED[kind] and v is not None}
    if kind == "none":
        return None
    ignored = [k for k, v in given.items() if k not in (*_USED[kind], "name", "dtype") and v != _USUAL.get(k)]
    if ignored:
        warnings.warn(f"llm kind {kind} ignores the option(s) {', '.join(sorted(ignored))}.", stacklevel=2)
    if kind == "mlp":
        hidden_size = options.pop("hidden_size", None) or _spec(options).hidden_size
        return MLPLayer(dim, hidden_size, adapter_init=options.get("adapter_init", "default"))
    layer_options = {key: options[key] for key in _LAYER_KEYS if key in options}
    dtype = _dtype(options.get("dtype"))
    if kind == "random":
        num_blocks = len(options.get("layers", (0,)))
        block = random_block(_spec(options), options.get("seed", 0), num_blocks, dtype=dtype)
    else:
        source = options.get("path") or options.get("source")
        if source is None:
            raise ValueError(
                "llm needs a source: bundled, a folder, a block file, or a hub repository such as org/name."
            )
        block = load_block(
            source,
            options.get("layers"),
            dtype=dtype,
            revision=options.get("revision"),
            quantize=options.get("quantize"),
        )
    return FrozenLLMLayer(dim, block, **layer_options)


def _spec(options: Mapping[str, Any]) -> BlockSpec:
    """Shape of the block, from the option ``spec`` or from the source's config, without its weights."""
    if "spec" in options:
        return BlockSpec.from_dict(dict(options["spec"]))
    source = options.get("path") or options.get("source")
    if source is None:
        raise ValueError("llm needs a source or a spec, to know the block's shape.")
    return read_specs(source, options.get("layers"))[0]


def _dtype(name: str | torch.dtype | None) -> torch.dtype | None:
    if name is None or isinstance(name, torch.dtype):
        return name
    dtype = getattr(torch, str(name), None)
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise ValueError(f"llm dtype must be float32, bfloat16 or float16, not {name!r}.")
    return dtype
