"""Errors of the best of several predicted modes, through av2's functions and as the benchmarks aggregate them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from frozenllm.core.training import Metric

LEAST_PROBABILITY = 0.05
"""Argoverse 1's p-minADE and p-minFDE charge a mode for its low probability down to this one, and no more."""


def mode_errors(
    trajectories: np.ndarray, probabilities: np.ndarray, future: np.ndarray, k: int, miss: float = 2.0
) -> dict[str, float]:
    """Errors of one prediction; of the ``k`` most probable modes, the one with the smallest endpoint error counts.

    Args:
        trajectories: (K, T, 2) metres.
        probabilities: (K,) that sum to 1; those of the ``k`` chosen are made to sum to 1.
        future: (T, 2) metres, all steps known.
        k: Number of modes to look at; at least 1, those that there are if it is more.
        miss: A prediction misses if its endpoint error is larger, metres.

    Returns:
        ``minADE`` (of that mode, so not the smallest one), ``minFDE``, ``MR`` (0 or 1); ``brier-minADE`` and
        ``brier-minFDE`` add ``(1 - p)**2``; and Argoverse 1's ``p-minADE``, ``p-minFDE`` (add ``-log p``, with p at
        least `LEAST_PROBABILITY`) and ``p-MR`` (1 if missed, else ``1 - p``).
    """
    from av2.datasets.motion_forecasting.eval import metrics

    order = np.argsort(-probabilities, kind="stable")[:k]
    modes, chances = trajectories[order].astype(np.float64), probabilities[order].astype(np.float64)
    chances = chances / chances.sum()
    future = future.astype(np.float64)
    endpoint = metrics.compute_fde(modes, future)
    best = int(endpoint.argmin())
    missed = float(metrics.compute_is_missed_prediction(modes, future, miss)[best])
    fde, ade, chance = float(endpoint[best]), float(metrics.compute_ade(modes, future)[best]), float(chances[best])
    charge = -float(np.log(max(chance, LEAST_PROBABILITY)))
    return {
        "minADE": ade,
        "minFDE": fde,
        "MR": missed,
        "brier-minADE": float(metrics.compute_brier_ade(modes, future, chances)[best]),
        "brier-minFDE": float(metrics.compute_brier_fde(modes, future, chances)[best]),
        "p-minADE": ade + charge,
        "p-minFDE": fde + charge,
        "p-MR": 1.0 if missed else 1.0 - chance,
    }


class MotionMetric(Metric):
    """Means of `mode_errors` over the samples with a future: ``motion/minADE1``, ``motion/minFDE6``, ...

    Where only some steps of a future are known, these count, and the last of them is the endpoint. Samples that could
    not be read are left out and counted as ``unreadable``.

    Args:
        k: Numbers of modes to look at.
        miss: Metres, see `mode_errors`.
        names: Which errors; None for minADE, minFDE and MR, and for ``k`` above 1 brier-minFDE.
        prefix: First part of the names.

    Raises:
        ValueError: An error is unknown, or a ``k`` is below 1.
    """

    default_prefix = "motion"

    def __init__(
        self,
        k: Sequence[int] = (1, 6),
        miss: float = 2.0,
        names: Sequence[str] | None = None,
        prefix: str | None = None,
    ) -> None:
        super().__init__(prefix=prefix)
        if isinstance(k, int | float | str) or not k or not all(isinstance(i, int) and i >= 1 for i in k):
            raise ValueError(f"MotionMetric needs values of k of at least 1, not {k!r}.")
        if isinstance(miss, bool | str) or not miss > 0:
            raise ValueError(f"MotionMetric needs a miss of metres above 0, not {miss!r}.")
        known = mode_errors(np.zeros((1, 1, 2)), np.ones(1), np.zeros((1, 2)), 1)
        if unknown := sorted(set(names or ()) - set(known)):
            raise ValueError(f"MotionMetric knows {', '.join(known)}, not {', '.join(unknown)}.")
        self.k = tuple(k)
        self.miss = miss
        self.names = names

    def figures(self) -> list[str]:
        """``minADE1`` and so on: every error for every ``k``."""
        return [f"{name}{k}" for k in self.k for name in self._wanted(k)]

    def _wanted(self, k: int) -> Sequence[str]:
        return self.names or ("minADE", "minFDE", "MR", *(("brier-minFDE",) if k > 1 else ()))

    def process(self, data_batch: Any, data_samples: Sequence[Mapping[str, Any]]) -> None:
        """Read ``trajectories``, ``probabilities``, ``future``, ``valid`` and ``track`` of every sample."""
        for sample in data_samples:
            valid = np.asarray(sample["valid"])
            if not valid.any():
                self.results.append("no future" if sample.get("track", "?") else "unreadable")
                continue
            trajectories, future = np.asarray(sample["trajectories"])[:, valid], np.asarray(sample["future"])[valid]
            probabilities = np.asarray(sample["probabilities"])
            row = {}
            for k in self.k:
                errors = mode_errors(trajectories, probabilities, future, k, self.miss)
                row |= {f"{name}{k}": errors[name] for name in self._wanted(k)}
            self.results.append(row)

    def compute_metrics(self, results: list[dict[str, float] | str]) -> dict[str, float]:
        """The means, and ``unreadable`` where there are such samples.

        Raises:
            ValueError: Not one sample has a future.
        """
        rows = [row for row in results if isinstance(row, dict)]
        if not rows:
            raise ValueError(
                "Not one sample of the evaluated data has a known future that could be read; test sets have none."
            )
        metrics = {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}
        if unreadable := results.count("unreadable"):
            metrics["unreadable"] = float(unreadable)
        return metrics
