"""Answer vocabularies: which answers a model can give, and how much each of them is worth for a question."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from frozenllm.vqa.names import Names, names_in
from frozenllm.vqa.normalize import normalize

AnswerSource = int | Sequence[str] | Mapping[str, Any]
"""A number of nameless answers, the answers themselves, or the arguments of `answers_of`."""

MIN_COUNT = 9  # occurrences that make an answer a class (METER, after earlier work)
_SCORES = (0.0, 0.3, 0.6, 0.9)  # of an answer that 0, 1, 2 or 3 annotators gave; 1 from 4 on (METER)


class AnswerSpace(Names):
    """The answers in the order of the classes; see `Names`."""

    what = "answer vocabulary"
    single = "answer"
    remedy = "name that run's checkpoint as data.answers.path to use its vocabulary"


def soft_scores(answers: Iterable[str], *, normalized: bool = True) -> dict[str, float]:
    """Answer -> its worth by the number of annotators who gave it: 0.3, 0.6, 0.9, and 1 from four on (METER).

    Args:
        answers: What the annotators said.
        normalized: Normalise first. METER looks the answers up as they stand.
    """
    counts = Counter(normalize(answer) if normalized else answer for answer in answers)
    return {answer: _SCORES[count] if count < len(_SCORES) else 1.0 for answer, count in counts.items()}


def build_vocabulary(majority_answers: Iterable[str], min_count: int = MIN_COUNT) -> list[str]:
    """Normalised majority answers that occur often enough, in the order in which they first appear.

    Args:
        majority_answers: ``multiple_choice_answer`` of the annotations.
        min_count: Occurrences that make an answer a class.

    Raises:
        ValueError: No answer is that frequent, or the number is no count.
    """
    if isinstance(min_count, bool) or not isinstance(min_count, int) or min_count < 1:
        raise ValueError(f"data.answers.min_count must be a whole number from 1, not {min_count!r}.")
    counts = Counter(normalize(answer) for answer in majority_answers)
    answers = [answer for answer, count in counts.items() if count >= min_count]
    if not answers:
        raise ValueError(f"No answer occurs {min_count} times in the annotations: lower data.answers.min_count.")
    return answers


def targets(scores: Mapping[str, float], index: Mapping[str, int]) -> Tensor:
    """(answers,) float32: the worth of every class; classes that nobody named are worth 0."""
    result = torch.zeros(len(index))
    for answer, score in scores.items():
        if answer in index:
            result[index[answer]] = score
    return result


def find_answers(source: AnswerSource, answers_of: Callable[..., tuple[str, ...]] | None = None) -> tuple[str, ...]:
    """The vocabulary that a config describes.

    Args:
        source: A number (nameless answers, for checkpoints that come without their vocabulary), the answers, or
            the arguments of ``answers_of``; with a key ``path`` those in a file (`read_answers`).
        answers_of: Reads a data set's; None for `frozenllm.vqa.data.answers_of`.

    Raises:
        ValueError: The data or the file cannot be read, or holds no such answers.
    """
    if isinstance(source, str | bool):
        raise ValueError(f"The answers must be a list, a number of them or a group of keys, not {source!r}.")
    if isinstance(source, int):
        return tuple(f"answer {place}" for place in range(source))
    if not isinstance(source, Mapping):
        return tuple(source)
    settings = dict(source)
    path = settings.pop("path", None)
    if path is not None:
        return read_answers(path)
    if answers_of is None:
        from frozenllm.vqa.data import answers_of
    return answers_of(**settings)


def read_answers(path: str | Path) -> tuple[str, ...]:
    """The vocabulary in a JSON file (a list, or answer -> class), or in a checkpoint of a run.

    Raises:
        ValueError: The file cannot be read or holds no vocabulary.
    """
    path = Path(path).expanduser()
    if path.suffix == ".json":
        try:
            content = json.loads(path.read_text())
        except (OSError, ValueError) as error:
            raise ValueError(f"The vocabulary {path} cannot be read as JSON ({error}).") from error
        if isinstance(content, dict):
            if not all(isinstance(number, int) for number in content.values()):
                raise ValueError(f"{path} is not a vocabulary: every answer must have the number of its class.")
            content = sorted(content, key=lambda answer: content[answer])
        if not isinstance(content, list) or not all(isinstance(answer, str) for answer in content):
            raise ValueError(f"{path} is not a vocabulary: it must hold a list of answers, or answers with numbers.")
        return tuple(content)
    from frozenllm.core.training.checkpoint import read_checkpoint

    state = read_checkpoint(path).get("state_dict", {})
    found = [tensor for name, tensor in state.items() if name.endswith("answers._extra_state")]
    if not found:
        raise ValueError(f"{path} holds no answer vocabulary: it is not a run of question answering.")
    return names_in(found[0])
