"""Accuracy and cross entropy on images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from frozenllm.core.training import Accuracy, CrossEntropy
from frozenllm.vision2d.data import UNREADABLE


class ImageAccuracy(Accuracy):
    """Top-k accuracy in per cent over the images that could be read.

    Where some could not, their number is reported as ``accuracy/unreadable``.
    """

    def process(self, data_batch: Any, data_samples: Sequence[dict[str, Any]]) -> None:
        """Read ``scores`` and ``target`` of every sample."""
        before = len(self.results)
        super().process(data_batch, data_samples)
        for offset, sample in enumerate(data_samples):
            if int(sample["target"]) == UNREADABLE:
                self.results[before + offset] = ()

    def compute_metrics(self, results: list[tuple[bool, ...]]) -> dict[str, float]:
        """``top<k>`` for every k, and ``unreadable`` where there are such images.

        Raises:
            ValueError: No image could be read.
        """
        readable = [hits for hits in results if hits]
        if not readable:
            raise ValueError("Not one image of the evaluated data could be read.")
        metrics = super().compute_metrics(readable)
        if len(readable) < len(results):
            metrics["unreadable"] = float(len(results) - len(readable))
        return metrics


class ImageCrossEntropy(CrossEntropy):
    """Mean cross entropy, in nats, over the images that could be read: ``cross_entropy/mean``."""

    def process(self, data_batch: Any, data_samples: Sequence[dict[str, Any]]) -> None:
        """Read ``scores`` and ``target`` of every sample; an unreadable image leaves None."""
        readable = [sample for sample in data_samples if int(sample["target"]) != UNREADABLE]
        before = len(self.results)
        if readable:
            super().process(data_batch, readable)
        values = iter(self.results[before:])
        self.results[before:] = [
            None if int(sample["target"]) == UNREADABLE else next(values) for sample in data_samples
        ]

    def compute_metrics(self, results: list[float | None]) -> dict[str, float]:
        """``mean``.

        Raises:
            ValueError: No image could be read.
        """
        values = [value for value in results if value is not None]
        if not values:
            raise ValueError("Not one image of the evaluated data could be read.")
        return super().compute_metrics(values)
