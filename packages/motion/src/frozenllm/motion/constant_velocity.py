"""The baseline that knows no map and no others: everyone goes on as they go."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from frozenllm.motion.data.collate import collate_scenes
from frozenllm.motion.metrics import MotionMetric
from frozenllm.motion.scene import AGENT_FEATURES, STEP_SECONDS

SECONDS = 0.3
"""Stretch of the history that the velocity is taken from. On the toy traffic, which brakes before bends, shorter ones
suffer from noise and longer ones from being out of date."""


def constant_velocity(agents: Tensor, agents_valid: Tensor, horizon: int, seconds: float = SECONDS) -> Tensor:
    """Straight on at the velocity of a least squares line through the target's latest positions.

    Args:
        agents: (B, A, history, len(AGENT_FEATURES)), the target in row 0.
        agents_valid: (B, A, history) bool.
        horizon: Steps to predict.
        seconds: Length of the stretch, counted back from the latest observed position. A target with one position
            there stands still.

    Returns:
        (B, horizon, 2) metres in the agent frame; in the input's dtype.
    """
    places = agents[:, 0, :, :2]
    times = agents[:, 0, :, AGENT_FEATURES.index("t")]
    latest = times.masked_fill(~agents_valid[:, 0], -torch.inf).amax(dim=1, keepdim=True)
    # Half a step of tolerance, as times are rounded.
    weight = (agents_valid[:, 0] & (times >= latest - seconds - STEP_SECONDS / 2)).to(places.dtype)
    total = weight.sum(dim=1, keepdim=True).clamp_min(1)
    from_mean = (times - (times * weight).sum(dim=1, keepdim=True) / total) * weight
    velocity = (from_mean[..., None] * places).sum(dim=1) / (from_mean**2).sum(dim=1).clamp_min(1e-6)[:, None]
    rows = torch.arange(len(places), device=places.device)
    last = (agents_valid[:, 0] * torch.arange(1, places.shape[1] + 1, device=places.device)).argmax(dim=1)
    ahead = STEP_SECONDS * torch.arange(1, horizon + 1, device=places.device, dtype=places.dtype)
    since = ahead - times[rows, last][:, None]
    return places[rows, last][:, None] + since[..., None] * velocity[:, None]


class ConstantVelocity(nn.Module):
    """`constant_velocity` with a model's interface, and one mode.

    Args:
        horizon: Steps to predict.
        seconds: See `constant_velocity`.
    """

    def __init__(self, horizon: int, seconds: float = SECONDS) -> None:
        super().__init__()
        self.horizon = horizon
        self.seconds = seconds

    def forward(self, agents: Tensor, agents_valid: Tensor, **inputs: Tensor) -> dict[str, Tensor]:
        """``trajectories`` (B, 1, horizon, 2) and ``logits`` (B, 1)."""
        path = constant_velocity(agents, agents_valid, self.horizon, self.seconds)
        return {"trajectories": path[:, None], "logits": path.new_zeros(len(path), 1)}


def evaluate(
    dataset: Dataset, k: Sequence[int] = (1, 6), miss: float = 2.0, seconds: float = SECONDS, batch_size: int = 64
) -> dict[str, float]:
    """Errors of constant velocity on a data set, under the names of `MotionMetric` without a prefix.

    Args:
        dataset: Of `frozenllm.motion.data`, with a future.
        k: See `MotionMetric`. The one mode stands for all of them.
        miss: See there.
        seconds: See `constant_velocity`.
        batch_size: Samples at a time.

    Raises:
        ValueError: Not one sample has a future.
    """
    metric = MotionMetric(k, miss)
    samples: list[dict[str, Any]] = []
    for batch in DataLoader(dataset, batch_size=batch_size, collate_fn=collate_scenes):
        model = ConstantVelocity(batch["targets"]["future"].shape[1], seconds)
        for row, path in enumerate(model(**batch["inputs"])["trajectories"]):
            samples.append(
                {
                    "trajectories": path,
                    "probabilities": torch.ones(1),
                    "future": batch["targets"]["future"][row],
                    "valid": batch["targets"]["valid"][row],
                    "track": batch["track"][row],
                }
            )
    metric.process(None, samples)
    return metric.compute_metrics(metric.results)
