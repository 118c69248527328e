"""Several processes: joining the group that torchrun describes, and wrapping the model in DDP or FSDP."""

from __future__ import annotations

import atexit
import datetime
import os
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from mmengine.model import MMDistributedDataParallel, is_model_wrapper
from torch import distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from frozenllm.core.block import ignore_blocks_in_ddp
from frozenllm.core.layer import FrozenLLMLayer

_Result = TypeVar("_Result")
STRATEGIES = ("auto", "none", "ddp", "fsdp")


def pick_device(name: str) -> torch.device:
    """``"auto"``, ``"cpu"`` or ``"cuda"`` as a device; under torchrun, each process has a GPU of its own.

    Raises:
        ValueError: The name is unknown, or there is no such device.
    """
    if name not in ("auto", "cpu", "cuda"):
        raise ValueError(f"runtime.device must be auto, cpu or cuda, not {name!r}.")
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("runtime.device=cuda, but torch sees no GPU: use runtime.device=cpu.")
    if name == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
    torch.cuda.set_device(device)
    return device


def join(strategy: str, device: torch.device, timeout_minutes: float = 30) -> str:
    """Join the process group if torchrun started this process.

    Args:
        strategy: ``"auto"`` (DDP under torchrun, else none), ``"none"``, ``"ddp"`` or ``"fsdp"``.
        device: Picks the backend: gloo on a CPU, nccl on a GPU.
        timeout_minutes: How long processes wait for each other.

    Returns:
        ``"none"``, ``"ddp"`` or ``"fsdp"``.

    Raises:
        ValueError: The strategy is unknown, or does not go with how the process was started.
    """
    if strategy not in STRATEGIES:
        raise ValueError(f"runtime.strategy must be one of {', '.join(STRATEGIES)}, not {strategy!r}.")
    world = int(os.environ.get("WORLD_SIZE", 1))
    launched = "RANK" in os.environ and "WORLD_SIZE" in os.environ
    if strategy == "auto":
        strategy = "ddp" if launched and world > 1 else "none"
    if strategy == "none":
        if launched and world > 1:
            raise ValueError(f"runtime.strategy=none, but torchrun started {world} processes: use ddp or fsdp.")
        return "none"
    if not launched:
        raise ValueError(f"runtime.strategy={strategy} needs torchrun: torchrun --nproc-per-node=2 -m <module> ...")
    if not distributed.is_initialized():
        # mmengine would set a CUDA device first, which a machine without a GPU does not have.
        distributed.init_process_group(
            "nccl" if device.type == "cuda" else "gloo", timeout=datetime.timedelta(minutes=timeout_minutes)
        )
        atexit.register(leave)
    return strategy


def leave() -> None:
    """Leave the process group."""
    if distributed.is_initialized():
        distributed.destroy_process_group()


def is_main() -> bool:
    """Whether this process writes files."""
    return not distributed.is_initialized() or distributed.get_rank() == 0


def on_main(action: Callable[[], _Result]) -> _Result:
    """Do something in the process that writes files; the others wait, and get its result or its `ValueError`."""
    outcome: list[Any] = [None, None]
    if is_main():
        try:
            outcome[0] = action()
        except ValueError as error:
            outcome[1] = error
    if distributed.is_initialized():
        distributed.broadcast_object_list(outcome)
    if outcome[1] is not None:
        raise outcome[1]
    return outcome[0]


def bare(model: nn.Module) -> nn.Module:
    """The module inside DDP, or the module itself."""
    inner = model.module if is_model_wrapper(model) else model
    assert isinstance(inner, nn.Module)
    return inner


def average_buffers(model: nn.Module) -> None:
    """Give all processes the mean of their running statistics (BatchNorm), which DDP lets drift apart.

    Only what the state dict holds is averaged: frozen blocks are not.
    """
    if not distributed.is_initialized():
        return
    parameters = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    for name, value in model.state_dict().items():
        if name not in parameters and value.is_floating_point():
            distributed.all_reduce(value)
            value.div_(distributed.get_world_size())


def wrap(task: nn.Module, strategy: str, device: torch.device, **options: Any) -> nn.Module:
    """Make a task train on all processes.

    Args:
        task: On its device already.
        strategy: ``"none"``, ``"ddp"`` or ``"fsdp"``.
        device: This process's device.
        options: For DDP's constructor.

    Returns:
        The task, or DDP around it. FSDP shards the task's parameters in place; frozen blocks are buffers, which every
        process keeps whole.
    """
    if strategy == "ddp":
        ignore_blocks_in_ddp(task)
        return MMDistributedDataParallel(
            task, device_ids=[device.index] if device.type == "cuda" else None, broadcast_buffers=False, **options
        )
    if strategy == "fsdp":
        mesh = init_device_mesh(device.type, (distributed.get_world_size(),))
        for unit in _units(task):
            fully_shard(unit, mesh=mesh)
        fully_shard(task, mesh=mesh)
    return task


def _units(module: nn.Module) -> list[nn.Module]:
    """What is gathered and freed together: the members of the model's lists of layers, not what is inside them.

    A single convolution or norm is no unit: a unit's weights are there only while it is called, and hosts may use
    those of the parts of a small `nn.Sequential` without calling them. Nor is a layer of a language-model block one, of
    which the exact shortcuts use the parts.
    """
    units: list[nn.Module] = []
    for child in module.children():
        if isinstance(child, nn.ModuleList | nn.Sequential) and len(child) > 1:
            layers = [layer for layer in child if next(layer.children(), None) is not None]
            units += [layer for layer in layers if any(p.requires_grad for p in layer.parameters())]
        elif not isinstance(child, FrozenLLMLayer):
            units += _units(child)
    return units
