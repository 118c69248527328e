"""The run's history: one JSON line per interval and validation, one printed line for each, and curves."""

from __future__ import annotations

import datetime
import json
import statistics
import time
from collections import defaultdict, deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from mmengine.hooks import Hook
from torch import Tensor, distributed

from frozenllm.core.training.distributed import is_main
from frozenllm.core.training.faults import writing
from frozenllm.core.training.plots import plot_history
from frozenllm.core.training.registry import HOOKS
from frozenllm.core.whole_files import write_text

HISTORY = "metrics.jsonl"
_UNCOUNTED = 3  # first steps of a process: they warm up caches and allocators


@HOOKS.register_module()
class Journal(Hook):
    """Writes ``metrics.jsonl`` and ``plots/*.png``, and prints progress with the time left.

    Args:
        interval: Iterations between lines; the last iteration of an epoch always gives one.
        plot_every_seconds: Least time between drawings; the last state is always drawn.
        val_line_every_seconds: Least time between lines within a validation.
        plots: Whether curves are drawn at all.
    """

    priority = "BELOW_NORMAL"

    def __init__(
        self,
        interval: int = 50,
        plot_every_seconds: float = 60.0,
        val_line_every_seconds: float = 30.0,
        plots: bool = True,
    ) -> None:
        self.interval = interval
        self.plot_every_seconds = plot_every_seconds
        self.val_line_every_seconds = val_line_every_seconds
        self.plots = plots
        self.sums: dict[str, Tensor | float] = {}
        self.counts: dict[str, int] = {}
        self.steps: deque[float] = deque(maxlen=2000)
        self.steps_here = 0
        self.val_seconds = 0.0
        self._clock = self._val_clock = self._val_said = self._plotted = time.perf_counter()
        self._data_seconds = 0.0
        self._mark: tuple[float, int] = (self._clock, 0)

    def before_train(self, runner: Any) -> None:
        """Forget lines that a killed run wrote after its last checkpoint."""
        if is_main():
            with writing(runner.folder / HISTORY):
                rewind_history(runner.folder / HISTORY, runner.iter)

    def before_train_epoch(self, runner: Any) -> None:
        """Start the clock: validation and saving do not count as steps."""
        self._clock = time.perf_counter()
        self._mark = (self._clock, runner.iter)

    def before_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None) -> None:
        """Note how long the data took."""
        self._data_seconds += time.perf_counter() - self._clock

    def after_train_iter(
        self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: dict[str, Any] | None = None
    ) -> None:
        """Add up what the step returned; write a line when one is due."""
        now = time.perf_counter()
        self.steps_here += 1
        if self.steps_here > _UNCOUNTED:
            self.steps.append(now - self._clock)
        self._clock = now
        values = dict(outputs or {})
        if (norm := getattr(runner.optim_wrapper, "last_grad_norm", None)) is not None:
            values["grad_norm"], runner.optim_wrapper.last_grad_norm = norm, None  # one per update, not per iteration
        for name, value in values.items():
            value = value.detach().float() if isinstance(value, Tensor) else float(value)
            self.sums[name] = self.sums.get(name, 0.0) + value
            self.counts[name] = self.counts.get(name, 0) + 1
        if (runner.iter + 1) % self.interval == 0 or batch_idx + 1 == runner.train_loop.epoch_length:
            self._train_line(runner)

    def before_val(self, runner: Any) -> None:
        """Start the validation's clock."""
        self._val_clock = self._val_said = time.perf_counter()

    def after_val_iter(
        self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None, loader: str = "val_dataloader"
    ) -> None:
        """Say how far a long validation is."""
        now, total = time.perf_counter(), len(getattr(runner, loader))
        if now - self._val_said > self.val_line_every_seconds and batch_idx + 1 < total:
            left = (now - self._val_clock) / (batch_idx + 1) * (total - batch_idx - 1)
            part = loader.removesuffix("_dataloader")
            runner.logger.info(f"{part}  {batch_idx + 1}/{total}  left {datetime.timedelta(seconds=round(left))}")
            self._val_said = now

    def after_test_iter(self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        """Say how far a long test is."""
        self.after_val_iter(runner, batch_idx, loader="test_dataloader")

    def after_val_epoch(self, runner: Any, metrics: dict[str, float] | None = None) -> None:
        """Write the validation's line."""
        self.val_seconds = time.perf_counter() - self._val_clock
        training = runner._train_loop is not None
        epoch, iteration = (runner.epoch, runner.iter) if training else (None, None)
        where = f"epoch {epoch}/{runner.max_epochs}  " if training else ""
        figures = "  ".join(f"{name} {value:.4g}" for name, value in (metrics or {}).items())
        runner.logger.info(f"{where}validation  {figures}  ({self.val_seconds:.1f} s)")
        if training:
            self._write(runner, {"kind": "val", "epoch": epoch, "iter": iteration, **(metrics or {})})
            self._plot(runner, final=False)

    before_test = before_val

    def after_test_epoch(self, runner: Any, metrics: dict[str, float] | None = None) -> None:
        """Write the test's line."""
        figures = "  ".join(f"{name} {value:.4g}" for name, value in (metrics or {}).items())
        runner.logger.info(f"test  {figures}  ({time.perf_counter() - self._val_clock:.1f} s)")
        if runner._train_loop is not None:
            self._write(runner, {"kind": "test", "epoch": runner.epoch, "iter": runner.iter, **(metrics or {})})

    def after_train(self, runner: Any) -> None:
        """Draw the curves."""
        self._plot(runner, final=True)

    def before_save_checkpoint(self, runner: Any, checkpoint: dict[str, Any]) -> None:
        """Save the unfinished interval, so that a resumed run writes the same line."""
        sums = {name: float(_over_processes(value)) for name, value in self.sums.items()}
        checkpoint["journal"] = {"sums": sums, "counts": dict(self.counts)}

    def after_load_checkpoint(self, runner: Any, checkpoint: dict[str, Any]) -> None:
        """Take up the unfinished interval."""
        if runner._train_loop is not None:
            self.sums, self.counts = dict(checkpoint["journal"]["sums"]), dict(checkpoint["journal"]["counts"])

    @property
    def step_seconds(self) -> float | None:
        """Median time of a step, loading included; None before enough steps were made."""
        return statistics.median(self.steps) if self.steps else None

    def _train_line(self, runner: Any) -> None:
        loop, done = runner.train_loop, runner.iter + 1
        means = {name: float(_over_processes(value)) / self.counts[name] for name, value in self.sums.items()}
        (since, first), self._mark = self._mark, (self._clock, done)
        iterations = max(done - first, 1)
        seconds, data, self._data_seconds = (self._clock - since) / iterations, self._data_seconds / iterations, 0.0
        rate = max(runner.optim_wrapper.get_lr()["lr"])
        epoch = runner.epoch + 1
        left = (loop.max_iters - done) * seconds
        left += (loop.max_epochs - runner.epoch) / loop.val_interval * self.val_seconds
        runner.logger.info(
            f"epoch {epoch}/{loop.max_epochs}  iter {done}/{loop.max_iters}  "
            + "  ".join(f"{name} {value:.4g}" for name, value in means.items())
            + f"  lr {rate:.3g}  {1000 * seconds:.0f} ms/step  left {datetime.timedelta(seconds=round(left))}"
        )
        line = {"kind": "train", "epoch": epoch, "iter": done, **means, "lr": rate}
        self._write(runner, {**line, "step_seconds": seconds, "data_seconds": data})
        self.sums, self.counts = {}, {}

    def _write(self, runner: Any, line: dict[str, Any]) -> None:
        if not is_main():
            return
        with writing(runner.folder / HISTORY), open(runner.folder / HISTORY, "a") as file:
            file.write(json.dumps(line) + "\n")
        numbers = {f"{line['kind']}/{k}": v for k, v in line.items() if isinstance(v, float)}
        runner.visualizer.add_scalars(numbers, step=line["iter"])

    def _plot(self, runner: Any, final: bool) -> None:
        if self.plots and is_main() and (final or time.perf_counter() - self._plotted > self.plot_every_seconds):
            with writing(runner.folder / "plots"):
                plot_history(runner.folder / HISTORY, runner.folder / "plots")
            self._plotted = time.perf_counter()


def _over_processes(value: Tensor | float) -> Tensor | float:
    if not distributed.is_initialized():
        return value
    # Sums may be floats (resumed) in one process and tensors in another; all have the same names in the same order.
    device = "cuda" if distributed.get_backend() == "nccl" else "cpu"
    total = torch.as_tensor(value, dtype=torch.float32, device=device).clone()
    distributed.all_reduce(total)
    return total / distributed.get_world_size()


def read_history(path: Path) -> Iterator[dict[str, Any]]:
    """Lines of a ``metrics.jsonl``; a last line that was cut short is left out."""
    if not path.exists():
        return
    for line in path.read_text().splitlines():
        try:
            yield json.loads(line)
        except json.JSONDecodeError:
            return


def by_epoch(path: Path, metric: str) -> tuple[dict[int, float], dict[int, float]]:
    """Mean training loss of every epoch, and a metric of its validation.

    Args:
        path: A ``metrics.jsonl``.
        metric: Its name there.

    Returns:
        Both by epoch, counted from 1; empty where the file has none.
    """
    training: dict[int, list[tuple[float, int]]] = defaultdict(list)
    validation: dict[int, float] = {}
    before = 0
    for line in read_history(path):
        if line["kind"] == "train":
            if "loss" in line:  # the mean of the iterations since the line before
                training[line["epoch"]].append((line["loss"], max(1, line["iter"] - before)))
            before = line["iter"]
        elif line["kind"] == "val" and metric in line:
            validation[line["epoch"]] = line[metric]
    means = {epoch: sum(loss * n for loss, n in part) / sum(n for _, n in part) for epoch, part in training.items()}
    return means, validation


def rewind_history(path: Path, iteration: int) -> None:
    """Keep the lines up to an iteration, but for those of tests, which come after it; replaced in one step."""
    if not path.exists():
        return
    kept = [line for line in read_history(path) if line["iter"] <= iteration and line["kind"] != "test"]
    write_text(path, "".join(json.dumps(line) + "\n" for line in kept))
