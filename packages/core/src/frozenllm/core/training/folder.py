"""The run folder ``<runs>/<recipe>/<name>``: what may be written there, and when."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from torch import distributed

from frozenllm.core.training import checkpoint as files
from frozenllm.core.training.distributed import is_main
from frozenllm.core.training.environment import environment
from frozenllm.core.training.journal import HISTORY

CONFIG = "config.yaml"
_OWN_FILES = (CONFIG, "environment.json", "evaluation.jsonl", "metrics.jsonl", "summary.json", "train.log")
_OWN_FOLDERS = ("checkpoints", "plots", "tensorboard", "wandb")
_MAY_CHANGE = ("resume", "overwrite", "eval_only", "checkpoint", "split", "runs", "imports", "runtime.stop_after")


def run_folder(cfg: DictConfig) -> Path:
    """Absolute path of a config's run folder; it carries no time, so that resuming and all processes find it."""
    return Path(cfg.runs).expanduser().absolute() / cfg.recipe / cfg.name


def prepare(folder: Path, cfg: DictConfig) -> Path | None:
    """Make a run folder ready for training; called by all processes.

    Args:
        folder: See `run_folder`.
        cfg: Resolved config; it is written there.

    Returns:
        The checkpoint to resume from, or None.

    Raises:
        ValueError: The folder cannot be written, or holds a run and neither ``resume`` nor ``overwrite`` is set.
    """
    outcome: list[Any] = [None, None]
    if is_main():
        try:
            outcome[0] = _prepare(folder, cfg)
        except ValueError as error:
            outcome[1] = str(error)
    if distributed.is_initialized():
        distributed.broadcast_object_list(outcome)
    if outcome[1] is not None:
        raise ValueError(outcome[1])
    return outcome[0]


def _prepare(folder: Path, cfg: DictConfig) -> Path | None:
    if cfg.resume and cfg.overwrite:
        raise ValueError("resume=true and overwrite=true exclude each other.")
    # A start that failed before its first step leaves a config and nothing to lose.
    there = (folder / HISTORY).exists() or bool(files.checkpoints(folder / "checkpoints"))
    if there and not (cfg.resume or cfg.overwrite):
        raise ValueError(
            f"{folder} holds a run already: continue it with resume=true, or replace it with overwrite=true."
        )
    if there and cfg.overwrite:
        clear(folder)
    try:
        (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
        numbered = files.checkpoints(folder / "checkpoints")
        newest = numbered[-1] if numbered else None
        if cfg.resume and newest is not None:
            _report_changes(folder / CONFIG, cfg)
        write_text(folder / CONFIG, OmegaConf.to_yaml(cfg))
        write_text(folder / "environment.json", json.dumps(environment(), indent=2) + "\n")
    except OSError as error:
        raise ValueError(
            f"The run folder {folder} cannot be written ({error.strerror}): choose another with runs=..."
        ) from error
    if cfg.resume and newest is None:
        print(f"There is nothing to resume in {folder} yet: the run starts from its beginning.")
    return newest if cfg.resume else None


def clear(folder: Path) -> None:
    """Delete what a run writes, and nothing else that may lie in the folder."""
    for name in _OWN_FILES:
        (folder / name).unlink(missing_ok=True)
    for name in _OWN_FOLDERS:
        shutil.rmtree(folder / name, ignore_errors=True)


def write_text(path: Path, text: str) -> None:
    """Write a small file in one step."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_text(text)
    os.replace(temporary, path)


def _report_changes(path: Path, cfg: DictConfig) -> None:
    if not path.exists():
        return
    old, new = _flat(OmegaConf.to_container(OmegaConf.load(path))), _flat(OmegaConf.to_container(cfg))
    changed = [k for k in sorted(old.keys() | new.keys()) if old.get(k) != new.get(k) and k not in _MAY_CHANGE]
    if changed:
        print(f"Resuming with another config than the run began with: {', '.join(changed)}.")


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(value, dict):
        return {prefix: value}
    return {k: v for key, entry in value.items() for k, v in _flat(entry, f"{prefix}.{key}" if prefix else key).items()}
