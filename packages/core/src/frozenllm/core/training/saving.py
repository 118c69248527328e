"""When checkpoints are written, and which are kept."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmengine.hooks import Hook

from frozenllm.core.training import checkpoint as files
from frozenllm.core.training.distributed import on_main
from frozenllm.core.training.faults import writing
from frozenllm.core.training.folder import forget_overwritten
from frozenllm.core.training.metrics import Metric
from frozenllm.core.training.registry import HOOKS


@HOOKS.register_module()
class Saver(Hook):
    """Writes ``checkpoints/iter_<n>.pt`` after epochs (once validated), every so many iterations, and at the end.

    ``last.pt`` is another name of the newest one, ``best.pt`` of the one with the best validation. Older ones are
    deleted once the new one is complete.

    Args:
        every_epochs: Epochs between checkpoints.
        every_iters: Iterations between checkpoints within epochs; 0 for none. Moved to the next whole update where
            gradients are accumulated.
        keep: Numbered checkpoints to keep.
        best: Metric that picks ``best.pt``; None for none.
        best_mode: ``"max"`` or ``"min"``.
    """

    priority = "VERY_LOW"  # after everything that changes the state

    def __init__(
        self,
        every_epochs: int = 1,
        every_iters: int = 0,
        keep: int = 2,
        best: str | None = None,
        best_mode: str = "max",
    ) -> None:
        if best_mode not in ("max", "min"):
            raise ValueError(f"best_mode must be max or min, not {best_mode!r}.")
        if keep < 1:
            raise ValueError(f"runtime.checkpoint.keep must be at least 1, not {keep}.")
        self.every_epochs = every_epochs
        self.every_iters = every_iters
        self.keep = keep
        self.best = best
        self.sign = 1.0 if best_mode == "max" else -1.0
        self.best_record: dict[str, Any] | None = None
        self.last_metrics: dict[str, float] = {}
        self._due = False
        self._improved = False
        self._resumed_from: Path | None = None

    def check_best(self, metrics: Sequence[Any]) -> None:
        """Refuse a wrong ``best`` before anything is trained, where all metrics say what they give.

        Args:
            metrics: Those of the validation.

        Raises:
            ValueError: None of them gives it; the sentence names what they give.
        """
        known: list[str] = []
        for metric in metrics:
            figures = metric.figures() if isinstance(metric, Metric) else None
            if figures is None:  # of another library, or by a name that depends on the data
                return
            known += [f"{metric.prefix}/{name}" if metric.prefix else name for name in figures]
        if self.best is not None and self.best not in known:
            raise ValueError(f"best={self.best} is none of the metrics: {', '.join(known)}; best=null picks none.")

    def after_train_iter(
        self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: dict[str, Any] | None = None
    ) -> None:
        """Save in mid-epoch. From the first step on, a run that this one replaces is gone."""
        if runner.train_loop.done_here == 0:
            on_main(lambda: forget_overwritten(runner.folder))
        done = runner.iter + 1
        stops = runner.train_loop.done_here + 1 == runner.train_loop.stop_after
        self._due = self._due or stops or bool(self.every_iters and done % self.every_iters == 0)
        at_end = batch_idx + 1 == runner.train_loop.epoch_length  # `after_round` saves there, with the validation
        if self._due and not at_end and runner.optim_wrapper.should_update():
            self._save(runner, runner.epoch, done)

    def after_val_epoch(self, runner: Any, metrics: dict[str, float] | None = None) -> None:
        """Remember the figures, and whether they are the best."""
        self.last_metrics = dict(metrics or {})
        if self.best is None or runner._train_loop is None:
            return
        if self.best not in self.last_metrics:
            raise ValueError(f"best={self.best} is none of the metrics: {', '.join(sorted(self.last_metrics))}.")
        value = self.last_metrics[self.best]
        if math.isnan(value):
            return  # nothing would be better than it later on
        if self.best_record is None or self.sign * value > self.sign * self.best_record["value"]:
            self.best_record = {"metric": self.best, "value": value, "epoch": runner.epoch, "iter": runner.iter}
            self._improved = True

    def after_round(self, runner: Any) -> None:
        """Save after an epoch and its validation."""
        loop = runner.train_loop
        if loop.finished or loop.stop_training or self._due or self._improved or loop.epoch % self.every_epochs == 0:
            self._save(runner, runner.epoch, runner.iter)

    def before_train(self, runner: Any) -> None:
        """Make up for the names that a run killed after its last checkpoint did not come to give it."""
        if (resumed_from := self._resumed_from) is not None:
            self._improved = self.best_record is not None and self.best_record["iter"] == runner.iter
            on_main(lambda: self._name(resumed_from))
            self._improved = False

    def before_save_checkpoint(self, runner: Any, checkpoint: dict[str, Any]) -> None:
        """Add the best and the last figures."""
        checkpoint["best"] = self.best_record
        checkpoint["metrics"] = self.last_metrics

    def after_load_checkpoint(self, runner: Any, checkpoint: dict[str, Any]) -> None:
        """Take the best and the last figures from the checkpoint."""
        self.best_record, self.last_metrics = checkpoint["best"], checkpoint["metrics"]
        self._resumed_from = Path(runner._load_from)

    def _save(self, runner: Any, epoch: int, iteration: int) -> None:
        folder = Path(runner.work_dir) / "checkpoints"
        path = folder / f"iter_{iteration:08d}.pt"
        runner.save(path, epoch, iteration)
        on_main(lambda: self._name(path))
        self._due = self._improved = False

    def _name(self, path: Path) -> None:
        """Give the newest checkpoint its other names, and delete old ones."""
        with writing(path):
            files.link_checkpoint(path, path.with_name("last.pt"))
            if self._improved:
                files.link_checkpoint(path, path.with_name("best.pt"))
            files.prune(path.parent, self.keep)
