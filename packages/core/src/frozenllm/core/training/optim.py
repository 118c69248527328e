"""Parameter groups, and the optimizer wrappers built from them.

`param_groups` is plain torch: give its result to any optimizer in a loop of your own.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from mmengine.optim import AmpOptimWrapper, OptimWrapper
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from frozenllm.core.training.distributed import bare
from frozenllm.core.training.registry import OPTIM_WRAPPER_CONSTRUCTORS, OPTIM_WRAPPERS, OPTIMIZERS

LAYER_PATTERN = r"(?:^|\.)(?:blocks|layers|layer)\.(\d+)\."
STEM_PATTERN = r"embed|(?:^|\.)(?:cls_token|reg_token|dist_token|conv1|patch)"
_ADAPTERS = ("adapter_in", "adapter_out")


def param_groups(
    model: nn.Module,
    lr: float,
    weight_decay: float,
    *,
    layer_decay: float | None = None,
    adapter_lr_mult: float = 1.0,
    no_decay: Sequence[str] = (),
    no_decay_lr_mult: float = 1.0,
    groups: Sequence[Mapping[str, Any]] = (),
    layer_pattern: str = LAYER_PATTERN,
    stem_pattern: str = STEM_PATTERN,
) -> list[dict[str, Any]]:
    """Trainable parameters, grouped by learning rate and weight decay.

    Args:
        model: Host with or without a frozen layer.
        lr: Learning rate of the last layers.
        weight_decay: Weight decay; parameters with one dimension or none, biases and ``no_decay`` get 0.
        layer_decay: Factor on the learning rate per layer counted from the end (BEiT, VideoMAE); None for none. With
            L layers, layer i has ``layer_decay ** (L - i)``, the stem ``layer_decay ** (L + 1)``, and everything else
            (frozen layer, final norm, head) 1.
        adapter_lr_mult: Factor on the learning rate of the frozen layer's adapters.
        no_decay: Names, or last parts of names, of further parameters without weight decay.
        no_decay_lr_mult: Factor on the learning rate of parameters without weight decay (the official point cloud code
            has 0.1: its rate for them is 5e-5).
        groups: Exceptions, ``{"match", "lr_mult", "weight_decay"}``: the first whose regular expression is found in a
            parameter's name multiplies its rate, in place of the two factors above, and sets its weight decay (either
            may be left out).
        layer_pattern: Regular expression for the names of a layer's parameters; its group is the layer's index.
        stem_pattern: Regular expression for the names of what comes before layer 0.

    Returns:
        Groups with ``params``, ``lr``, ``weight_decay``, ``lr_scale`` and ``names``, in order of the model.
    """
    inserted = _inserted(model)
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    depths = {name: _depth(name, inserted, layer_pattern, stem_pattern) for name, _ in named}
    last = max((depth for depth in depths.values() if depth is not None), default=0) + 1
    exceptions = [_exception(entry) for entry in groups]
    result: dict[tuple[float, float], dict[str, Any]] = {}
    for name, parameter in named:
        depth = depths[name]
        scale = 1.0 if layer_decay is None or depth is None else layer_decay ** (last - depth)
        listed = any(name == entry or name.endswith(f".{entry}") for entry in no_decay)
        exempt = listed or parameter.ndim <= 1 or name.endswith(".bias")
        decay = 0.0 if exempt else weight_decay
        if own := next((entry for entry in exceptions if re.search(entry["match"], name)), None):
            scale *= own.get("lr_mult", 1.0)
            decay = own.get("weight_decay", decay)
        else:
            adapter = any(part in _ADAPTERS for part in name.split("."))
            scale *= (adapter_lr_mult if adapter else 1.0) * (no_decay_lr_mult if exempt else 1.0)
        group = result.setdefault(
            (scale, decay),
            {"params": [], "lr": lr * scale, "weight_decay": decay, "lr_scale": scale, "names": []},
        )
        group["params"].append(parameter)
        group["names"].append(name)
    if not result:
        raise ValueError("The model has no trainable parameters.")
    return list(result.values())


def _exception(entry: Mapping[str, Any]) -> Mapping[str, Any]:
    unknown = set(entry) - {"match", "lr_mult", "weight_decay"}
    if unknown or "match" not in entry:
        raise ValueError(f"An entry of optim.groups has match, lr_mult and weight_decay, not {dict(entry)}.")
    try:
        re.compile(entry["match"])
    except re.error as error:
        raise ValueError(f"optim.groups: {entry['match']!r} is not a regular expression ({error}).") from error
    return entry


def _inserted(model: nn.Module) -> tuple[str, ...]:
    """Name prefixes of the frozen layers (or of what stands in for them): their own layers are none of the host's."""
    return tuple(
        f"{name}." for name, module in model.named_modules() if name and all(hasattr(module, a) for a in _ADAPTERS)
    )


