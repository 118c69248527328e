"""The command: ``python -m frozenllm.vision2d.robustness checkpoint=... data.imagenet=...``."""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from torch import distributed

from frozenllm.core.training import run_cli
from frozenllm.core.training.cli import failure
from frozenllm.core.training.composition import resolve
from frozenllm.core.training.distributed import is_main, join, pick_device
from frozenllm.core.training.task import AUTOCAST
from frozenllm.vision2d.robustness import report
from frozenllm.vision2d.robustness.evaluation import SETS_FOLDER, Remembered, evaluate_set, open_set
from frozenllm.vision2d.robustness.models import Candidate, load_candidate
from frozenllm.vision2d.robustness.progress import LOGGER, Progress, log_to
from frozenllm.vision2d.robustness.scores import Counts
from frozenllm.vision2d.robustness.sets import chosen_sets

CONFIG = "frozenllm.vision2d.conf"
CONFIG_NAME = "robustness"

logger = logging.getLogger(__name__)


def evaluate_robustness(cfg: DictConfig) -> dict[str, Any]:
    """Evaluate a model on ImageNet and its relatives, except for sets that the output folder has results of.

    Under torchrun, every process classifies a share of each set, and the first one writes.

    Args:
        cfg: ``robustness.yaml``, composed.

    Returns:
        The figures, as in ``results.json``.

    Raises:
        ValueError: The model, the data or the settings do not fit. All folders are checked before the first set.
    """
    cfg = resolve(cfg)
    if cfg.on_error not in ("raise", "skip"):
        raise ValueError(f"on_error must be raise or skip, not {cfg.on_error!r}.")
    runtime = cfg.runtime
    device = pick_device(runtime.device)
    if runtime.precision not in ("fp32", *AUTOCAST):
        raise ValueError(f"runtime.precision must be fp32, bf16 or fp16, not {runtime.precision!r}.")
    if runtime.precision == "fp16" and device.type == "cpu":
        raise ValueError("runtime.precision=fp16 needs a GPU: use bf16 or fp32.")
    if runtime.threads:
        torch.set_num_threads(runtime.threads)
    parts = chosen_sets(OmegaConf.to_container(cfg.data), list(cfg.sets), cfg.partial)  # type: ignore[arg-type]
    if not parts:
        raise ValueError(f"sets is empty: choose from {', '.join(report.TITLES)}.")
    candidate = load_candidate(
        cfg.checkpoint,
        cfg.timm_model,
        weights=cfg.weights,
        llm_path=cfg.llm_path,
        precision=runtime.precision,
        official=OmegaConf.to_container(cfg.official),  # type: ignore[arg-type]
    )
    candidate.model.to(device)
    join("auto", device)
    folder = output_folder(cfg, candidate)
    try:
        (folder / SETS_FOLDER).mkdir(parents=True, exist_ok=True)
        handlers = log_to(folder, runtime.console, logging.INFO if is_main() else logging.WARNING)
    except OSError as error:
        raise ValueError(
            f"The folder {folder} cannot be written ({error.strerror}): choose another with out=..."
        ) from error
    try:
        return _evaluate(cfg, candidate, parts, folder, device)
    finally:
        for handler in handlers:
            LOGGER.removeHandler(handler)
            handler.close()


def _evaluate(
    cfg: DictConfig, candidate: Candidate, parts: list[Any], folder: Path, device: torch.device
) -> dict[str, Any]:
    remembered = Remembered(folder / SETS_FOLDER, candidate)
    counts: dict[str, Counts] = {}
    for part in parts if is_main() else ():
        known = None if cfg.overwrite else remembered.read(part, cfg.on_error, cfg.partial)
        if known is not None:
            counts[part.name] = known
    counts = _from_main(counts)
    waiting = [part for part in parts if part.name not in counts]
    if counts:
        logger.info(f"{folder} has {len(counts)} of {len(parts)} sets: {len(waiting)} are left.")
    progress = Progress(waiting, len(parts), cfg.runtime.progress_seconds)
    for part in waiting:
        dataset, missing = open_set(part, candidate.transform, cfg.on_error, cfg.partial)
        progress.open(part, len(dataset))
        found = evaluate_set(
            candidate,
            dataset,
            part.wnids,
            device,
            batch_size=cfg.batch_size,
            workers=cfg.runtime.workers,
            progress=progress.step,
        )
        found.missing_classes = missing
        counts[part.name] = found
        if is_main():
            remembered.write(part, found)
            report.write_report(folder, report.results(candidate, parts, counts), final=False)
        progress.close(found)
    figures = report.results(candidate, parts, counts)
    if is_main():
        report.write_report(folder, figures)
    logger.info("Results are in %s.\n\n%s", folder, report.table(figures))
    return figures


def _from_main(counts: dict[str, Counts]) -> dict[str, Counts]:
    """What the first process found: the others may not look into the folder while it writes there."""
    if distributed.is_initialized():
        shared = [counts]
        distributed.broadcast_object_list(shared)
        counts = shared[0]
    return counts


def output_folder(cfg: DictConfig, candidate: Candidate) -> Path:
    """Where the results go: ``out``, the run's own folder, or one named after the model."""
    if cfg.out:
        return Path(cfg.out).expanduser().absolute()
    if cfg.checkpoint:
        path = Path(cfg.checkpoint).expanduser().absolute()
        if path.parent.name == "checkpoints" and (path.parent.parent / "config.yaml").is_file():
            return path.parent.parent / "robustness"
        return Path("runs").absolute() / "robustness" / path.stem
    return Path("runs").absolute() / "robustness" / candidate.title


def job(cfg: DictConfig) -> None:
    """One evaluation: called by Hydra."""
    try:
        evaluate_robustness(cfg)
    except Exception as error:
        raise failure(error) from error


def main(argv: Sequence[str] | None = None) -> None:
    """The command line.

    Args:
        argv: Overrides in Hydra's grammar; None for the process's arguments.
    """
    run_cli(CONFIG, list(sys.argv[1:] if argv is None else argv), CONFIG_NAME, job)
