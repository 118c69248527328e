"""The scores of question answering and retrieval, as functions of plain values."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from frozenllm.core.whole_files import write_text
from frozenllm.vqa.normalize import normalize_words, strip_punctuation, tidy

KS = (1, 5, 10)


def vqa_accuracy(answer: str, annotators: Sequence[str]) -> float:
    """The official VQA accuracy of an answer, from 0 to 1.

    Every annotator in turn is left out, and the answer scores min(1, matches among the others / 3); the mean over the
    annotators is the accuracy. Answers are normalised only where the annotators do not all agree to the letter: the
    public code does so.

    Args:
        answer: The answer.
        annotators: What the annotators said, ten of them in VQAv2.

    Raises:
        ValueError: There are no annotators.
    """
    if not annotators:
        raise ValueError("The VQA accuracy needs the annotators' answers.")
    given, said = tidy(answer), [tidy(other) for other in annotators]
    if len(set(said)) > 1:
        given, said = _compared(given), [_compared(other) for other in said]
    matches = [other == given for other in said]
    total = sum(matches)
    return sum(min(1.0, (total - match) / 3) for match in matches) / len(matches)


def _compared(text: str) -> str:
    return normalize_words(strip_punctuation(text))


def ranks_of_images(scores: np.ndarray, own: Sequence[tuple[int, int]]) -> tuple[np.ndarray, np.ndarray]:
    """Ranks, from 0, of the right ones among all, from a whole matrix of scores.

    A tie counts against: scores that are all equal find nothing.

    Args:
        scores: (images, captions).
        own: The range of every image's captions.

    Returns:
        ``image_ranks`` (captions,): how many other images score at least as high as a caption's own.
        ``text_ranks`` (images,): how many other captions score at least as high as the best of an image's own.
    """
    image_of = np.full(scores.shape[1], -1)
    for image, (start, end) in enumerate(own):
        image_of[start:end] = image
    right = scores[image_of, np.arange(scores.shape[1])]
    image_ranks = (scores >= right[None, :]).sum(axis=0) - 1
    text_ranks = []
    for image, (start, end) in enumerate(own):
        best = scores[image, start:end].max()
        text_ranks.append((scores[image] >= best).sum() - (scores[image, start:end] >= best).sum())
    return image_ranks, np.asarray(text_ranks)


def recalls(image_ranks: np.ndarray, text_ranks: np.ndarray) -> dict[str, float]:
    """``ir@k`` (share of captions whose image is among the best k) and ``tr@k`` (the converse), in per cent."""
    named = {"ir": np.asarray(image_ranks), "tr": np.asarray(text_ranks)}
    return {f"{name}@{k}": 100.0 * float((ranks < k).mean()) for name, ranks in named.items() for k in KS}


def write_evalai(answers: Iterable[Mapping[str, Any]], path: str | os.PathLike[str]) -> int:
    """Write EvalAI's file for VQAv2: ``[{"question_id", "answer"}, ...]`` in the order of the ids, each once.

    Args:
        answers: Mappings with these keys, and maybe others.
        path: The file, which appears whole or not at all.

    Returns:
        The number of answers.
    """
    by_id = {int(entry["question_id"]): str(entry["answer"]) for entry in answers}
    entries = [{"question_id": number, "answer": by_id[number]} for number in sorted(by_id)]
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(entries) + "\n")
    return len(entries)
