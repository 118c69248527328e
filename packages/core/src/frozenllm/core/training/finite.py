"""A loss that is infinite or no number ends the run, before it reaches a checkpoint."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import Any

import torch
from mmengine.hooks import Hook
from torch import Tensor, distributed

from frozenllm.core.training.faults import NotFinite
from frozenllm.core.training.registry import HOOKS

_BEHIND = 8  # iterations that a GPU may be behind before the host waits for it
_NAMED = 16  # samples in the message


@HOOKS.register_module()
class FiniteGuard(Hook):
    """Looks at the loss of every iteration.

    On a GPU a loss is looked at some iterations later, so that the host need not wait for it; before anything is
    validated or saved, all are. With several processes, all of them stop when one has such a loss.

    Raises:
        NotFinite: A loss is infinite or no number.
    """

    priority = "ABOVE_NORMAL"  # before the average, the history and the checkpoint take it up

    def __init__(self) -> None:
        self._pending: deque[tuple[int, Tensor, Tensor]] = deque()

    def after_train_iter(
        self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: dict[str, Any] | None = None
    ) -> None:
        """Note the loss, and look at it or at an earlier one."""
        loss = (outputs or {}).get("loss")
        if not isinstance(loss, Tensor):
            return
        loss = loss.detach()
        finite = torch.isfinite(loss).all().float()
        if distributed.is_initialized():
            distributed.all_reduce(finite, distributed.ReduceOp.MIN)
        self._pending.append((runner.iter, loss, finite))
        self._look(runner, _BEHIND if loss.is_cuda else 0)

    def after_train_epoch(self, runner: Any) -> None:
        """Look at all."""
        self._look(runner)

    def before_save_checkpoint(self, runner: Any, checkpoint: dict[str, Any]) -> None:
        """Look at all."""
        self._look(runner)

    def _look(self, runner: Any, keep: int = 0) -> None:
        while len(self._pending) > keep:
            iteration, loss, finite = self._pending.popleft()
            if finite.item():
                continue
            epoch, batch = divmod(iteration, runner.train_loop.epoch_length)
            what = f"is {loss.item():g}"
            if torch.isfinite(loss):
                what = "of another process is not finite"
            names = batch_names(runner, epoch, batch)
            raise NotFinite(f"The loss {what} in iteration {iteration + 1} (epoch {epoch + 1}), with {names}")


def batch_names(runner: Any, epoch: int, batch: int) -> str:
    """Words for the samples of a batch of this process, which follow from where the run was."""
    loader = runner.train_loop.dataloader
    keys = loader.sampler.keys(epoch, batch * loader.batch_size, loader.batch_size)
    names = [f"{index}{f' ({file})' if (file := loader.dataset.describe(index)) else ''}" for _, index, _ in keys]
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return f"the samples {', '.join(names[:_NAMED])}{more} of the training data"


def check_weights(checkpoint: Mapping[str, Any]) -> None:
    """Refuse weights that are infinite or no numbers: a finite loss may have had a gradient that was not.

    Raises:
        NotFinite: One is.
    """
    for name, value in checkpoint["state_dict"].items():
        if isinstance(value, Tensor) and value.is_floating_point() and not torch.isfinite(value).all():
            raise NotFinite(
                f"The weights are not finite any more by iteration {checkpoint['meta']['iter']} (the first of them is "
                f"{name}) and were not saved"
            )
