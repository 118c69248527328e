"""Metrics over a whole data set, the same for any number of processes."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from mmengine.evaluator import BaseMetric
from torch import Tensor
from torch.nn import functional as F

from frozenllm.core.training.registry import METRICS
from frozenllm.core.training.tolerant import UNREADABLE


class Metric(BaseMetric):
    """mmengine's metric, gathered over the process group.

    Subclasses give `process`, which appends one entry per sample to ``self.results``, and `compute_metrics`, which
    turns all entries into named numbers. mmengine's own gathering goes through pickle files in the working directory,
    which several machines need not share.

    Args:
        prefix: First part of the names; None for the class's own.
    """

    def __init__(self, prefix: str | None = None) -> None:
        super().__init__(prefix=prefix)

    def figures(self) -> Sequence[str] | None:
        """Names of the numbers that it may give, without prefix; None where they are known only with the numbers.

        With them, a wrong ``best`` is refused before a run starts and not at its first validation.
        """
        return None

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


class ReadableMetric(Metric):
    """A metric over the samples that could be read.

    Where some could not (their entry is None), their number is reported as ``<prefix>/unreadable``. Subclasses give
    `process` and `summarise`.
    """

    @abstractmethod
    def summarise(self, entries: list[Any]) -> dict[str, float]:
        """Named numbers from the entries of all readable samples, of which there is at least one."""

    def compute_metrics(self, results: list[Any]) -> dict[str, float]:
        """What `summarise` gives, and ``unreadable`` where there are such samples.

        Raises:
            ValueError: No sample could be read.
        """
        entries = [entry for entry in results if entry is not None]
        if not entries:
            raise ValueError("Not one sample of the evaluated data could be read.")
        unreadable = len(results) - len(entries)
        return {**self.summarise(entries), **({"unreadable": float(unreadable)} if unreadable else {})}


class ScoreMetric(ReadableMetric):
    """A metric of every readable sample's ``scores`` (C,) and ``target``, which is `UNREADABLE` for the others.

    Subclasses give `judge` and `summarise`.
    """

    @abstractmethod
    def judge(self, scores: Tensor, targets: Tensor) -> list[Any]:
        """One entry per sample, from scores (B, C) and targets (B,)."""

    def process(self, data_batch: Any, data_samples: Sequence[dict[str, Any]]) -> None:
        """Read ``scores`` and ``target`` of every sample; an unreadable one leaves None."""
        readable = [sample for sample in data_samples if int(sample["target"]) != UNREADABLE]
        entries: Iterator[Any] = iter(())
        if readable:
            scores = torch.stack([sample["scores"] for sample in readable])
            entries = iter(self.judge(scores, torch.tensor([int(sample["target"]) for sample in readable])))
        self.results.extend(None if int(sample["target"]) == UNREADABLE else next(entries) for sample in data_samples)


def checked_topk(topk: Sequence[int]) -> tuple[int, ...]:
    """The values of k that a config gives a metric.

    Raises:
        ValueError: They are no whole numbers from 1, or there is none.
    """
    if not isinstance(topk, Sequence) or not topk or not all(isinstance(k, int) and k >= 1 for k in topk):
        raise ValueError(f"metrics: topk must be a list of positive numbers, not {topk!r}.")
    return tuple(topk)


@METRICS.register_module()
class Accuracy(ScoreMetric):
    """Share of samples, in per cent, whose class is among the k highest scores: ``accuracy/top<k>``.

    Args:
        topk: Values of k; those above the number of classes count every sample.
        prefix: First part of the name.
    """

    default_prefix = "accuracy"

    def __init__(self, topk: Sequence[int] = (1,), prefix: str | None = None) -> None:
        super().__init__(prefix=prefix)
        self.topk = checked_topk(topk)

    def figures(self) -> list[str]:
        """``top<k>`` for every k."""
        return [f"top{k}" for k in self.topk]

    def judge(self, scores: Tensor, targets: Tensor) -> list[tuple[bool, ...]]:
        """Whether the class is among the k best, for every k."""
        best = scores.topk(min(max(self.topk), scores.shape[1]), dim=1).indices
        hits = best == targets[:, None]
        return [tuple(row) for row in torch.stack([hits[:, :k].any(1) for k in self.topk], 1).tolist()]

    def summarise(self, entries: list[tuple[bool, ...]]) -> dict[str, float]:
        """``top<k>`` for every k."""
        return {f"top{k}": 100.0 * sum(hits[i] for hits in entries) / len(entries) for i, k in enumerate(self.topk)}


@METRICS.register_module()
class CrossEntropy(ScoreMetric):
    """Mean cross entropy on the evaluated data, in nats: ``cross_entropy/mean``."""

    default_prefix = "cross_entropy"

    def figures(self) -> list[str]:
        """``mean``."""
        return ["mean"]

    def judge(self, scores: Tensor, targets: Tensor) -> list[float]:
        """The cross entropy of every sample."""
        return F.cross_entropy(scores, targets, reduction="none").tolist()

    def summarise(self, entries: list[float]) -> dict[str, float]:
        """``mean``."""
        return {"mean": sum(entries) / len(entries)}
