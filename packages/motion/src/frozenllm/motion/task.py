"""Training of motion models: the nearest mode is pulled to what happened, and its score is raised.

The paper that this project reproduces does not say how its motion models were trained; this is the usual way to train
several modes from one observed future (winner takes all), with the two regression losses in use.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from frozenllm.core.training import Task

REGRESSIONS = ("smooth_l1", "laplace")


class MotionTask(Task):
    """Winner-takes-all regression and classification of the winner.

    The winner is the mode whose position at the last known step of the future is nearest to the true one. Samples
    without a known future take no part.

    Args:
        model: A module of the interface of `frozenllm.motion.models`, or its config.
        batch_transform: See `frozenllm.core.training.Task`.
        precision: See `frozenllm.core.training.Task`.
        regression: ``"smooth_l1"`` (quadratic below ``beta`` metres), or ``"laplace"``: negative log likelihood under
            Laplace distributions whose scales the model predicts.
        beta: Metres.
        classification_weight: Factor of the classification loss.
    """

    def __init__(
        self,
        model: nn.Module | Mapping[str, Any],
        batch_transform: Callable[[Any, Any], tuple[Any, Any]] | Mapping[str, Any] | None = None,
        precision: str = "fp32",
        regression: str = "smooth_l1",
        beta: float = 1.0,
        classification_weight: float = 1.0,
    ) -> None:
        super().__init__(model, batch_transform, precision)
        if regression not in REGRESSIONS:
            raise ValueError(f"task.regression must be one of {', '.join(REGRESSIONS)}, not {regression!r}.")
        if beta <= 0:
            raise ValueError(f"task.beta must be positive, not {beta}.")
        if classification_weight < 0:
            raise ValueError(f"task.classification_weight must be a number from 0, not {classification_weight}.")
        self.regression = regression
        self.beta = beta
        self.classification_weight = classification_weight

    def loss(self, outputs: Mapping[str, Tensor], targets: Mapping[str, Tensor], **extra: Any) -> dict[str, Tensor]:
        """``loss_regression`` (mean over known steps, then samples) and ``loss_classification``.

        Args:
            outputs: ``trajectories`` (B, K, T, 2), ``logits`` (B, K), and ``scales`` (B, K, T, 2) for ``"laplace"``.
            targets: ``future`` (B, T, 2) and ``valid`` (B, T).
            extra: Not used.

        Raises:
            ValueError: The model predicts no scales, or another number of steps than the data has.
        """
        future, valid = targets["future"], targets["valid"]
        steps = outputs["trajectories"].shape[2]
        if future.shape[1] != steps:
            raise ValueError(f"The model predicts {steps} steps, but the data has {future.shape[1]}: set data.horizon.")
        future = torch.where(valid[..., None], future, 0.0).float()
        winner = winning_mode(outputs["trajectories"].detach(), future, valid)
        known = valid.any(dim=1)
        samples = known.sum().clamp_min(1)
        chosen = _mode(outputs["trajectories"], winner)
        if self.regression == "laplace":
            if "scales" not in outputs:
                raise ValueError("task.regression=laplace needs a model that predicts scales: model.scales=true.")
            errors = laplace_nll(chosen, future, _mode(outputs["scales"], winner))
        else:
            errors = F.smooth_l1_loss(chosen, future, beta=self.beta, reduction="none")
        errors = errors.sum(dim=-1).masked_fill(~valid, 0.0)
        regression = (errors.sum(dim=1) / valid.sum(dim=1).clamp_min(1)).sum() / samples
        entropies = F.cross_entropy(outputs["logits"], winner, reduction="none").masked_fill(~known, 0.0)
        return {
            "loss_regression": regression,
            "loss_classification": self.classification_weight * entropies.sum() / samples,
        }

    def predict(
        self, outputs: Mapping[str, Tensor], targets: Mapping[str, Tensor], **extra: Any
    ) -> list[dict[str, Any]]:
        """Per sample, on the CPU: ``trajectories`` (K, T, 2) and ``probabilities`` (K,), float32; ``future`` (T, 2)
        and ``valid`` (T,); and the batch's ``scenario``, ``track``, ``origin``, ``heading`` where it has them."""
        columns: dict[str, Sequence[Any]] = {
            "trajectories": outputs["trajectories"].float().cpu(),
            "probabilities": outputs["logits"].float().softmax(dim=-1).cpu(),
            "future": targets["future"].cpu(),
            "valid": targets["valid"].cpu(),
            **{key: value.cpu() if isinstance(value, Tensor) else value for key, value in extra.items()},
        }
        return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def winning_mode(trajectories: Tensor, future: Tensor, valid: Tensor) -> Tensor:
    """The mode that is nearest at the last known step.

    Args:
        trajectories: (B, K, T, 2).
        future: (B, T, 2).
        valid: (B, T) bool.

    Returns:
        (B,) int64; 0 where nothing is known.
    """
    steps = torch.arange(1, valid.shape[1] + 1, device=valid.device)
    last = (valid * steps).argmax(dim=1)
    rows = torch.arange(len(last), device=last.device)
    distance = (trajectories[rows, :, last] - future[rows, last][:, None]).norm(dim=-1)
    return distance.argmin(dim=1).masked_fill(~valid.any(dim=1), 0)


def laplace_nll(mean: Tensor, target: Tensor, scale: Tensor) -> Tensor:
    """Negative log likelihood of ``target``, elementwise; ``scale`` is positive."""
    return (2 * scale).log() + (target - mean).abs() / scale


def _mode(values: Tensor, winner: Tensor) -> Tensor:
    return values[torch.arange(len(winner), device=winner.device), winner]
