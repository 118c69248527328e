"""The run folder ``<runs>/<recipe>/<name>``: what may be written there, and when."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from frozenllm.core.environment import environment
from frozenllm.core.training import checkpoint as files
from frozenllm.core.training.distributed import on_main
from frozenllm.core.training.faults import remove_halves
from frozenllm.core.training.journal import HISTORY
from frozenllm.core.training.lock import hold, let_go
from frozenllm.core.whole_files import write_text

CONFIG = "config.yaml"
_OWN_FILES = (CONFIG, "environment.json", "evaluation.jsonl", "metrics.jsonl", "summary.json", "train.log")
_OWN_FOLDERS = ("checkpoints", "plots", "study", "tensorboard", "wandb")
_BEFORE = ".overwritten"  # where a run lies that is being replaced, until the new one's first step
_GONE = ".overwritten-gone"  # renamed first: what is half deleted must not be put back
_MAY_CHANGE = ("resume", "overwrite", "eval_only", "checkpoint", "split", "runs", "imports", "runtime.stop_after")


def run_folder(cfg: DictConfig) -> Path:
    """Absolute path of a config's run folder; it carries no time, so that resuming and all processes find it."""
    return Path(str(cfg.runs)).expanduser().absolute() / cfg.recipe / str(cfg.name)


def prepare(folder: Path, cfg: DictConfig) -> Path | None:
    """Make a run folder ready for training, and lock it (`lock.let_go` unlocks it); called by all processes.

    Args:
        folder: See `run_folder`.
        cfg: Resolved config; it is written there.

    Returns:
        The checkpoint to resume from, or None.

    Raises:
        ValueError: The folder cannot be written, is in use by another run, or holds a run and neither ``resume`` nor
            ``overwrite`` is set.
    """
    return on_main(lambda: _prepare(folder, cfg))


def not_there(folder: Path) -> list[Path]:
    """What a run would make and is not there yet: its own files and folders, then the run folder and those above."""
    own = [folder / name for name in (*_OWN_FILES, *_OWN_FOLDERS) if not (folder / name).exists()]
    return [*own, *(place for place in (folder, *folder.parents) if not place.exists())]


def withdraw(folder: Path, made: Sequence[Path]) -> None:
    """Remove what a start has made that failed before there was anything to keep, and unlock the folder.

    A run that it was to replace (``overwrite=true``) is put back.

    Args:
        folder: The run folder.
        made: From `not_there`, before the start.
    """
    if (folder / HISTORY).exists() or files.checkpoints(folder / "checkpoints"):
        return
    if (folder / _BEFORE).exists():
        _put_back(folder)
        let_go(folder)
        return
    own = [path for path in made if path.parent == folder]
    for path in own:
        if path.name in _OWN_FILES:
            path.unlink(missing_ok=True)
        else:
            shutil.rmtree(path, ignore_errors=True)
    let_go(folder)
    with contextlib.suppress(OSError):  # other things lie there
        for path in made[len(own) :]:
            path.rmdir()


def _prepare(folder: Path, cfg: DictConfig) -> Path | None:
    if cfg.resume and cfg.overwrite:
        raise ValueError("resume=true and overwrite=true exclude each other.")
    there = _holds_run(folder) or (folder / _BEFORE).exists()
    if there and not (cfg.resume or cfg.overwrite):
        raise ValueError(
            f"{folder} holds a run already: continue it with resume=true, or replace it with overwrite=true."
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        hold(folder)
    except OSError as error:
        raise _unwritable(folder, error) from error
    try:
        return _start(folder, cfg, there)
    except OSError as error:
        let_go(folder)
        raise _unwritable(folder, error) from error
    except BaseException:
        let_go(folder)
        raise


def _unwritable(folder: Path, error: OSError) -> ValueError:
    return ValueError(
        f"The run folder {folder} cannot be written ({error.strerror or error}): choose another with runs=..."
    )


def _start(folder: Path, cfg: DictConfig, there: bool) -> Path | None:
    shutil.rmtree(folder / _GONE, ignore_errors=True)
    if (folder / _BEFORE).exists():  # of a start that was killed before its first step
        _put_back(folder)
    if there and cfg.overwrite:
        _set_aside(folder)
    (folder / "checkpoints").mkdir(exist_ok=True)
    for place in (folder, folder / "checkpoints"):
        remove_halves(place)
    numbered = files.checkpoints(folder / "checkpoints")
    newest = numbered[-1] if numbered else None
    if cfg.resume and newest is not None:
        _report_changes(folder / CONFIG, cfg)
    write_text(folder / CONFIG, OmegaConf.to_yaml(cfg))
    write_text(folder / "environment.json", json.dumps(environment(), indent=2) + "\n")
    if cfg.resume and newest is None:
        print(f"There is nothing to resume in {folder} yet: the run starts from its beginning.")
    return newest if cfg.resume else None


def forget_overwritten(folder: Path) -> None:
    """Delete the run that was replaced: there is no way back once the new one trains."""
    if (folder / _BEFORE).exists():
        (folder / _BEFORE).rename(folder / _GONE)
    shutil.rmtree(folder / _GONE, ignore_errors=True)


def _holds_run(folder: Path) -> bool:
    """Whether there is something to lose; a start that failed before its first step leaves no more than a config."""
    return (folder / HISTORY).exists() or bool(files.checkpoints(folder / "checkpoints"))


def _set_aside(folder: Path) -> None:
    (folder / _BEFORE).mkdir(exist_ok=True)
    for name in (*_OWN_FILES, *_OWN_FOLDERS):
        if (folder / name).exists():
            (folder / name).rename(folder / _BEFORE / name)


def _put_back(folder: Path) -> None:
    for path in (folder / _BEFORE).iterdir():
        new = folder / path.name
        if new.is_dir():
            shutil.rmtree(new)
        path.replace(new)
    (folder / _BEFORE).rmdir()


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
