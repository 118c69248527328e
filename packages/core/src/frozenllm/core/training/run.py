"""One run: training, or evaluation of a checkpoint."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from mmengine.hooks import Hook
from omegaconf import DictConfig
from torch import distributed

from frozenllm.core.block import llm_blocks
from frozenllm.core.training import data, ema, finite, guard, loop, metrics, optim, schedule, task  # noqa: F401 (they register)
from frozenllm.core.training.composition import resolve
from frozenllm.core.training.cost import first_sample, prediction_cost
from frozenllm.core.training.distributed import is_main, join, pick_device
from frozenllm.core.training.engine import Engine
from frozenllm.core.training.faults import RunStopped, explained
from frozenllm.core.training.folder import not_there, prepare, run_folder, withdraw
from frozenllm.core.training.journal import Journal
from frozenllm.core.training.lock import let_go
from frozenllm.core.training.registry import mistake_in
from frozenllm.core.training.saving import Saver
from frozenllm.core.training.settings import engine_settings, import_registrations
from frozenllm.core.training.task import AUTOCAST
from frozenllm.core.training.values import check_values
from frozenllm.core.whole_files import write_text

SUMMARY = "summary.json"


@dataclass
class RunResult:
    """What a training run came to; ``summary.json`` holds the same.

    Attributes:
        run_dir: The run folder.
        seed: ``runtime.seed``.
        metrics: Figures of the last validation.
        test: Figures on ``data.test``, after the last epoch; empty where there is none.
        best: ``{"metric", "value", "epoch", "iter"}`` of the best validation, or None.
        trainable: Numbers that are trained.
        frozen: Numbers in frozen language-model blocks.
        epochs: Epochs trained.
        iterations: Iterations trained.
        step_seconds: Median time of a training step with loading, in this process or, where it made too few, in the one
            that it resumed; None after very short runs.
        flops: Operations of one prediction (`cost.prediction_cost`); None with FSDP.
        dense_flops: The same without the exact shortcuts, as the official code computes it.
        latency: Seconds of one prediction, for one sample.
        seconds: Time that this process took.
        finished: False if the run stopped before its last epoch.
    """

    run_dir: str
    seed: int
    metrics: dict[str, float] = field(default_factory=dict)
    test: dict[str, float] = field(default_factory=dict)
    best: dict[str, Any] | None = None
    trainable: int = 0
    frozen: int = 0
    epochs: int = 0
    iterations: int = 0
    step_seconds: float | None = None
    flops: float | None = None
    dense_flops: float | None = None
    latency: float | None = None
    seconds: float = 0.0
    finished: bool = False


def train(cfg: DictConfig) -> RunResult:
    """Train what a config describes.

    Args:
        cfg: From `compose_config`.

    Returns:
        The figures; the run folder holds config, log, metrics, plots and checkpoints.

    Raises:
        ValueError: The config, the data or a file does not fit.
        RunStopped: A disk, a worker, a sample or the loss failed on the way; the last checkpoint can be resumed from.
        FrozenBlockChanged: A frozen block was written to.
    """
    cfg = resolve(cfg)
    check_values(cfg)
    if cfg.eval_only:
        raise ValueError("eval_only=true is for evaluate(), not for train().")
    if cfg.checkpoint and not Path(cfg.checkpoint).expanduser().is_file():  # before anything is overwritten
        raise ValueError(f"There is no checkpoint at {cfg.checkpoint}: checkpoint=... names a file to start from.")
    import_registrations(cfg)
    device, strategy, world = _processes(cfg)
    folder = run_folder(cfg)
    made = not_there(folder)
    resume_from = prepare(folder, cfg)
    try:
        return _train(cfg, folder, resume_from, device, strategy, world)
    except Exception as error:
        if is_main() and isinstance(error, ValueError | ImportError) and not isinstance(error, RunStopped):
            withdraw(folder, made)
        raise
    finally:
        let_go(folder)


def _train(
    cfg: DictConfig, folder: Path, resume_from: Path | None, device: torch.device, strategy: str, world: int
) -> RunResult:
    start = time.perf_counter()
    settings = engine_settings(
        cfg,
        str(folder),
        device,
        strategy,
        world,
        load_from=str(resume_from or cfg.checkpoint) if resume_from or cfg.checkpoint else None,
        resume=resume_from is not None,
    )
    engine = _engine(settings)
    _hook(engine, Saver).check_best(engine.val_loop.evaluator.metrics)  # type: ignore[union-attr]
    counts = model_counts(engine.bare_model)
    engine.logger.info(
        f"{folder}: {counts['trainable']:,} trainable, {counts['frozen']:,} frozen parameters, on {device}"
        + (f" x {world} ({strategy})" if world > 1 else "")
    )
    with explained(engine), _registered():
        engine.train()
        tested = _test(engine, cfg) if cfg.data.test and engine.train_loop.finished else {}
    saver, journal = _hook(engine, Saver), _hook(engine, Journal)
    result = RunResult(
        run_dir=str(folder),
        seed=cfg.runtime.seed,
        metrics=saver.last_metrics,
        test=tested,
        best=saver.best_record,
        epochs=engine.epoch,
        iterations=engine.iter,
        step_seconds=journal.step_seconds or (_earlier_steps(folder) if resume_from else None),
        seconds=time.perf_counter() - start,
        finished=engine.train_loop.finished,
        **counts,
    )
    if is_main():
        _summarize(folder, result)
        if strategy != "fsdp":  # a sharded model computes in all processes or not at all
            result = replace(result, **_cost(engine))
            _summarize(folder, result)
    return result


def _earlier_steps(folder: Path) -> float | None:
    """``step_seconds`` of the summary that is there; a finished run that is resumed makes no steps of its own."""
    try:
        return json.loads((folder / SUMMARY).read_text()).get("step_seconds")
    except (OSError, ValueError, AttributeError):
        return None


def _summarize(folder: Path, result: RunResult) -> None:
    try:
        write_text(folder / SUMMARY, json.dumps(asdict(result), indent=2) + "\n")
    except OSError as error:
        raise RunStopped(
            f"The run is complete, but {folder / SUMMARY} cannot be written ({error.strerror}): make room there; "
            "resume=true writes it without training again."
        ) from error


def evaluate(cfg: DictConfig) -> dict[str, float]:
    """Evaluate a checkpoint on the validation data, or on the test data (``split``).

    Args:
        cfg: From `compose_config`; ``checkpoint`` is the run folder's last one if it is not given.

    Returns:
        The metrics; they are also added to ``evaluation.jsonl`` in the run folder.

    Raises:
        ValueError: There is no checkpoint, or it does not fit.
        RunStopped: A worker or a sample failed.
    """
    cfg = resolve(cfg)
    check_values(cfg)
    cfg.eval_only = True
    if cfg.split not in ("val", "test"):
        raise ValueError(f"split must be val or test, not {cfg.split!r}.")
    if cfg.split == "test" and not cfg.data.test:
        raise ValueError("split=test needs data.test, which this config does not have.")
    import_registrations(cfg)
    device, strategy, world = _processes(cfg)
    folder = run_folder(cfg)
    path = Path(cfg.checkpoint).expanduser() if cfg.checkpoint else folder / "checkpoints" / "last.pt"
    if not path.is_file():
        raise ValueError(f"There is no checkpoint at {path}: give one with checkpoint=...")
    made = not_there(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        engine = _engine(engine_settings(cfg, str(folder), device, strategy, world, load_from=str(path)))
        with explained(engine):
            metrics = engine.val() if cfg.split == "val" else engine.test()
        if is_main():
            with open(folder / "evaluation.jsonl", "a") as file:
                file.write(json.dumps({"checkpoint": str(path), "split": cfg.split, **metrics}) + "\n")
    except PermissionError as error:
        raise ValueError(f"The run folder {folder} cannot be written: choose another with runs=...") from error
    except (ValueError, ImportError):
        if is_main():
            withdraw(folder, made)
        raise
    return metrics


def model_counts(model: torch.nn.Module) -> dict[str, int]:
    """``{"trainable", "frozen"}``: numbers that are trained, and numbers in frozen language-model blocks."""
    return {
        "trainable": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "frozen": sum(block.num_parameters() for _, block in llm_blocks(model) if not block.trainable),
    }


def _test(engine: Engine, cfg: DictConfig) -> dict[str, float]:
    """Figures on ``data.test`` with the weights that ``test_checkpoint`` names."""
    if cfg.test_checkpoint == "best":
        path = engine.folder / "checkpoints" / "best.pt"
        if not path.is_file():
            raise ValueError(f"test_checkpoint=best needs {path}, which is not there: does `best` name a metric?")
        engine.load_checkpoint(str(path))
    return engine.test()


def _cost(engine: Engine) -> dict[str, Any]:
    wrapped: Any = engine.bare_model
    inputs = first_sample(engine.val_dataloader, lambda batch: wrapped.data_preprocessor(batch, False))
    dtype = AUTOCAST.get(wrapped.precision)
    with torch.autocast(torch.device(engine.options["device"]).type, dtype=dtype, enabled=dtype is not None):
        return prediction_cost(wrapped.model, inputs)


def _processes(cfg: DictConfig) -> tuple[torch.device, str, int]:
    if cfg.runtime.threads:
        torch.set_num_threads(cfg.runtime.threads)
    device = pick_device(cfg.runtime.device)
    strategy = join(cfg.runtime.strategy, device, cfg.runtime.timeout_minutes)
    return device, strategy, distributed.get_world_size() if strategy != "none" else 1


def _engine(settings: dict[str, Any]) -> Engine:
    with _registered():
        engine = Engine.from_cfg(settings)
        # Built now, not when they are first run: a mistake in them should not show after days of training.
        engine.val_loop  # noqa: B018
        if engine._test_loop is not None:
            engine.test_loop  # noqa: B018
        return engine


@contextlib.contextmanager
def _registered() -> Iterator[None]:
    """Around what mmengine builds from a config: a type that it does not find, or whose arguments are others, is a
    mistake in the config."""
    try:
        yield
    except (KeyError, TypeError) as error:
        if (sentence := mistake_in(error)) is None:
            raise
        raise ValueError(sentence) from error


def _hook(engine: Engine, kind: type[Hook]) -> Any:
    return next(hook for hook in engine.hooks if isinstance(hook, kind))
