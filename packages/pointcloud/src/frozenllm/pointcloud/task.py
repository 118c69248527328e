"""Classification of point clouds: the clouds are thinned on the device, and evaluated once or by votes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from frozenllm.core.training import ClassificationTask
from frozenllm.pointcloud.transforms import thin, vote_views


class PointCloudTask(ClassificationTask):
    """Cross entropy on clouds; in evaluation one view of each cloud, or the average of several.

    Args:
        model: See `frozenllm.core.training.Task`.
        batch_transform: Sampling and augmentation in training, see `frozenllm.pointcloud.transforms.PointAugment`.
        precision: See `frozenllm.core.training.Task`.
        label_smoothing: See `ClassificationTask`. The official code has 0.2 behind a flag that its scripts do not set.
        num_points: Points of a cloud that the model sees in evaluation: those of farthest point sampling; None for all.
        votes: Views of a cloud in evaluation, see `frozenllm.pointcloud.transforms.vote_views`; 1 for the cloud itself.
            The official code has 10.
        vote_average: What is averaged over the views: ``"logits"`` (official) or ``"softmax"``.
        vote_seed: Of the views.

    Raises:
        ValueError: An option is out of range.
    """

    def __init__(
        self,
        model: nn.Module | Mapping[str, Any],
        batch_transform: Callable[[Any, Any], tuple[Any, Any]] | Mapping[str, Any] | None = None,
        precision: str = "fp32",
        label_smoothing: float = 0.0,
        num_points: int | None = None,
        votes: int = 1,
        vote_average: str = "logits",
        vote_seed: int = 0,
    ) -> None:
        super().__init__(model, batch_transform, precision, label_smoothing)
        if vote_average not in ("logits", "softmax"):
            raise ValueError(f"task.vote_average must be logits or softmax, not {vote_average!r}.")
        if not isinstance(votes, int) or votes < 1:
            raise ValueError(f"task.votes must be a positive whole number, not {votes!r}.")
        self.num_points = num_points
        self.votes = votes
        self.vote_average = vote_average
        self.vote_seed = vote_seed

    def forward(self, inputs: Tensor, targets: Any = None, mode: str = "tensor", **extra: Any) -> Any:
        """As in `Task`; clouds ``(B, N, 3)``, and ``index`` ``(B,)`` where there are votes."""
        if mode == "predict" and self.votes > 1:
            if "index" not in extra:
                raise ValueError("Votes need samples that know their index: task.votes=1, or a data set that gives it.")
            count = self.num_points or inputs.shape[1]
            inputs = vote_views(inputs, extra["index"], self.votes, count, seed=self.vote_seed).flatten(0, 1)
        elif self.num_points is not None and not (mode == "loss" and self.batch_transform is not None):
            inputs = thin(inputs, self.num_points)
        return super().forward(inputs, targets, mode, **extra)

    def predict(self, outputs: Tensor, targets: Tensor, **extra: Any) -> list[dict[str, Any]]:
        """See `ClassificationTask`; the views of a cloud give one prediction."""
        outputs = outputs.float()
        if self.votes > 1:
            views = outputs.unflatten(0, (-1, self.votes))
            outputs = views.mean(1) if self.vote_average == "logits" else log_mean_softmax(views)
        return super().predict(outputs, targets)


def log_mean_softmax(views: Tensor) -> Tensor:
    """Logarithm of the mean probabilities over the views, ``(B, C)`` from ``(B, V, C)``."""
    return torch.logsumexp(views.log_softmax(-1), dim=1) - torch.tensor(float(views.shape[1])).log().to(views)
