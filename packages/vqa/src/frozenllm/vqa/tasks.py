"""What is minimised: answer scores for questions, ranking and matching for retrieval."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from frozenllm.core.training import UNREADABLE, Task


class VQATask(Task):
    """Binary cross entropy of every answer against its worth, summed over answers and averaged over questions (METER).

    Predictions are ``{"answer", "worth", "question_id", "annotation"}``: the best answer, what it is worth by the soft
    score (None for a sample that could not be read), and what the official score needs.
    """

    def loss(self, outputs: Tensor, targets: Tensor, **extra: Any) -> dict[str, Tensor]:
        """``{"loss"}`` from logits and worths (B, answers)."""
        return {"loss": F.binary_cross_entropy_with_logits(outputs.float(), targets) * targets.shape[1]}

    def predict(self, outputs: Tensor, targets: Tensor, **extra: Any) -> list[dict[str, Any]]:
        """One dict per question."""
        names = self.model.answers.names
        best = outputs.argmax(dim=1)
        worth = targets.gather(1, best[:, None])[:, 0].tolist()
        return [
            {
                "answer": names[place],
                "worth": None if score == UNREADABLE else score,
                "question_id": number,
                "annotation": annotation,
            }
            for place, score, number, annotation in zip(
                best.tolist(), worth, extra["question_id"], extra["annotation"], strict=True
            )
        ]


class RetrievalTask(Task):
    """Cross entropy of the own caption among the negatives, and of matching where the batch draws matches (METER).

    Args:
        model: See `Task`.
        batch_transform: See `Task`; `DrawMatches` adds the matching loss.
        precision: See `Task`.
        match_weight: Factor on the matching loss.
    """

    def __init__(
        self, model: Any, batch_transform: Any = None, precision: str = "fp32", match_weight: float = 1.0
    ) -> None:
        super().__init__(model, batch_transform, precision)
        if match_weight < 0:
            raise ValueError(f"task.match_weight must be a number from 0, not {match_weight}.")
        self.match_weight = match_weight

    def loss(self, outputs: Mapping[str, Tensor], targets: Any, **extra: Any) -> dict[str, Tensor]:
        """``rank_loss`` from scores (B, 1 + negatives), ``match_loss`` from logits (B, 2)."""
        rank = outputs["rank"].float()
        own = torch.zeros(len(rank), dtype=torch.long, device=rank.device)
        losses = {"rank_loss": F.cross_entropy(rank, own)}
        if "match" in outputs:
            losses["match_loss"] = self.match_weight * F.cross_entropy(outputs["match"].float(), targets)
        return losses

    def predict(self, outputs: Mapping[str, Tensor], targets: Tensor, **extra: Any) -> list[dict[str, Any]]:
        """``{"scores": (G,) float32, "image", "own"}`` per image, on the CPU; image `UNREADABLE` for a stand-in."""
        return [
            {"scores": scores, "image": image, "own": own}
            for scores, image, own in zip(outputs["rank"].float().cpu(), targets.tolist(), extra["own"], strict=True)
        ]


class DrawMatches:
    """Batch transform for matching: half of the captions meet their own image, half another image of the batch.

    METER reads the other image from disk, at random; here it is one that the batch has encoded anyway.
    """

    def __call__(self, inputs: dict[str, Any], targets: Tensor) -> tuple[dict[str, Any], Tensor]:
        """Draw.

        Args:
            inputs: Of a `CaptionDataset`'s batch.
            targets: (B,) numbers of the images.

        Returns:
            The inputs with ``match_with`` (B,), and (B,) int64: 1 where caption and image belong together.

        Raises:
            ValueError: The batch holds only one image.
        """
        size = len(targets)
        same = targets[:, None] == targets[None, :]
        if bool(same.all()):
            raise ValueError("Matching needs two different images in a batch: raise data.batch_size.")
        together = torch.arange(size, device=targets.device) < size // 2
        together = together[torch.randperm(size, device=targets.device)]
        other = torch.multinomial((~same).float(), 1)[:, 0]
        match_with = torch.where(together, torch.arange(size, device=targets.device), other)
        return {**inputs, "match_with": match_with}, (targets[match_with] == targets).long()
