"""BatchNorm over all processes, on GPUs and on CPUs."""

from __future__ import annotations

import torch
from torch import Tensor, distributed, nn
from torch.distributed.nn.functional import all_reduce
from torch.nn.modules.batchnorm import _BatchNorm


def synchronize_batch_norm(model: nn.Module, device: torch.device) -> nn.Module:
    """Let every BatchNorm take its statistics over the batches of all processes.

    Args:
        model: Changed in place; names and state dict stay.
        device: Where it runs: torch's own layer knows GPUs only.

    Returns:
        The model; the new layer where it was a BatchNorm itself.

    Raises:
        ValueError: A layer does more than a BatchNorm, such as timm's with an activation, which would get lost.
    """
    for name, module in model.named_modules():
        plain = type(module).forward in (_BatchNorm.forward, nn.SyncBatchNorm.forward, SyncBatchNorm.forward)
        if isinstance(module, _BatchNorm) and not plain:
            raise ValueError(
                f"runtime.sync_bn=true cannot synchronise {name or 'the model'}: a {type(module).__name__} does more "
                "than a BatchNorm."
            )
    if device.type == "cuda":
        return nn.SyncBatchNorm.convert_sync_batchnorm(model)
    if isinstance(model, _BatchNorm):
        return _converted(model)
    for name, child in model.named_children():
        model.add_module(name, synchronize_batch_norm(child, device))
    return model


class SyncBatchNorm(_BatchNorm):
    """BatchNorm whose mean and variance are those of all processes' batches; gloo is enough.

    The sums are exchanged one after the other, mean and then squares around it: a difference of two large sums would
    lose digits.
    """

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() < 2:
            raise ValueError(f"BatchNorm needs (batch, channels, ...), got {input.dim()} dimension(s).")

    def forward(self, input: Tensor) -> Tensor:
        """(B, C, ...) -> the same, normalised over all but C and over all processes."""
        self._check_input_dim(input)
        if not self.training or not distributed.is_initialized():
            return super().forward(input)
        others = [axis for axis in range(input.dim()) if axis != 1]
        shape = [1, -1, *[1] * (input.dim() - 2)]
        x = input.float()
        own = x.new_full((1,), x.numel() / x.shape[1])
        sums = all_reduce(torch.cat([x.sum(others), own]))
        count = sums[-1].detach()
        mean = sums[:-1] / count
        centred = x - mean.view(shape)
        variance = all_reduce(centred.square().sum(others)) / count
        self._track(mean.detach(), variance.detach(), count)
        out = centred * torch.rsqrt(variance + self.eps).view(shape)
        if self.affine:
            out = out * self.weight.view(shape) + self.bias.view(shape)
        return out.to(input.dtype)

    @torch.no_grad()
    def _track(self, mean: Tensor, variance: Tensor, count: Tensor) -> None:
        if not self.track_running_stats or self.running_mean is None or self.running_var is None:
            return
        assert self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        share = 1.0 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), share)
        unbiased = variance * count / (count - 1).clamp_min(1)
        self.running_var.lerp_(unbiased.to(self.running_var.dtype), share)


def _converted(norm: _BatchNorm) -> SyncBatchNorm:
    new = SyncBatchNorm(norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats)
    new._parameters, new._buffers = norm._parameters, norm._buffers
    return new.train(norm.training)
