"""What training takes of each process's memory, on one GPU or several; `frozenllm.core.cost` counts the activations."""

from __future__ import annotations

import math
from dataclasses import dataclass

ADAMW_BYTES = 8  # of a parameter: two moments in float32
PARAMETER_BYTES = 4  # trained weights are kept in float32, under autocast too


@dataclass(frozen=True)
class ProcessMemory:
    """Bytes in one process between forward and backward pass, where most is held.

    Attributes:
        block: The frozen block, whole in every process.
        weights: Trained weights (FSDP: this process's part, and the layer that is gathered).
        gradients: Of these; DDP keeps a second copy in its buckets.
        optimizer: AdamW's moments.
        activations: What autograd keeps.
        exchanged: Bytes that the process sends in a step, not memory.
    """

    block: int
    weights: int
    gradients: int
    optimizer: int
    activations: int
    exchanged: int

    @property
    def total(self) -> int:
        """All of them."""
        return self.block + self.weights + self.gradients + self.optimizer + self.activations


def process_memory(
    block: int, parameters: int, largest: int, activations: int, gpus: int, strategy: str
) -> ProcessMemory:
    """Memory of one of several processes.

    Args:
        block: Bytes of the frozen block.
        parameters: Trained weights of the model.
        largest: Those of its largest layer, which FSDP gathers as one.
        activations: Bytes that autograd keeps.
        gpus: Processes.
        strategy: ``"ddp"`` or ``"fsdp"``.
    """
    whole = PARAMETER_BYTES * parameters
    others = (gpus - 1) / gpus
    if strategy == "ddp":
        buckets = whole if gpus > 1 else 0
        # A ring of all-reduce sends every gradient twice, but for the process's own part.
        return ProcessMemory(
            block, whole, whole + buckets, ADAMW_BYTES * parameters, activations, round(2 * others * whole)
        )
    own = math.ceil(parameters / gpus)
    gathered = PARAMETER_BYTES * largest if gpus > 1 else 0
    # Weights are gathered for both passes, gradients scattered once.
    return ProcessMemory(
        block,
        PARAMETER_BYTES * own + gathered,
        PARAMETER_BYTES * own,
        ADAMW_BYTES * own,
        activations,
        round(3 * others * whole),
    )
