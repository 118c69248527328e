"""The frozen guard: a run that changed a byte of a frozen block fails."""

from __future__ import annotations

import zlib
from typing import Any

import torch
from mmengine.hooks import Hook
from torch import Tensor, nn

from frozenllm.core.block import llm_blocks
from frozenllm.core.training.registry import HOOKS

_CHUNK = 1 << 26  # bytes that are brought to the CPU at a time


class FrozenBlockChanged(RuntimeError):
    """A frozen block's weights are no longer those that the run started with."""


def fingerprint(tensor: Tensor) -> int:
    """CRC-32 of a tensor's bytes: it changes with any single byte.

    Cheap enough for every epoch: a block of LLaMA-7B's size in float32 (810 MB) takes about a third of a second.

    Args:
        tensor: Any dtype, any device.
    """
    value = 0
    for part in tensor.detach().contiguous().view(-1).view(torch.uint8).split(_CHUNK):
        value = zlib.crc32(part.cpu().numpy(), value)
    return value


def block_fingerprints(model: nn.Module) -> dict[str, int]:
    """Fingerprint of every buffer of every frozen block in a model, by name."""
    return {
        f"{prefix}.{name}": fingerprint(buffer)
        for prefix, block in llm_blocks(model)
        if not block.trainable
        for name, buffer in block.named_buffers()
    }


@HOOKS.register_module()
class FrozenGuard(Hook):
    """Compares the live bytes of every frozen block with those at the start, after every epoch and at the end.

    Raises:
        FrozenBlockChanged: They differ.
    """

    priority = "VERY_HIGH"  # before a checkpoint is written

    def __init__(self) -> None:
        self.expected: dict[str, int] = {}

    def before_train(self, runner: Any) -> None:
        """Take the fingerprints."""
        self.expected = block_fingerprints(runner.model)

    def after_train_epoch(self, runner: Any) -> None:
        """Compare."""
        self.check(runner)

    def after_train(self, runner: Any) -> None:
        """Compare."""
        self.check(runner)

    def check(self, runner: Any) -> None:
        """Compare, and raise where a block differs."""
        live = block_fingerprints(runner.model)
        changed = [name for name, value in self.expected.items() if live.get(name) != value]
        if changed:
            raise FrozenBlockChanged(
                f"The frozen language-model block changed during training, by iteration {runner.iter}: "
                f"{', '.join(changed)}. Something wrote into its weights; do not use this run's checkpoints."
            )
