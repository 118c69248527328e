"""The data set of questions that the training engine reads."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from frozenllm.core.training import UNREADABLE, TolerantDataset
from frozenllm.vqa.answers import AnswerSource, find_answers, soft_scores, targets
from frozenllm.vqa.data.records import VQARecord
from frozenllm.vqa.data.vqav2 import vqav2_records
from frozenllm.vqa.images import clip_transform
from frozenllm.vqa.text import TextTokens, tokenizer_source

logger = logging.getLogger(__name__)


class VQADataset(TolerantDataset):
    """Questions with their images and the worth of every answer.

    A sample is ``{"inputs": {"pixel_values", "input_ids", "attention_mask"}, "targets": (answers,), "question_id",
    "annotation"}``; ``annotation`` holds what the official score needs: ``{"answers", "answer_type"}``, or None.

    Args:
        records: The questions.
        answers: The vocabulary.
        tokens: Makes token ids of questions.
        image_size: Pixels of the images.
        train: Leave out questions without an answer of the vocabulary (as METER does), and see `TolerantDataset`.
        randaug: Augment the images.
        on_error: See `TolerantDataset`.
        normalized: Normalise the annotators' answers before they are looked up.

    Raises:
        ValueError: No question is left.
    """

    def __init__(
        self,
        records: Sequence[VQARecord],
        answers: Sequence[str],
        tokens: TextTokens,
        *,
        image_size: int,
        train: bool = False,
        randaug: bool = False,
        on_error: str = "raise",
        normalized: bool = True,
    ) -> None:
        self.index = {answer: place for place, answer in enumerate(answers)}
        self.normalized = normalized
        if train:
            kept = [record for record in records if any(answer in self.index for answer in self.scores(record))]
            if not kept:
                raise ValueError(
                    f"Not one of {len(records)} training questions has an answer of the vocabulary of "
                    f"{len(self.index)}: it belongs to other data."
                )
            if len(kept) < len(records):
                logger.info("Left out %d questions without an answer of the vocabulary.", len(records) - len(kept))
            records = kept
        super().__init__(len(records), train=train, on_error=on_error)
        self.records = list(records)
        self.tokens = tokens
        self.image_size = image_size
        self.transform = clip_transform(image_size, randaug=randaug)

    def scores(self, record: VQARecord) -> dict[str, float]:
        """Answer -> worth; empty for a question without annotation."""
        if record.scores is not None:
            return dict(record.scores)
        return soft_scores(record.answers or (), normalized=self.normalized)

    def read(self, index: int) -> dict[str, Any]:
        """The sample.

        Raises:
            BrokenSample: Its image cannot be read.
        """
        record = self.records[index]
        image = self.transform(record.image.open())
        return self._sample(record, image, targets(self.scores(record), self.index))

    def describe(self, index: int) -> str:
        """The question's number, and its image."""
        record = self.records[index]
        return f"question {record.question_id} on {record.image.name}"

    def placeholder(self, index: int) -> dict[str, Any]:
        """A black image, with targets that are all `UNREADABLE`."""
        image = torch.zeros(3, self.image_size, self.image_size)
        return self._sample(self.records[index], image, torch.full((len(self.index),), float(UNREADABLE)))

    def _sample(self, record: VQARecord, image: Tensor, worth: Tensor) -> dict[str, Any]:
        ids, mask = self.tokens(record.question)
        known = record.answers is not None
        return {
            "inputs": {"pixel_values": image, "input_ids": ids, "attention_mask": mask},
            "targets": worth,
            "question_id": record.question_id,
            "annotation": {"answers": record.answers, "answer_type": record.answer_type} if known else None,
        }


def vqav2(
    root: str | None,
    part: str,
    *,
    answers: AnswerSource,
    tokenizer: str,
    max_text_len: int,
    image_size: int,
    train: bool = False,
    randaug: bool = False,
    on_error: str = "raise",
    limit: int | None = None,
    protocol: str = "honest",
    **options: Any,
) -> VQADataset:
    """VQAv2's questions as a config describes them.

    Args:
        root: The folder, or ``"toy"``.
        part: ``"train"``, ``"val"`` or ``"test"``.
        answers: See `frozenllm.vqa.answers.find_answers`.
        tokenizer: A folder or hub repository, or ``"toy"``.
        max_text_len: Tokens of a question.
        image_size: See `VQADataset`.
        train: See `VQADataset`.
        randaug: See `VQADataset`.
        on_error: See `VQADataset`.
        limit: Take only so many questions.
        protocol: See `vqav2_records`; METER's looks answers up without normalising them.
        **options: See `vqav2_records`.
    """
    records = vqav2_records(root, part, protocol=protocol, **options)[:limit]
    return VQADataset(
        records,
        find_answers(answers),
        TextTokens(tokenizer_source(tokenizer), max_text_len),
        image_size=image_size,
        train=train,
        randaug=randaug,
        on_error=on_error,
        normalized=protocol != "meter",
    )
