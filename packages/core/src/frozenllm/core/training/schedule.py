"""Learning-rate schedules in closed form: the value depends on the step alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from mmengine.optim.scheduler.param_scheduler import _ParamScheduler

from frozenllm.core.training.registry import PARAM_SCHEDULERS

SHAPES = ("cosine", "linear", "step", "constant")


def schedule_factor(
    t: float,
    epochs: float,
    shape: str = "cosine",
    warmup: float = 0.0,
    start: float = 0.0,
    end: float = 0.0,
    shift: bool = True,
    milestones: Sequence[float] = (),
    gamma: float = 0.1,
) -> float:
    """Factor on the learning rate.

    Args:
        t: Epochs since the start, with fraction.
        epochs: Length of the run.
        shape: ``"cosine"`` or ``"linear"`` from 1 to ``end``; ``"step"``: ``gamma`` to the number of milestones passed;
            ``"constant"``.
        warmup: Epochs in which the factor rises from ``start`` to 1.
        start: Factor at the first step of the warm-up.
        end: Factor at the end.
        shift: Whether cosine and linear begin where the warm-up ends. False: they are already running meanwhile, as in
            timm's scheduler with its defaults, which the paper's ImageNet recipe uses.
        milestones: Epochs for ``"step"``.
        gamma: Factor for ``"step"``.
    """
    if t < warmup:
        return start + (1 - start) * t / warmup
    progress = min(1.0, (t - warmup) / max(epochs - warmup, 1e-12) if shift else t / epochs)
    if shape == "cosine":
        return end + (1 - end) * 0.5 * (1 + math.cos(math.pi * progress))
    if shape == "linear":
        return 1 + (end - 1) * progress
    if shape == "step":
        return gamma ** sum(t >= m for m in milestones)
    return 1.0


@PARAM_SCHEDULERS.register_module()
class WarmupSchedule(_ParamScheduler):
    """`schedule_factor` on every group's own learning rate.

    Args:
        optimizer: Optimizer wrapper.
        epoch_length: Iterations per epoch.
        per_epoch: Change the rate between epochs only, as timm's does.
        delay: Epochs by which the schedule lags behind; 1 in DeiT's code, which steps its scheduler after every epoch
            with that epoch's own number.
        accumulate: Iterations per update, which share the rate of the first: as one iteration with all their samples.
        **shape: Further arguments of `schedule_factor`.

    Raises:
        ValueError: ``shape`` is unknown, or the warm-up is as long as the run.
    """

    def __init__(
        self,
        optimizer: Any,
        epoch_length: int,
        per_epoch: bool = False,
        delay: float = 0.0,
        accumulate: int = 1,
        last_step: int = -1,
        **shape: Any,
    ) -> None:
        if shape.get("shape", "cosine") not in SHAPES:
            raise ValueError(f"schedule.shape must be one of {', '.join(SHAPES)}, not {shape['shape']!r}.")
        if delay > shape["epochs"]:
            raise ValueError(f"schedule.delay ({delay}) must not be more than schedule.epochs={shape['epochs']}.")
        if shape.get("warmup", 0) >= shape["epochs"]:
            raise ValueError(
                f"The warm-up ({shape['warmup']} epochs) must be shorter than the run (schedule.epochs="
                f"{shape['epochs']}): set schedule.warmup_epochs."
            )
        self.epoch_length = epoch_length
        self.per_epoch = per_epoch
        self.delay = delay
        self.accumulate = accumulate
        self.shape = shape
        super().__init__(optimizer, "lr", last_step=last_step, by_epoch=False)

    @classmethod
    def build_iter_from_epoch(cls, **arguments: Any) -> WarmupSchedule:
        """How mmengine tells a schedule the number of iterations per epoch (``convert_to_iter_based``)."""
        return cls(**arguments)

    def step(self) -> None:
        """Set the learning rates of the next iteration."""
        self.last_step += 1
        for group, value in zip(self.optimizer.param_groups, self._get_value(), strict=True):
            group[self.param_name] = value

    def _get_value(self) -> list[float]:
        t = (self.last_step - self.last_step % self.accumulate) / self.epoch_length
        if self.per_epoch:
            t = math.floor(t)
        factor = schedule_factor(max(0.0, t - self.delay), **self.shape)
        return [base * factor for base in self.base_values]
