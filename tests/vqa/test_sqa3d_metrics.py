"""Exact match by hand: ranks, types of questions, answers outside the vocabulary, samples that could not be read."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from frozenllm.vqa.scenes.metrics import ExactMatch
from frozenllm.vqa.scenes.task import answer_loss, pose_loss, ranks


def figures(entries: list[tuple[int | None, int, str]], **options: Any) -> dict[str, float]:
    metric = ExactMatch(**options)
    samples = [{"rank": rank, "target": target, "question_type": kind} for rank, target, kind in entries]
    metric.process(None, samples)
    return metric.compute_metrics(metric.results)


def test_by_hand() -> None:
    found = figures([
        (0, 3, "what"), (9, 1, "what"), (10, 5, "what"), (0, 2, "is"), (0, 0, "how"), (4, 0, "how"),
        (None, -2, "others"), (0, 7, "others"), (None, -1, "can"),
    ])  # fmt: skip
    assert found == pytest.approx(
        {"em@1": 50.0, "em@10": 75.0, "what": 100 / 3, "is": 100.0, "how": 50.0, "others": 50.0, "unreadable": 1.0}
    )


def test_other_numbers_of_answers() -> None:
    assert figures([(1, 0, "is"), (2, 0, "is")], topk=[2, 3]) == {"em@2": 50.0, "em@3": 100.0, "is": 0.0}
    with pytest.raises(ValueError, match="positive numbers"):
        ExactMatch(topk=[0])


def test_nothing_could_be_read() -> None:
    with pytest.raises(ValueError, match="Not one sample"):
        figures([(None, -1, "what")])


def test_ranks_settle_ties_by_the_lower_number() -> None:
    scores = torch.tensor([[1.0, 3.0, 3.0, 2.0]] * 6)
    answers = torch.tensor([0, 1, 2, 3, -1, -2])
    assert ranks(scores, answers) == [3, 0, 1, 2, None, None]
    assert scores.argmax(dim=1)[0] == 1


def test_fewer_answers_than_ten() -> None:
    scores = torch.randn(50, 4)
    found = ranks(scores, torch.randint(0, 4, (50,)))
    assert figures([(rank, 0, "is") for rank in found])["em@10"] == 100.0


def test_losses_by_hand() -> None:
    logits, answer = torch.tensor([[2.0, -1.0], [0.5, 0.3], [4.0, 4.0]]), torch.tensor([0, 1, -2])
    sigmoid = logits.sigmoid()
    first = -(sigmoid[0, 0].log() + (1 - sigmoid[0, 1]).log())
    second = -((1 - sigmoid[1, 0]).log() + sigmoid[1, 1].log())
    torch.testing.assert_close(answer_loss(logits, answer), (first + second) / 3)
    pose, wanted = torch.zeros(2, 7), torch.zeros(2, 7)
    pose[0, 0], pose[1, 5] = 3.0, 2.0
    assert float(pose_loss(pose, wanted)) == pytest.approx(9 / 6 + 4 / 8)
