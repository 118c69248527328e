"""Parts of the tiny domain that fail, each at a sample or a step that its arguments name."""

from __future__ import annotations

import gc
import os
import signal
import time
from typing import Any

import torch
from torch import Tensor

from frozenllm.core.training import DATASETS, MODELS, BrokenSample, TolerantDataset
from tinydomain.train import Host, Points

FILE = "points/{:03d}.bin"


class Failing(TolerantDataset):
    """`Points` of which one sample fails, in a way that ``how`` names."""

    def __init__(self, size: int, at: int, how: str, on_error: str = "raise", **options: Any) -> None:
        super().__init__(size, train=True, on_error=on_error)
        self.points, self.at, self.how = Points(size, **options), at, how

    def describe(self, index: int) -> str:
        return FILE.format(index)

    def read(self, index: int) -> tuple[Tensor, int]:
        sample = self.points[index]
        return getattr(self, f"_{self.how}")(index, *sample) if index == self.at else sample

    def _dies(self, *_: object) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def _broken(self, index: int, *_: object) -> None:
        raise BrokenSample(f"{FILE.format(index)} is empty.")

    def _mistake(self, *_: object) -> None:
        raise KeyError("a mistake in the program")

    def _hangs(self, *_: object) -> None:
        time.sleep(60)

    def _hangs_for_good(self, *_: object) -> None:
        """As in a library that waits for a disk: no signal is delivered before it comes back."""
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGALRM})
        time.sleep(60)

    def _collects(self, _index: int, *sample: Any) -> Any:
        """Finds what a worker has in its memory from before it was forked."""
        gc.collect()
        return sample

    def _nan(self, _index: int, inputs: Tensor, target: int) -> tuple[Tensor, int]:
        return inputs * float("nan"), target


class BadGradient(Host):
    """Its loss is finite and its gradient is not, from the step ``at`` on."""

    def __init__(self, at: int, **options: Any) -> None:
        super().__init__(**options)
        self.at, self.steps = at, 0

    def forward(self, x: Tensor) -> Tensor:
        self.steps += self.training
        logits = super().forward(x)
        return logits + 0 * torch.sqrt(0 * logits.sum()) if self.steps >= self.at else logits


DATASETS.register_module("Failing", module=Failing)
MODELS.register_module("BadGradient", module=BadGradient)
