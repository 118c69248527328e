"""Checkpoint files: written whole or not at all, read without unpickling code.

A file holds the trainable part of the model, the record of its frozen blocks, the optimizer, the schedule, and where
the run was. mmengine's message hub stays out: it pickles objects that a safe loader refuses; the history is in
``metrics.jsonl``.
"""

from __future__ import annotations

import os
import pickle
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.tensor import DTensor

FORMAT = 1
RECORD_KEY = "_extra_state"
_FULL = StateDictOptions(full_state_dict=True, cpu_offload=True)
_BROADCAST = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)


def write_checkpoint(checkpoint: Mapping[str, Any], path: Path) -> None:
    """Write under a temporary name, flush to the disk, then rename: a reader sees a whole file or none.

    Raises:
        OSError: The disk is full or the folder cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            torch.save(dict(checkpoint), file)
        place(temporary, path)
    except RuntimeError as error:
        if isinstance(error.__context__, OSError):  # torch's writer stumbles over what the failed write left
            raise error.__context__ from None
        raise
    finally:
        temporary.unlink(missing_ok=True)


def place(temporary: Path, path: Path) -> None:
    """Rename a file that is written, once it is on the disk."""
    with open(temporary, "rb+") as file:
        os.fsync(file.fileno())
    os.replace(temporary, path)
    _sync_folder(path.parent)


def link_checkpoint(source: Path, target: Path) -> None:
    """Give a checkpoint a second name, in one step; a copy where the file system has no hard links."""
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    temporary.unlink(missing_ok=True)
    try:
        os.link(source, temporary)
    except OSError:
        try:
            shutil.copyfile(source, temporary)
        except OSError:
            temporary.unlink(missing_ok=True)
            raise
    try:
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)  # renaming a link onto another one of the same file leaves both
    _sync_folder(target.parent)


def _sync_folder(folder: Path) -> None:
    if os.name != "posix":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def read_checkpoint(path: str | Path, mmap: bool = False) -> dict[str, Any]:
    """Read a checkpoint onto the CPU with ``weights_only=True``.

    Args:
        path: The file.
        mmap: Read from the disk only what is used; for those who look at little of it.

    Raises:
        ValueError: There is no such file, it is damaged, it holds objects other than tensors and plain values, or it is
            no checkpoint of this engine.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"There is no checkpoint at {path}.")
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{path} was refused: it holds objects other than tensors and plain values, or is damaged."
        ) from error
    except Exception as error:  # damaged pickles end in errors of every kind
        raise ValueError(f"{path} cannot be read as a checkpoint: it is damaged or cut short.") from error
    if not isinstance(checkpoint, dict) or checkpoint.get("format") != FORMAT:
        raise ValueError(f"{path} is no checkpoint of frozenllm's training engine (format {FORMAT}).")
    if not all(isinstance(checkpoint.get(key), dict) for key in ("meta", "state_dict")):
        raise ValueError(f"{path} lacks its weights or what they are: it is damaged.")
    return checkpoint


def model_state(model: nn.Module, sharded: bool = False) -> dict[str, Any]:
    """The model's state dict: whole and on the CPU where FSDP has sharded it (then called by all processes)."""
    if not sharded:
        return {key: value.detach().cpu() for key, value in model.state_dict().items()}
    return get_model_state_dict(model, options=_FULL)


def load_model_state(model: nn.Module, state: Mapping[str, Any], path: str | Path, sharded: bool = False) -> None:
    """Load a state dict; every key must fit.

    Raises:
        ValueError: The checkpoint was made with another block, or belongs to another model.
    """
    _check_keys(model, state, path)
    try:
        if sharded:
            for key, value in state.items():
                if key.endswith(RECORD_KEY):  # torch's distributed loader leaves extra state out
                    model.get_submodule(key.removesuffix(f".{RECORD_KEY}")).set_extra_state(value)
            set_model_state_dict(model, dict(state), options=_BROADCAST)
        else:
            model.load_state_dict(dict(state))
    except (ValueError, RuntimeError) as error:
        raise ValueError(f"{path} does not fit this model: {error}") from error


def _check_keys(model: nn.Module, state: Mapping[str, Any], path: str | Path) -> None:
    own = model.state_dict()
    missing, unexpected = [k for k in own if k not in state], [k for k in state if k not in own]
    shapes = [
        f"{k} {tuple(state[k].shape)} instead of {tuple(own[k].shape)}"
        for k in own
        if k in state and not k.endswith(RECORD_KEY) and state[k].shape != own[k].shape
    ]
    parts = [
        f"{what} {', '.join(names[:4])}{' ...' if len(names) > 4 else ''}"
        for what, names in (("it lacks", missing), ("the model lacks", unexpected), ("shapes differ:", shapes))
        if names
    ]
    if parts:
        raise ValueError(f"{path} belongs to another model: {'; '.join(parts)}.")


def optimizer_state(model: nn.Module, wrapper: Any, sharded: bool = False) -> dict[str, Any]:
    """The optimizer's state; sharded ones are gathered, and named instead of numbered."""
    if not sharded:
        return to_cpu(wrapper.state_dict())
    return {"named": get_optimizer_state_dict(model, wrapper.optimizer, options=_FULL)}


def load_optimizer_state(
    model: nn.Module, wrapper: Any, state: dict[str, Any], path: str | Path, sharded: bool = False
) -> None:
    """Inverse of `optimizer_state`.

    Raises:
        ValueError: It was written with another strategy, or with other parameter groups.
    """
    if ("named" in state) != sharded:
        raise ValueError(f"{path} was written {'without' if sharded else 'with'} FSDP: resume with the same strategy.")
    try:
        if sharded:
            set_optimizer_state_dict(model, wrapper.optimizer, state["named"], options=_BROADCAST)
        else:
            wrapper.load_state_dict(state)
    except ValueError as error:
        raise ValueError(f"{path} does not fit this optimizer: {error}") from error


def to_cpu(value: Any) -> Any:
    """Tensors inside dicts, lists and tuples as detached CPU tensors."""
    if isinstance(value, DTensor):
        value = value.full_tensor()
    if isinstance(value, torch.Tensor):
        return value.detach().cpu()
    if isinstance(value, Mapping):
        return {key: to_cpu(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(to_cpu(entry) for entry in value)
    return value


def prune(folder: Path, keep: int) -> None:
    """Delete all but the newest ``keep`` numbered checkpoints."""
    for old in checkpoints(folder)[:-keep]:
        old.unlink(missing_ok=True)


def checkpoints(folder: Path) -> list[Path]:
    """Numbered checkpoints in a folder, oldest first."""
    return sorted(folder.glob("iter_*.pt"))
