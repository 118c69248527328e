"""Batches of samples that have different numbers of agents and polylines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor


def collate_scenes(samples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Pads the inputs to the largest sample of the batch; padding is zero and nowhere valid.

    Args:
        samples: As `frozenllm.motion.data.centre` makes them.

    Returns:
        The same keys: tensors with a batch dimension in front, and lists of strings.

    Raises:
        ValueError: Samples differ in history or horizon.
    """
    first = samples[0]
    for sample in samples[1:]:
        for part, name in (("inputs", "agents"), ("targets", "future")):
            length, expected = sample[part][name].shape[-2], first[part][name].shape[-2]
            if length != expected:
                raise ValueError(f"Samples of one batch differ in steps: {length} and {expected} for {part}.{name}.")
    return {key: _merge([sample[key] for sample in samples]) for key in first}


def _merge(values: list[Any]) -> Any:
    if isinstance(values[0], Mapping):
        return {key: _merge([value[key] for value in values]) for key in values[0]}
    if isinstance(values[0], Tensor):
        return _pad(values)
    return values


def _pad(tensors: list[Tensor]) -> Tensor:
    shape = [max(sizes) for sizes in zip(*(tensor.shape for tensor in tensors), strict=True)]
    batch = tensors[0].new_zeros(len(tensors), *shape)
    for row, tensor in zip(batch, tensors, strict=True):
        row[tuple(slice(size) for size in tensor.shape)] = tensor
    return batch