def _depth(name: str, inserted: tuple[str, ...], layer_pattern: str, stem_pattern: str) -> int | None:
    """0 for the stem, i + 1 for layer i, None for what comes after."""
    if name.startswith(inserted):
        return None
    if match := re.search(layer_pattern, name):
        return int(match.group(1)) + 1
    return 0 if re.search(stem_pattern, name) else None


@OPTIM_WRAPPERS.register_module()
class EngineOptimWrapper(OptimWrapper):
    """mmengine's wrapper, which can also clip gradients that FSDP has sharded."""

    def _clip_grad(self) -> None:
        clip_gradients(self)


@OPTIM_WRAPPERS.register_module()
class ScaledOptimWrapper(AmpOptimWrapper):
    """Gradient scaling for float16 on a GPU; autocast itself belongs to the task."""

    def optim_context(self, model: nn.Module) -> AbstractContextManager[None]:
        """That of the plain wrapper: mmengine's own would compute losses under autocast too."""
        return OptimWrapper.optim_context(self, model)

    def _clip_grad(self) -> None:
        clip_gradients(self)


def clip_gradients(wrapper: OptimWrapper) -> None:
    """Clip by norm (or value) and note the norm for the log as ``grad_norm``."""
    params = [p for group in wrapper.optimizer.param_groups for p in group["params"] if p.grad is not None]
    norm = wrapper.clip_func(params, **wrapper.clip_grad_kwargs)
    if isinstance(norm, DTensor):
        norm = norm.full_tensor()
    wrapper.last_grad_norm = norm if isinstance(norm, Tensor) else None


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class GroupedOptimizer:
    """Builds the optimizer wrapper from ``optim_wrapper_cfg``; ``paramwise_cfg`` goes to `param_groups`."""

    def __init__(self, optim_wrapper_cfg: dict[str, Any], paramwise_cfg: dict[str, Any] | None = None) -> None:
        self.wrapper = dict(optim_wrapper_cfg)
        self.optimizer = dict(self.wrapper.pop("optimizer"))
        self.paramwise = dict(paramwise_cfg or {})

    def __call__(self, model: nn.Module) -> OptimWrapper:
        """The optimizer wrapper for a task (wrapped by DDP or not)."""
        task = bare(model)
        lr, weight_decay = self.optimizer.pop("lr"), self.optimizer.pop("weight_decay", 0.0)
        groups = param_groups(getattr(task, "model", task), lr, weight_decay, **self.paramwise)
        known = {id(p) for group in groups for p in group["params"]}
        if extra := [n for n, p in task.named_parameters() if p.requires_grad and id(p) not in known]:
            raise ValueError(f"A task's own parameters are not trained: {', '.join(extra)}; put them into the model.")
        settings = {**self.optimizer, "params": groups, "lr": lr, "weight_decay": weight_decay}
        if OPTIMIZERS.get(settings["type"]) is None:
            raise ValueError(f"torch.optim has no optimizer {settings['type']!r}: check optim.type.")
        try:
            optimizer: torch.optim.Optimizer = OPTIMIZERS.build(settings)
        except (TypeError, ValueError, IndexError) as error:  # torch's words name the option
            raise ValueError(f"optim: {settings['type']} cannot be made from these options: {error}.") from error
        return OPTIM_WRAPPERS.build({**self.wrapper, "optimizer": optimizer})
