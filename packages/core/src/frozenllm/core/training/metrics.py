"""Metrics over a whole data set, the same for any number of processes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from mmengine.evaluator import BaseMetric
from torch.nn import functional as F

from frozenllm.core.training.registry import METRICS


class Metric(BaseMetric):
    """mmengine's metric, gathered over the process group.

    Subclasses give `process`, which appends one entry per sample to ``self.results``, and `compute_metrics`, which
    turns all entries into named numbers. mmengine's own gathering goes through pickle files in the working directory,
    which several machines need not share.
    """

    def evaluate(self, size: int) -> dict[str, float]:
        """Named numbers over all processes.

        Args:
            size: Samples in the data set; what the sampler added to it is left out.
        """
        results = self.results
        if torch.distributed.is_initialized():
            parts: list[list[Any]] = [[] for _ in range(torch.distributed.get_world_size())]
            torch.distributed.all_gather_object(parts, results)
            # The sampler deals samples out in turn; the padding is at the end.
            results = [entry for turn in zip(*parts, strict=True) for entry in turn]
        metrics = self.compute_metrics(results[:size])
        self.results.clear()
        return {f"{self.prefix}/{name}" if self.prefix else name: value for name, value in metrics.items()}


@METRICS.register_module()
class Accuracy(Metric):
    """Share of samples, in per cent, whose class is among the k highest scores: ``accuracy/top<k>``.

    Args:
        topk: Values of k; those above the number of classes count every sample.
        prefix: First part of the name.
    """

    default_prefix = "accuracy"

    def __init__(self, topk: Sequence[int] = (1,), prefix: str | None = None) -> None:
        super().__init__(prefix=prefix)
        self.topk = tuple(topk)

    def process(self, data_batch: Any, data_samples: Sequence[dict[str, Any]]) -> None:
        """Read ``scores`` and ``target`` of every sample."""
        scores = torch.stack([sample["scores"] for sample in data_samples])
        targets = torch.tensor([sample["target"] for sample in data_samples])
        best = scores.topk(min(max(self.topk), scores.shape[1]), dim=1).indices
        hits = best == targets[:, None]
        self.results.extend(tuple(row) for row in torch.stack([hits[:, :k].any(1) for k in self.topk], 1).tolist())

    def compute_metrics(self, results: list[tuple[bool, ...]]) -> dict[str, float]:
        """``top<k>`` for every k."""
        return {f"top{k}": 100.0 * sum(hits[i] for hits in results) / len(results) for i, k in enumerate(self.topk)}


@METRICS.register_module()
class CrossEntropy(Metric):
    """Mean cross entropy on the evaluated data, in nats: ``cross_entropy/mean``."""

    default_prefix = "cross_entropy"

    def process(self, data_batch: Any, data_samples: Sequence[dict[str, Any]]) -> None:
        """Read ``scores`` and ``target`` of every sample."""
        scores = torch.stack([sample["scores"] for sample in data_samples])
        targets = torch.tensor([sample["target"] for sample in data_samples])
        self.results.extend(F.cross_entropy(scores, targets, reduction="none").tolist())

    def compute_metrics(self, results: list[float]) -> dict[str, float]:
        """``mean``."""
        return {"mean": sum(results) / len(results)}
