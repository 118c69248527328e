"""What a prediction costs: operations counted, time measured."""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from frozenllm.core.flops import count_flops
from frozenllm.core.layer import FrozenLLMLayer

_TIMED = 7  # predictions, of which the median counts


def prediction_cost(model: nn.Module, inputs: Any) -> dict[str, float]:
    """Cost of one prediction in eval mode.

    Args:
        model: A plain module; its mode is restored.
        inputs: A batch of one sample on the model's device: what the module takes, or a mapping of keyword arguments.

    Returns:
        ``flops``, as it is computed here, with folded weights at hand (docs/frozen_layer.md); ``dense_flops``, without
        the exact shortcuts, as the official code computes it; ``latency``, the median seconds of a call.
    """
    training = model.training
    model.eval()
    # `forward`, since a compiled module's call hides its operations, and compiling for one sample takes minutes.
    call = (lambda: model.forward(**inputs)) if isinstance(inputs, Mapping) else (lambda: model.forward(inputs))
    try:
        with torch.no_grad():
            call()  # fills the cache of folded weights
            seconds = [_timed(call, inputs) for _ in range(_TIMED)]
            flops = count_flops(call)
            with _dense(model) as any_layer:
                dense = count_flops(call) if any_layer else flops
    finally:
        model.train(training)
    return {"flops": flops, "dense_flops": dense, "latency": statistics.median(seconds)}


def first_sample(loader: Any, move: Callable[[Any], Any]) -> Any:
    """Inputs of a loader's first sample, as a batch of one.

    Args:
        loader: The engine's validation loader.
        move: Brings a batch to the model's device.
    """
    return move(loader.collate_fn([loader.dataset[(0, 0, 0)]]))["inputs"]


def _timed(call: Callable[[], Any], inputs: Any) -> float:
    tensors = inputs.values() if isinstance(inputs, Mapping) else [inputs]
    on_gpu = any(isinstance(t, Tensor) and t.is_cuda for t in tensors)
    if on_gpu:
        torch.cuda.synchronize()
    start = time.perf_counter()
    call()
    if on_gpu:
        torch.cuda.synchronize()
    return time.perf_counter() - start


@contextlib.contextmanager
def _dense(model: nn.Module) -> Iterator[bool]:
    """Without the exact shortcuts; yields whether there are any."""
    layers = [module for module in model.modules() if isinstance(module, FrozenLLMLayer)]
    chosen = [layer.exact for layer in layers]
    try:
        for layer in layers:
            layer.exact = "dense"
        yield bool(layers)
    finally:
        for layer, exact in zip(layers, chosen, strict=True):
            layer.exact = exact
