"""A frozen layer as JSON: what a model's ``config.json`` says in place of the block's weights, and the way back."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from frozenllm.core.ablations import MLPLayer, random_block
from frozenllm.core.block import LLMBlock
from frozenllm.core.build import build_llm_layer
from frozenllm.core.family import check_values
from frozenllm.core.layer import FrozenLLMLayer
from frozenllm.core.record import BlockRecord
from frozenllm.core.spec import BlockSpec
from frozenllm.core.weights import load_block, open_source, parse_dtype

FORMAT = 1
_RANDOM = "random:"
_OPTIONS = ("output_norm", "adapter_init", "positions", "attention", "exact", "checkpoint_activations")
# What the layer computes without positions and without the causal mask does not depend on these.
_POSITIONAL = ("rotary_base", "rotary_fraction", "rotary_scaling", "max_positions", "sliding_window", "final_norm")


def describe_llm_layer(layer: nn.Module | None) -> dict[str, Any]:
    """Everything about a layer but its trained weights, as JSON can hold it.

    Args:
        layer: What `build_llm_layer` gives: a `FrozenLLMLayer`, an `MLPLayer`, or None.

    Returns:
        ``format``; ``llm``, the settings for `build_llm_layer`; for a block also ``record`` (source, revision, layers,
        dtype, SHA-256) and ``specs``.

    Raises:
        ValueError: The layer is of another kind.
    """
    if layer is None:
        return {"format": FORMAT, "llm": "none"}
    if isinstance(layer, MLPLayer):
        return {"format": FORMAT, "llm": {"kind": "mlp", "hidden_size": layer.adapter_in.out_features}}
    if not isinstance(layer, FrozenLLMLayer):
        raise ValueError(
            f"A {type(layer).__name__} in the frozen layer's place cannot be described; save its state dict instead."
        )
    block = layer.block
    record = block.record
    options: dict[str, Any] = {name: getattr(layer, name) for name in _OPTIONS}
    options["dtype"] = str(block.dtype).removeprefix("torch.")
    options["trainable"] = block.trainable
    if block.decoder_layers[0].quantize:
        options["quantize"] = block.decoder_layers[0].quantize
    low_rank = block.decoder_layers[0].low_rank
    if low_rank:
        rank = low_rank["o"].down[0].shape[0]  # type: ignore[index, union-attr]
        options.update(lora_rank=rank, lora_alpha=low_rank["o"].scale * rank)  # type: ignore[operator]
    if record.source.startswith(_RANDOM):
        seed = int(record.source.removeprefix(_RANDOM))
        where = {"kind": "random", "seed": seed, "spec": block.specs[0].to_dict(), "layers": list(record.layers)}
    else:
        where = {
            "kind": "pretrained",
            "source": record.source,
            "revision": record.revision,
            "layers": list(record.layers),
        }
    return {
        "format": FORMAT,
        "llm": {**where, **options},
        "record": {**dataclasses.asdict(record), "layers": list(record.layers)},
        "specs": [spec.to_dict() for spec in block.specs],
    }


def rebuild_llm_layer(
    dim: int, description: Mapping[str, Any], block: LLMBlock | str | Path | None = None
) -> nn.Module | None:
    """The layer that `describe_llm_layer` described, its adapters untrained.

    A frozen block is read from its recorded source again and must have the recorded SHA-256. A trained block gets its
    shape only: its weights are in the model's own state dict.

    Args:
        dim: Width of the host's tokens.
        description: What `describe_llm_layer` returned.
        block: Another place where the same block is (any source of `load_block`), or the block itself.

    Returns:
        The layer, or None for the host alone.

    Raises:
        ValueError: The description cannot be read; the block cannot be found again, or is another one.
    """
    try:
        if description["format"] != FORMAT:
            raise ValueError(f"format {description['format']!r} is not {FORMAT}")
        llm = description["llm"]
        options = {} if llm == "none" else dict(llm)
        kind = options.pop("kind", "none")
        if kind in ("none", "mlp"):
            record, specs = None, []
        else:
            fields = description["record"]
            record = BlockRecord(**{**fields, "layers": tuple(fields["layers"])})
            for values in description["specs"]:
                check_values(values)
            specs = [BlockSpec.from_dict(dict(values)) for values in description["specs"]]
            if len(specs) != len(record.layers) or not specs:
                raise ValueError("the numbers of layers and specs differ")
            dtype = parse_dtype(str(options.pop("dtype"))) or torch.float32
            quantize = options.pop("quantize", None)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(f"The description of the frozen layer cannot be read ({error}).") from error
    if record is None:
        if block is not None:
            raise ValueError("block was given, but the model has no language-model block.")
        return build_llm_layer(dim, llm)
    for name in ("source", "revision", "layers", "seed", "spec"):
        options.pop(name, None)
    if options.get("trainable") and options.get("output_norm") != "pretrained" and block is None:
        found = _blank_block(specs, record, dtype)
    else:
        found = _find_block(specs, record, dtype, quantize, block)
        _require_same(found, specs, record, options)
    try:
        return FrozenLLMLayer(dim, found, **options)
    except TypeError as error:
        raise ValueError(f"The description of the frozen layer cannot be read ({error}).") from error


def _find_block(
    specs: list[BlockSpec],
    record: BlockRecord,
    dtype: torch.dtype,
    quantize: str | None,
    given: LLMBlock | str | Path | None,
) -> LLMBlock:
    if isinstance(given, LLMBlock):
        return given
    heads = specs[0].num_heads
    if given is not None:
        held = open_source(given, num_heads=heads).layers
        layers = record.layers if set(record.layers) <= set(held) else None  # files may count from 0
        return load_block(given, layers, dtype, num_heads=heads, quantize=quantize)
    if record.source.startswith(_RANDOM):
        return random_block(specs[0], int(record.source.removeprefix(_RANDOM)), len(specs), dtype=dtype)
    try:
        return load_block(
            record.source, record.layers, dtype, revision=record.revision, num_heads=heads, quantize=quantize
        )
    except ValueError as error:
        raise ValueError(
            f"The model's block, {record.describe()}, cannot be read again; give block=, another place where it is. "
            f"Reason: {error}"
        ) from error


def _require_same(block: LLMBlock, specs: list[BlockSpec], record: BlockRecord, options: Mapping[str, Any]) -> None:
    if block.record.sha256 != record.sha256 or (block.trainable and not options.get("trainable")):
        raise ValueError(
            f"The model was made with the block {record.describe()}, but {block.record.describe()} was found."
        )
    positional = options.get("positions") == "rotary" or options.get("attention") == "causal"
    left_out = () if positional else _POSITIONAL
    for ours, theirs in zip(block.specs, specs, strict=True):
        values, wanted = ours.to_dict(), theirs.to_dict()
        other = [name for name in wanted if name not in left_out and values[name] != wanted[name]]
        if other:
            raise ValueError(
                f"{block.record.source} has the right weights, but describes the block otherwise "
                f"({', '.join(f'{name}={values[name]!r}, not {wanted[name]!r}' for name in other)})."
            )


def _blank_block(specs: list[BlockSpec], record: BlockRecord, dtype: torch.dtype) -> LLMBlock:
    tensors = [
        {name: torch.zeros(shape, device="cpu") for name, shape in spec.tensor_shapes().items()} for spec in specs
    ]
    return LLMBlock(specs, tensors, {}, record, dtype=dtype)
