"""Exponential moving average of the trained parameters.

mmengine's averaged model copies every buffer at every step, a frozen block's 800 MB among them. This one averages the
parameters that are trained and nothing else; in evaluation they change places with the live ones.
"""

from __future__ import annotations

from typing import Any

import torch
from mmengine.hooks import Hook
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from frozenllm.core.training.distributed import bare
from frozenllm.core.training.registry import HOOKS


@HOOKS.register_module()
class EMA(Hook):
    """Keeps the average, saves it in checkpoints, and evaluates with it if asked to.

    Args:
        decay: Weight of the old average at every update (paper's ImageNet recipe: 0.99996).
        evaluate: ``"raw"`` evaluates the live weights (the paper's figures), ``"ema"`` the average. Buffers, such as
            the statistics of a BatchNorm, are the live ones in both cases.

    Raises:
        ValueError: ``evaluate`` is neither.
    """

    priority = "NORMAL"

    def __init__(self, decay: float = 0.9999, evaluate: str = "raw") -> None:
        if evaluate not in ("raw", "ema"):
            raise ValueError(f"optim.ema.evaluate must be raw or ema, not {evaluate!r}.")
        self.decay = decay
        self.evaluate = evaluate
        self.average: dict[str, Tensor] = {}
        self._update = get_ema_multi_avg_fn(decay)

    def before_train(self, runner: Any) -> None:
        """Start from the live weights, unless a resumed checkpoint has brought the average."""
        if not self.average:
            self.average = {name: p.detach().clone() for name, p in _trained(runner.model).items()}

    @torch.no_grad()
    def after_train_iter(
        self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: dict[str, Any] | None = None
    ) -> None:
        """Average after every update of the optimizer."""
        if runner.optim_wrapper.should_update():
            live = [p.detach() for p in _trained(runner.model).values()]
            self._update(list(self.average.values()), live, 0)

    def before_val_epoch(self, runner: Any) -> None:
        """Put the average in the model's place."""
        if self.evaluate == "ema":
            self._swap(runner.model)

    def after_val_epoch(self, runner: Any, metrics: dict[str, float] | None = None) -> None:
        """Put the live weights back."""
        if self.evaluate == "ema":
            self._swap(runner.model)

    before_test_epoch, after_test_epoch = before_val_epoch, after_val_epoch

    def before_save_checkpoint(self, runner: Any, checkpoint: dict[str, Any]) -> None:
        """Add the average to the checkpoint, tied parameters under all their names, as the state dict has them."""
        checkpoint["ema"] = {name: self.average[first].cpu() for name, first in _all_names(runner.model).items()}

    def after_load_checkpoint(self, runner: Any, checkpoint: dict[str, Any]) -> None:
        """Take the average from the checkpoint.

        Raises:
            ValueError: It has none, or one of another model.
        """
        saved, live = checkpoint.get("ema"), _trained(runner.model)
        if saved is None or saved.keys() not in (live.keys(), _all_names(runner.model).keys()):
            raise ValueError("The checkpoint has no moving average of this model: set optim.ema=null or start anew.")
        self.average = {name: saved[name].to(p.device, copy=True) for name, p in live.items()}

    @torch.no_grad()
    def _swap(self, model: nn.Module) -> None:
        for name, p in _trained(model).items():
            live = p.detach().clone()
            p.copy_(self.average[name])
            self.average[name].copy_(live)


def _trained(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: p for name, p in bare(model).named_parameters() if p.requires_grad}


def _all_names(model: nn.Module) -> dict[str, str]:
    """Every name of a trained parameter, and the one that `_trained` has it under."""
    first = {id(p): name for name, p in _trained(model).items()}
    named = bare(model).named_parameters(remove_duplicate=False)
    return {name: first[id(p)] for name, p in named if id(p) in first}
