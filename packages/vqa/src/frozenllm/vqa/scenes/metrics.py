"""Exact match on SQA3D: at 1 and at 10, and by type of question."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from frozenllm.core.training import UNREADABLE, ReadableMetric
from frozenllm.core.training.metrics import checked_topk
from frozenllm.vqa.scenes.files import QUESTION_TYPES


class ExactMatch(ReadableMetric):
    """Share of questions answered right, in per cent: ``sqa3d/em@1``, ``sqa3d/em@10``, and ``sqa3d/<type>`` at 1.

    The types are those of the paper's Table E, by the question's first word; one that does not occur is left out. An
    answer that the vocabulary lacks is wrong at any k. Samples that could not be read are left out and counted as
    ``sqa3d/unreadable``. Where the vocabulary has k answers or fewer, every answer of it is among the first k.

    Args:
        topk: The numbers of answers that may hold the right one.
        prefix: First part of the names.
    """

    default_prefix = "sqa3d"

    def __init__(self, topk: Sequence[int] = (1, 10), prefix: str | None = None) -> None:
        super().__init__(prefix=prefix)
        self.topk = checked_topk(topk)

    def figures(self) -> list[str]:
        """``em@k`` for every k, and the types; which of these there are is up to the data."""
        return [*(f"em@{k}" for k in self.topk), *QUESTION_TYPES]

    def process(self, data_batch: Any, data_samples: Sequence[dict[str, Any]]) -> None:
        """Keep every answer's rank and type; an unreadable sample leaves None."""
        self.results.extend(
            None if sample["target"] == UNREADABLE else (sample["rank"], sample["question_type"])
            for sample in data_samples
        )

    def summarise(self, entries: list[tuple[int | None, str]]) -> dict[str, float]:
        """The named numbers."""
        figures = {f"em@{k}": _share([rank for rank, _ in entries], k) for k in self.topk}
        for kind in QUESTION_TYPES:
            if of_kind := [rank for rank, own in entries if own == kind]:
                figures[kind] = _share(of_kind, 1)
        return figures


def _share(found: Sequence[int | None], k: int) -> float:
    return 100.0 * sum(rank is not None and rank < k for rank in found) / len(found)
