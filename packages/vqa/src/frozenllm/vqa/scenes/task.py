"""What is minimised: SQA3D's weighted sum of the detector's losses, the pose's and the answers'."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from frozenllm.core.training import Task

SCALE = 10.0
"""SQA3D's factor on its whole loss; mmdet3d's weights have it already (`frozenllm.vqa.scenes.votenet`)."""


class SituatedTask(Task):
    """10 x (vote 1 + objectness 0.5 + box 1 + classes 0.1 + pose 0.1 + answers 0.1), as SQA3D's code weighs them.

    Answers: binary cross entropy, summed over the answers and averaged over the batch. Pose: mean squared errors of
    position and quaternion, added. Questions whose answer is not in the vocabulary (a negative target) are not trained
    on, but count in the average; their scenes are.

    Predictions are ``{"answer", "rank", "target", "question_id", "question_type"}``: the best answer; how many answers
    were scored above the right one, None where the vocabulary lacks it; and the target as the data set gave it.

    Args:
        model: See `Task`.
        batch_transform: See `Task`.
        precision: See `Task`.
        answer_weight: Factor on the answers' loss.
        pose_weight: Factor on the pose's.
        detection_weight: Factor on all of the detector's.
    """

    def __init__(
        self,
        model: Any,
        batch_transform: Any = None,
        precision: str = "fp32",
        *,
        answer_weight: float = 0.1,
        pose_weight: float = 0.1,
        detection_weight: float = 1.0,
    ) -> None:
        super().__init__(model, batch_transform, precision)
        self.answer_weight, self.pose_weight = answer_weight, pose_weight
        self.detection_weight = detection_weight

    def loss(self, outputs: Mapping[str, Any], targets: Mapping[str, Any], **extra: Any) -> dict[str, Tensor]:
        """``answer_loss``; and, where the model sees the scene, ``pose_loss`` and mmdet3d's, all weighted.

        Args:
            outputs: Of `frozenllm.vqa.scenes.model.SituatedQA`.
            targets: ``answer`` (B,), ``pose`` (B, 7), and what `SceneDetector.losses` takes.
            extra: Ignored.
        """
        losses = {"answer_loss": SCALE * self.answer_weight * answer_loss(outputs["answers"], targets["answer"])}
        if "pose" in outputs:
            losses["pose_loss"] = SCALE * self.pose_weight * pose_loss(outputs["pose"], targets["pose"])
            found = self.model.detector.losses(outputs["points"], outputs["detected"], targets)
            losses |= {name: self.detection_weight * value for name, value in found.items()}
        return losses

    def predict(self, outputs: Mapping[str, Any], targets: Mapping[str, Any], **extra: Any) -> list[dict[str, Any]]:
        """One dict per question."""
        scores = outputs["answers"].float()
        names = self.model.answers.names
        best = scores.argmax(dim=1).tolist()
        return [
            {"answer": names[first], "rank": rank, "target": target, "question_id": number, "question_type": kind}
            for first, rank, target, number, kind in zip(
                best, ranks(scores, targets["answer"]), targets["answer"].tolist(), extra["question_id"],
                extra["question_type"], strict=True,
            )
        ]  # fmt: skip


def answer_loss(logits: Tensor, answer: Tensor) -> Tensor:
    """Binary cross entropy of logits (B, answers), summed over answers, averaged over the batch.

    Args:
        logits: Of every answer.
        answer: (B,) int64, the right one; negative where there is none to train on.
    """
    known = answer >= 0
    wanted = F.one_hot(answer.clamp(min=0), logits.shape[1]).to(torch.float32)
    entropy = F.binary_cross_entropy_with_logits(logits.float(), wanted, reduction="none").sum(dim=1)
    return (entropy * known).sum() / len(answer)


def pose_loss(pose: Tensor, wanted: Tensor) -> Tensor:
    """Mean squared error of positions (B, :3) plus that of quaternions (B, 3:)."""
    pose, wanted = pose.float(), wanted.float()
    return F.mse_loss(pose[:, :3], wanted[:, :3]) + F.mse_loss(pose[:, 3:], wanted[:, 3:])


def ranks(scores: Tensor, answer: Tensor) -> list[int | None]:
    """How many answers stand before the right one, 0 for the best; None where the target is negative.

    Of equal scores, the answer of the lower number stands first, as `Tensor.argmax` has it.
    """
    own = scores.gather(1, answer.clamp(min=0)[:, None])
    places = torch.arange(scores.shape[1], device=scores.device)
    before = (scores > own) | ((scores == own) & (places < answer[:, None]))
    counts = before.sum(dim=1).tolist()
    return [count if target >= 0 else None for count, target in zip(counts, answer.tolist(), strict=True)]
