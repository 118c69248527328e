"""Metrics of question answering and retrieval for the training engine."""

from __future__ import annotations

import logging
import os
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from frozenllm.core.training import UNREADABLE, Metric, ReadableMetric
from frozenllm.core.training.distributed import is_main
from frozenllm.vqa.scoring import KS, ranks_of_images, recalls, vqa_accuracy, write_evalai

logger = logging.getLogger(__name__)

ANSWER_TYPES = {"yes/no": "yes_no", "number": "number", "other": "other"}


class VQAScore(ReadableMetric):
    """The official VQA accuracy, in per cent: ``vqa/overall`` and by answer type ``vqa/yes_no|number|other``.

    ``vqa/soft`` is the worth of the answers by the soft score (METER's offline figure), which is also there for data
    that comes without the annotators' answers. Samples that could not be read are left out and counted as
    ``vqa/unreadable``.

    Args:
        prefix: First part of the names.
    """

    default_prefix = "vqa"

    def figures(self) -> list[str]:
        """What data can give: answer types and the annotators' answers need not be there."""
        return ["overall", *ANSWER_TYPES.values(), "soft"]

    def process(self, data_batch: Any, data_samples: Sequence[dict[str, Any]]) -> None:
        """Judge every answer; an unreadable sample leaves None."""
        for sample in data_samples:
            if sample["worth"] is None:
                self.results.append(None)
                continue
            known = sample["annotation"]
            accuracy = vqa_accuracy(sample["answer"], known["answers"]) if known else None
            self.results.append((sample["worth"], accuracy, known["answer_type"] if known else None))

    def summarise(self, entries: list[tuple[float, float | None, str | None]]) -> dict[str, float]:
        """The named numbers."""
        groups: dict[str, list[float]] = defaultdict(list)
        for worth, accuracy, kind in entries:
            groups["soft"].append(worth)
            if accuracy is not None:
                groups["overall"].append(accuracy)
                if kind in ANSWER_TYPES:
                    groups[ANSWER_TYPES[kind]].append(accuracy)
        return {
            name: 100.0 * sum(groups[name]) / len(groups[name])
            for name in ("overall", *ANSWER_TYPES.values(), "soft")
            if groups[name]
        }


class EvalAI(Metric):
    """Writes the answers as EvalAI's file and counts them: ``evalai/answers``.

    A question whose image could not be read is answered from the question alone, and counted as ``evalai/unreadable``:
    the server wants an answer to every question.

    Args:
        path: The file.
        prefix: First part of the names.
    """

    default_prefix = "evalai"

    def __init__(self, path: str, prefix: str | None = None) -> None:
        super().__init__(prefix=prefix)
        self.path = Path(path).expanduser()
        above = next(folder for folder in self.path.absolute().parents if folder.exists())
        if self.path.is_dir() or not above.is_dir() or not os.access(above, os.W_OK):
            raise ValueError(f"The answers cannot be written to {self.path}: choose another path of EvalAI's file.")

    def figures(self) -> list[str]:
        """``answers``."""
        return ["answers"]

    def process(self, data_batch: Any, data_samples: Sequence[dict[str, Any]]) -> None:
        """Keep every answer."""
        self.results.extend(
            {key: sample[key] for key in ("question_id", "answer")} | {"readable": sample["worth"] is not None}
            for sample in data_samples
        )

    def compute_metrics(self, results: list[Any]) -> dict[str, float]:
        """Write the file, in one process."""
        if is_main():
            write_evalai(results, self.path)
            logger.info("Wrote %d answers to %s.", len(results), self.path)
        unreadable = sum(not entry["readable"] for entry in results)
        return {"answers": float(len(results)), **({"unreadable": float(unreadable)} if unreadable else {})}


class Recall(Metric):
    """Recalls on a gallery, in per cent: ``retrieval/ir@k`` and ``retrieval/tr@k`` for k = 1, 5, 10, and their mean.

    Images that could not be read leave the gallery together with their captions, and are counted as
    ``retrieval/unreadable``.

    Args:
        prefix: First part of the names.
    """

    default_prefix = "retrieval"

    def figures(self) -> list[str]:
        """``ir@k``, ``tr@k`` and ``mean``."""
        return [*(f"{name}@{k}" for name in ("ir", "tr") for k in KS), "mean"]

    def process(self, data_batch: Any, data_samples: Sequence[dict[str, Any]]) -> None:
        """Keep every image's scores with all captions."""
        self.results.extend((sample["image"], sample["own"], sample["scores"].numpy()) for sample in data_samples)

    def compute_metrics(self, results: list[Any]) -> dict[str, float]:
        """The named numbers.

        Raises:
            ValueError: No image could be read.
        """
        read = [entry for entry in results if entry[0] != UNREADABLE]
        if not read:
            raise ValueError("Not one image of the evaluated data could be read.")
        columns = np.concatenate([np.arange(*own) for _, own, _ in read])
        scores = np.stack([scores[columns] for _, _, scores in read])
        ends = np.cumsum([end - start for _, (start, end), _ in read]).tolist()
        own = [(end - (last - first), end) for end, (_, (first, last), _) in zip(ends, read, strict=True)]
        figures = recalls(*ranks_of_images(scores, own))
        figures["mean"] = sum(figures.values()) / len(figures)
        unreadable = len(results) - len(read)
        return {**figures, **({"unreadable": float(unreadable)} if unreadable else {})}
