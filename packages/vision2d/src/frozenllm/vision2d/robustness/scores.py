"""From counts of hits to the figures: accuracies, their mean over ImageNet-C, and mCE."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from frozenllm.core.training import UNREADABLE
from frozenllm.vision2d.robustness.sets import ALEXNET_ERRORS, SEVERITIES


@dataclass
class Counts:
    """What an evaluation of one set counted.

    Attributes:
        images: Images that were classified.
        top1: Those whose class had the highest score.
        top5: Those whose class was among the five highest.
        unreadable: Images that could not be read, and count nowhere else.
        missing_classes: Classes that the set should have and has not.
    """

    images: int = 0
    top1: int = 0
    top5: int = 0
    unreadable: int = 0
    missing_classes: int = 0

    def accuracy(self, k: int) -> float:
        """Top-1 or top-5 accuracy in per cent."""
        return 100.0 * {1: self.top1, 5: self.top5}[k] / self.images

    def add(self, logits: Tensor, targets: Tensor, classes: Tensor | None = None) -> None:
        """Count a batch.

        Args:
            logits: ``(B, C)``.
            targets: Class indices, ``(B,)``; `UNREADABLE` for images that could not be read.
            classes: Indices of the classes that may be predicted, ``(K,)``; None for all.

        Raises:
            ValueError: Scores of readable images are not finite.
        """
        readable = targets != UNREADABLE
        logits, targets = logits[readable].float(), targets[readable]
        if not bool(logits.isfinite().all()):
            raise ValueError("The model's scores are not finite: try runtime.precision=fp32, or another checkpoint.")
        if classes is not None:
            logits, candidates = logits[:, classes], classes
        else:
            candidates = torch.arange(logits.shape[1], device=logits.device)
        best = candidates[logits.topk(min(5, logits.shape[1]), dim=1).indices]
        hits = best == targets[:, None]
        self.images += len(targets)
        self.top1 += int(hits[:, :1].sum())
        self.top5 += int(hits.sum())
        self.unreadable += int((~readable).sum())


def corruption_scores(counts: Mapping[str, Counts]) -> dict[str, Any]:
    """The figures of ImageNet-C.

    The paper's column is the mean top-1 accuracy over 15 corruptions and 5 severities. mCE is the mean over corruptions
    of the model's error, averaged over severities, as a percentage of AlexNet's (Hendrycks & Dietterich 2019).

    Args:
        counts: By set, of which those named ``imagenet_c/<corruption>/<severity>`` are looked at.

    Returns:
        ``corruptions``: per corruption ``top1`` by severity, and where all five are there ``mean`` and ``ce``;
        ``evaluated``: number of parts; ``top1`` and ``mce``: None unless all 75 parts are there.
    """
    rows: dict[str, Any] = {}
    for name, alexnet in ALEXNET_ERRORS.items():
        found = {s: counts[key].accuracy(1) for s in SEVERITIES if (key := f"imagenet_c/{name}/{s}") in counts}
        if not found:
            continue
        row: dict[str, Any] = {"top1": {str(severity): value for severity, value in found.items()}}
        if len(found) == len(SEVERITIES):
            row["mean"] = sum(found.values()) / len(found)
            row["ce"] = (100.0 - row["mean"]) / alexnet
        rows[name] = row
    whole = [row for row in rows.values() if "mean" in row]
    all_there = len(whole) == len(ALEXNET_ERRORS)
    return {
        "top1": sum(row["mean"] for row in whole) / len(whole) if all_there else None,
        "mce": sum(row["ce"] for row in whole) / len(whole) if all_there else None,
        "evaluated": sum(len(row["top1"]) for row in rows.values()),
        "corruptions": rows,
    }
