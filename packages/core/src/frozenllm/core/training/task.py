"""Tasks: a plain module, its loss and its predictions, in the form that mmengine's runner calls."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from typing import Any

import torch
from mmengine.model import BaseModel
from torch import Tensor, nn
from torch.nn import functional as F

from frozenllm.core.training.options import built_by_config, first_batch
from frozenllm.core.training.registry import MODELS, TRANSFORMS

AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}
"""Autocast's data type per ``runtime.precision``."""


class Task(BaseModel):
    """A module with a loss and predictions; subclasses say which.

    Args:
        model: A module, or its config.
        batch_transform: ``(inputs, targets) -> (inputs, targets)`` on the device, in training only (mixup), or its
            config.
        precision: ``"fp32"``, ``"bf16"`` or ``"fp16"``: autocast around the module. Losses are computed in float32.
    """

    def __init__(
        self,
        model: nn.Module | Mapping[str, Any],
        batch_transform: Callable[[Any, Any], tuple[Any, Any]] | Mapping[str, Any] | None = None,
        precision: str = "fp32",
    ) -> None:
        super().__init__()
        self.model = built_by_config(lambda: MODELS.build(dict(model))) if isinstance(model, Mapping) else model
        self.batch_transform: Callable[[Any, Any], tuple[Any, Any]] | None = (
            TRANSFORMS.build(dict(batch_transform)) if isinstance(batch_transform, Mapping) else batch_transform
        )
        self.precision = precision
        self._worked: set[str] = set()  # modes that a batch has passed through

    def init_weights(self) -> None:
        """Nothing: a module is ready when it is built, and mmengine would re-initialise pretrained hosts here."""

    def forward(self, inputs: Any, targets: Any = None, mode: str = "tensor", **extra: Any) -> Any:
        """Called by mmengine.

        Args:
            inputs: What the module takes: one argument, or a mapping of keyword arguments.
            targets: What loss and predictions compare with.
            mode: ``"loss"``: dict of tensors; ``"predict"``: list of dicts, one per sample; ``"tensor"``: the module's
                output.
            extra: Other entries of the batch, handed on to `loss` and `predict`.

        Raises:
            ValueError: The first batch of its mode fails, in the place of what torch or a library says of it.
        """
        if mode in self._worked:
            return self._forward(inputs, targets, mode, extra)
        result = first_batch(lambda: self._forward(inputs, targets, mode, extra))
        self._worked.add(mode)
        return result

    def _forward(self, inputs: Any, targets: Any, mode: str, extra: Mapping[str, Any]) -> Any:
        if mode == "loss" and self.batch_transform is not None and self.training:
            inputs, targets = self.batch_transform(inputs, targets)
        dtype = AUTOCAST.get(self.precision)
        with torch.autocast(self.data_preprocessor.device.type, dtype=dtype, enabled=dtype is not None):
            outputs = self.model(**inputs) if isinstance(inputs, Mapping) else self.model(inputs)
        if mode == "loss":
            return self.loss(outputs, targets, **extra)
        if mode == "predict":
            return self.predict(outputs, targets, **extra)
        return outputs

    @abstractmethod
    def loss(self, outputs: Any, targets: Any, **extra: Any) -> dict[str, Tensor]:
        """Scalars to log; those with ``loss`` in their name are summed and minimised."""

    @abstractmethod
    def predict(self, outputs: Any, targets: Any, **extra: Any) -> list[dict[str, Any]]:
        """One dict per sample, which the metrics read."""


@MODELS.register_module()
class ClassificationTask(Task):
    """Cross entropy against class indices or soft targets.

    Args:
        model: See `Task`.
        batch_transform: See `Task`; may turn (B,) indices into (B, C) probabilities.
        precision: See `Task`.
        label_smoothing: Share of the target spread over all classes; for soft targets the batch transform has done it.
    """

    def __init__(
        self,
        model: nn.Module | Mapping[str, Any],
        batch_transform: Callable[[Any, Any], tuple[Any, Any]] | Mapping[str, Any] | None = None,
        precision: str = "fp32",
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__(model, batch_transform, precision)
        if not 0 <= label_smoothing < 1:
            raise ValueError(f"task.label_smoothing must be a number from 0 to below 1, not {label_smoothing}.")
        self.label_smoothing = label_smoothing

    def loss(self, outputs: Tensor, targets: Tensor, **extra: Any) -> dict[str, Tensor]:
        """``{"loss": ...}`` from logits (B, C) and targets (B,) or (B, C)."""
        smoothing = 0.0 if targets.is_floating_point() else self.label_smoothing
        try:
            return {"loss": F.cross_entropy(outputs.float(), targets, label_smoothing=smoothing)}
        except IndexError as error:  # on a CPU; a GPU fails later, and says less
            raise ValueError(
                f"A sample is of class {int(targets.max())} (the first is 0), but the model has {outputs.shape[1]}: "
                "check the number of classes."
            ) from error

    def predict(self, outputs: Tensor, targets: Tensor, **extra: Any) -> list[dict[str, Any]]:
        """``{"scores": (C,) float32 logits, "target": int}`` per sample, on the CPU."""
        return [
            {"scores": scores, "target": target}
            for scores, target in zip(outputs.float().cpu(), targets.tolist(), strict=True)
        ]
