"""The training loop: mmengine's, able to start in mid-epoch, and with one random state per iteration."""

from __future__ import annotations

from typing import Any

from mmengine.hooks import Hook
from mmengine.runner import EpochBasedTrainLoop
from torch import nn
from torch.utils.data import DataLoader

from frozenllm.core.training.distributed import average_buffers
from frozenllm.core.training.registry import HOOKS, LOOPS
from frozenllm.core.training.seeding import derive_seed, seed_everything


@LOOPS.register_module()
class TrainLoop(EpochBasedTrainLoop):
    """Epochs of training, each followed by validation and then by the hooks' ``after_round``.

    A run that was resumed in mid-epoch skips the samples it has seen in the sampler, without loading them.

    Args:
        runner: The engine.
        dataloader: Loader with an `EpochSampler`, or its config.
        max_epochs: Epochs to train.
        val_interval: Epochs between validations; the last epoch is always validated.
        stop_after: Iterations after which this process stops, with a checkpoint, to be resumed later; None for none.
    """

    def __init__(
        self,
        runner: Any,
        dataloader: DataLoader | dict[str, Any],
        max_epochs: int,
        val_interval: int = 1,
        stop_after: int | None = None,
    ) -> None:
        super().__init__(runner, dataloader, max_epochs=max_epochs, val_interval=val_interval)
        self.stop_training: bool = False  # also set by mmengine's hooks for early stopping
        self.stop_after = stop_after
        self.done_here = 0

    @property
    def epoch_length(self) -> int:
        """Iterations per epoch."""
        return len(self.dataloader)

    @property
    def finished(self) -> bool:
        """Whether all epochs are trained."""
        return self._epoch >= self._max_epochs

    def run(self) -> nn.Module:
        """Train until the end, or until something sets ``stop_training``."""
        self.runner.call_hook("before_train")
        while not self.finished and not self.stop_training:
            if not self.run_epoch():
                break
            average_buffers(self.runner.bare_model)
            if self.runner.val_loop is not None and (self._epoch % self.val_interval == 0 or self.finished):
                self.runner.val_loop.run()
            self.runner.call_hook("after_round")
        self.runner.call_hook("after_train")
        return self.runner.model

    def run_epoch(self) -> bool:
        """Train on what is left of the current epoch; False if stopped before its end."""
        done = self._iter - self._epoch * self.epoch_length
        self.dataloader.sampler.set_epoch(self._epoch, start=done * self.dataloader.batch_size)
        self.runner.call_hook("before_train_epoch")
        self.runner.model.train()
        for batch_idx, batch in enumerate(self.dataloader, start=done):
            self.run_iter(batch_idx, batch)
            self.done_here += 1
            self.stop_training = self.stop_training or self.done_here == self.stop_after
            if self.stop_training and batch_idx + 1 < self.epoch_length:
                return False
        self.runner.call_hook("after_train_epoch")
        self._epoch += 1
        return True


@HOOKS.register_module()
class Reseed(Hook):
    """Seeds the global generators from (seed, process, iteration) before every iteration.

    Dropout and batch transforms then draw the same numbers whether the run came here in one go or was resumed, and
    however many samples the workers have read ahead.
    """

    priority = "HIGHEST"

    def before_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None) -> None:
        """Seed."""
        seed_everything(derive_seed(runner.seed, "iteration", runner.rank, runner.iter))
