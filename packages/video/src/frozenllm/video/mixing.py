"""Mixup and cutmix of clips, as a batch transform."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision import tv_tensors
from torchvision.transforms import v2


class VideoMix:
    """Mixes every clip with its neighbour in the batch, by torchvision's mixup or cutmix.

    Cutmix cuts one box of rows and columns out of all frames, and the label's share is that of the pixels; timm's
    cutmix, and the official code's in its ``pair`` mode, cut such a batch along time and rows.

    Args:
        num_classes: Number of classes.
        mixup_alpha: Parameter of mixup's Beta distribution; 0 for no mixup.
        cutmix_alpha: The same for cutmix.
        label_smoothing: Share of the target that is spread over all classes.
        prob: Share of the batches that are mixed.
        switch_prob: Share of those that cutmix mixes, where both are on.

    Raises:
        ValueError: A value is not possible.
    """

    def __init__(
        self,
        num_classes: int,
        mixup_alpha: float = 0.8,
        cutmix_alpha: float = 1.0,
        label_smoothing: float = 0.1,
        prob: float = 1.0,
        switch_prob: float = 0.5,
    ) -> None:
        if min(mixup_alpha, cutmix_alpha) < 0 or not all(0 <= p <= 1 for p in (label_smoothing, prob, switch_prob)):
            raise ValueError("The video mix needs alphas from 0, and probabilities and smoothing from 0 to 1.")
        self.num_classes = num_classes
        self.label_smoothing = label_smoothing
        self.prob = prob
        self.switch_prob = {(True, True): switch_prob, (False, True): 1.0}.get((mixup_alpha > 0, cutmix_alpha > 0), 0.0)
        self.mixup = v2.MixUp(alpha=mixup_alpha, num_classes=num_classes) if mixup_alpha else None
        self.cutmix = v2.CutMix(alpha=cutmix_alpha, num_classes=num_classes) if cutmix_alpha else None

    def __call__(self, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Mix a batch.

        Args:
            inputs: Clips, ``(B, T, C, H, W)``.
            targets: Class indices, ``(B,)``.

        Returns:
            The clips and the targets, ``(B, num_classes)`` float32.

        Raises:
            ValueError: There is one clip only, which has no neighbour.
        """
        if len(inputs) < 2:
            raise ValueError("Mixing needs batches of two clips or more: raise data.batch_size.")
        soft = F.one_hot(targets, self.num_classes).float()
        soft = soft * (1 - self.label_smoothing) + self.label_smoothing / self.num_classes
        mix = self.cutmix if torch.rand(()) < self.switch_prob else self.mixup
        if mix is None or torch.rand(()) >= self.prob:
            return inputs, soft
        mixed, soft = mix(tv_tensors.Video(inputs), soft)  # as a plain tensor, five dimensions are refused
        return mixed.as_subclass(torch.Tensor), soft
