"""Accuracy on videos of which several views are evaluated."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np

from frozenllm.core.training import UNREADABLE, Accuracy


class VideoAccuracy(Accuracy):
    """Top-k accuracy in per cent over videos, with the softmax averaged over the views of each.

    Samples with the same ``video`` in their batch are views of one video; without that entry every sample is one.
    Where videos could not be read, their number is reported as ``accuracy/unreadable``.

    Args:
        topk: Values of k; those above the number of classes count every video.
        prefix: First part of the name.
    """

    def process(self, data_batch: Any, data_samples: Sequence[dict[str, Any]]) -> None:
        """Read ``video`` of the batch, and ``scores`` (logits) and ``target`` of every sample."""
        videos = data_batch.get("video") if isinstance(data_batch, dict) else None
        for place, sample in enumerate(data_samples):
            video = None if videos is None else int(videos[place])
            self.results.append((video, int(sample["target"]), sample["scores"].float().softmax(0).numpy()))

    def compute_metrics(self, results: list[tuple[int | None, int, np.ndarray]]) -> dict[str, float]:
        """``top<k>`` for every k, and ``unreadable`` where there are such videos.

        Raises:
            ValueError: No video could be read.
        """
        videos: dict[Any, list[tuple[int, np.ndarray]]] = defaultdict(list)
        for place, (video, target, scores) in enumerate(results):
            videos[("sample", place) if video is None else video].append((target, scores))
        hits: list[tuple[bool, ...] | None] = []
        for views in videos.values():
            targets = {target for target, _ in views}
            readable = targets - {UNREADABLE}
            assert len(readable) <= 1, "views of one video have different classes"
            if not readable:
                hits.append(None)
                continue
            scores = np.mean([scores for target, scores in views if target != UNREADABLE], axis=0)
            order = np.argsort(-scores, kind="stable")
            rank = int(np.flatnonzero(order == readable.pop())[0])
            hits.append(tuple(rank < k for k in self.topk))
        return super().compute_metrics(hits)
