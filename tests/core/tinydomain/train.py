"""What a domain's train.py is: registrations, and a main function."""

import os
import random
import signal
import sys
import time
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from frozenllm.core import build_llm_layer
from frozenllm.core.training import DATASETS, MODELS, TRANSFORMS, run_cli

CONFIG = "tinydomain.conf"


class Points(Dataset):
    """Noisy tokens of one of four classes; the augmentation draws from all three global generators."""

    def __init__(self, size: int, augment: bool = False, seed: int = 0, slow: float = 0.0) -> None:
        generator = torch.Generator().manual_seed(7)
        centres = torch.randn(4, 6, 8, generator=generator)
        generator.manual_seed(seed)
        self.targets = torch.arange(size) % 4
        self.inputs = centres[self.targets] + 0.8 * torch.randn(size, 6, 8, generator=generator)
        self.augment = augment
        self.slow = slow

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        time.sleep(self.slow)
        x = self.inputs[index]
        if self.augment:
            x = x + 0.1 * torch.randn_like(x) + 0.1 * float(np.random.randn()) + 0.1 * random.gauss(0, 1)
        return x, int(self.targets[index])


class Host(nn.Module):
    """Two residual layers with dropout, the frozen layer, and a head."""

    def __init__(self, dim: int = 16, dropout: float = 0.1, norm: str = "layer", llm: Any = None) -> None:
        super().__init__()
        self.patch_embed = nn.Linear(8, dim)
        self.pos_embed = nn.Parameter(torch.zeros(1, 6, dim))
        layers = (nn.Sequential(nn.Linear(dim, dim), nn.GELU(), nn.Dropout(dropout)) for _ in range(2))
        self.blocks = nn.ModuleList(layers)
        self.llm = build_llm_layer(dim, llm)
        self.norm = nn.LayerNorm(dim) if norm == "layer" else nn.BatchNorm1d(dim)
        self.head = nn.Linear(dim, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch_embed(x) + self.pos_embed
        for block in self.blocks:
            x = x + block(x)
        if self.llm is not None:
            x = self.llm(x)
        return self.head(self.norm(x.mean(1)))


class Tied(Host):
    """Its two layers share a weight."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.blocks[1][0].weight = self.blocks[0][0].weight


class Tampering(Host):
    """Writes into the frozen block in its first training step."""

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            with torch.no_grad():
                self.llm.block.layers[0].qkv_weight.view(-1)[3] += 1e-3
        return super().forward(x)


class Dying(Host):
    """Kills its own process in the training step that an environment variable names, once."""

    steps = 0

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            type(self).steps += 1
            if type(self).steps == int(os.environ.get("DIE_AT", 0)):
                os.kill(os.getpid(), signal.SIGKILL)
        return super().forward(x)


class Mix:
    """A batch transform: soft targets, mixed with a random weight."""

    def __call__(self, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        weight, soft = float(np.random.beta(1.0, 1.0)), nn.functional.one_hot(targets, 4).float()
        return weight * inputs + (1 - weight) * inputs.flip(0), weight * soft + (1 - weight) * soft.flip(0)


for kind in (Host, Tied, Tampering, Dying):
    MODELS.register_module(kind.__name__, module=kind)
DATASETS.register_module("Points", module=Points)
TRANSFORMS.register_module("Mix", module=Mix)


def main(argv: list[str] | None = None) -> None:
    """Run the command line."""
    run_cli(CONFIG, sys.argv[1:] if argv is None else argv)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
