"""The engine's metrics and tasks on hand-made samples."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from frozenllm.core.training import UNREADABLE
from frozenllm.vqa.metrics import EvalAI, Recall, VQAScore
from frozenllm.vqa.scoring import ranks_of_images, recalls
from frozenllm.vqa.tasks import RetrievalTask, VQATask

RED = {"answers": ("red",) * 2 + ("blue",) * 8, "answer_type": "other"}
TWO = {"answers": ("2",) * 9 + ("two",), "answer_type": "number"}


def answered(answer: str, annotation: dict[str, Any] | None, worth: float | None, number: int = 1) -> dict[str, Any]:
    return {"answer": answer, "annotation": annotation, "worth": worth, "question_id": number}


def test_vqa_score_by_answer_type() -> None:
    metric = VQAScore()
    metric.process(None, [answered("red", RED, 0.6), answered("two", TWO, 1.0), answered("x", TWO, None)])
    figures = metric.evaluate(3)
    assert figures["vqa/other"] == pytest.approx(60.0)
    assert figures["vqa/number"] == pytest.approx(100.0)
    assert figures["vqa/overall"] == figures["vqa/soft"] == pytest.approx(80.0)
    assert figures["vqa/unreadable"] == 1.0
    assert "vqa/yes_no" not in figures
    metric.process(None, [answered("red", None, 0.3)])
    assert metric.evaluate(1) == {"vqa/soft": pytest.approx(30.0)}  # METER's files have no annotators
    metric.process(None, [answered("red", RED, None)])
    with pytest.raises(ValueError, match="Not one sample"):
        metric.evaluate(1)


def test_evalai_answers_every_question(tmp_path: Path) -> None:
    metric = EvalAI(str(tmp_path / "out.json"))
    metric.process(None, [answered("red", None, 0.0, 7), answered("no", None, None, 3), answered("red", None, 0.0, 7)])
    assert metric.evaluate(2) == {"evalai/answers": 2.0, "evalai/unreadable": 1.0}  # the third is the sampler's padding
    assert [entry["question_id"] for entry in json.loads((tmp_path / "out.json").read_text())] == [3, 7]


def test_recall_leaves_unreadable_images_and_their_captions_out() -> None:
    scores = torch.randn(4, 8, generator=torch.Generator().manual_seed(0))
    own = [(2 * i, 2 * i + 2) for i in range(4)]
    metric = Recall()
    images = [0, UNREADABLE, 2, 3]
    metric.process(None, [{"image": i, "own": o, "scores": s} for i, o, s in zip(images, own, scores, strict=True)])
    figures = metric.evaluate(4)
    kept = scores[[0, 2, 3]][:, [0, 1, 4, 5, 6, 7]].numpy()
    wanted = recalls(*ranks_of_images(kept, own[:3]))
    assert {name: figures[f"retrieval/{name}"] for name in wanted} == wanted
    assert figures["retrieval/mean"] == pytest.approx(np.mean(list(wanted.values())))
    assert figures["retrieval/unreadable"] == 1.0


class Answers(nn.Module):
    """Stands in for a model: its answers only."""

    answers = SimpleNamespace(names=("yes", "no", "red"))


def test_vqa_task() -> None:
    logits = torch.tensor([[2.0, -1.0, 0.0], [0.0, 3.0, 1.0]])
    worth = torch.tensor([[1.0, 0.0, 0.3], [-1.0, -1.0, -1.0]])
    task = VQATask(Answers())
    p = logits[:1].sigmoid()
    by_hand = -(worth[:1] * p.log() + (1 - worth[:1]) * (1 - p).log()).sum()
    torch.testing.assert_close(task.loss(logits[:1], worth[:1])["loss"], by_hand)
    found = task.predict(logits, worth, question_id=[5, 6], annotation=[RED, None])
    assert [(f["answer"], f["worth"], f["question_id"]) for f in found] == [("yes", 1.0, 5), ("no", None, 6)]


def test_retrieval_task() -> None:
    rank, match = torch.randn(3, 4), torch.randn(3, 2)
    labels = torch.tensor([1, 0, 1])
    losses = RetrievalTask(nn.Identity(), match_weight=0.5).loss({"rank": rank, "match": match}, labels)
    torch.testing.assert_close(losses["rank_loss"], -rank.log_softmax(1)[:, 0].mean())
    torch.testing.assert_close(losses["match_loss"], -0.5 * match.log_softmax(1)[range(3), labels].mean())
    assert set(RetrievalTask(nn.Identity()).loss({"rank": rank}, labels)) == {"rank_loss"}
