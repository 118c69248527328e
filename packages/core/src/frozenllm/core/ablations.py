"""What may stand in the place of the pretrained block: the controls of the paper, and the one that it lacks."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from frozenllm.core.block import LLMBlock
from frozenllm.core.layer import AdapterInit, Readout, initialize_adapters, resolve_readout
from frozenllm.core.readout import gather_rows
from frozenllm.core.record import BlockRecord, hash_tensors
from frozenllm.core.spec import BlockSpec


def random_block(
    spec: BlockSpec,
    seed: int = 0,
    num_blocks: int = 1,
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> LLMBlock:
    """A block of the given shape with random weights: the same for the same seed, on every machine.

    Frozen, it is the control that the paper lacks; trained (``trainable=True``) it is the paper's Table B. Linear
    weights are normal with variance ``1 / in_features``, which keeps the scale of what passes through at any width and
    at 4096 is close to the 0.02 that LLaMA itself starts from; norms have gain 1 and bias 0, other biases are 0.

    Args:
        spec: Shape of one layer.
        seed: Seed of the weights.
        num_blocks: Number of layers.
        dtype: Data type to compute in, float32 by default.
        device: Where to put the weights, the CPU by default.
    """
    if num_blocks < 1:
        raise ValueError(f"num_blocks must be positive, not {num_blocks}.")
    generator = torch.Generator(device="cpu").manual_seed(seed)
    layers = [_random_layer(spec, generator) for _ in range(num_blocks)]
    final_norm = {name: _constant(name, shape, spec) for name, shape in spec.final_norm_shapes().items()}
    specs = [spec] * num_blocks
    record = BlockRecord(
        source=f"random:{seed}",
        revision=None,
        layers=tuple(range(num_blocks)),
        dtype="float32",
        sha256=hash_tensors(specs, layers, final_norm),
    )
    return LLMBlock(specs, layers, final_norm, record, dtype=dtype, device=device)


def _random_layer(spec: BlockSpec, generator: torch.Generator) -> dict[str, Tensor]:
    tensors = {}
    for name, shape in spec.tensor_shapes().items():
        if len(shape) == 1:
            tensors[name] = _constant(name, shape, spec)
        else:
            values = torch.randn(shape, generator=generator, dtype=torch.float32, device="cpu")
            tensors[name] = values.mul_(shape[1] ** -0.5)
    return tensors


def _constant(name: str, shape: tuple[int, ...], spec: BlockSpec) -> Tensor:
    is_gain = name.endswith("norm.weight")
    return torch.full(shape, 1.0 - spec.norm_offset if is_gain else 0.0, device="cpu")


class MLPLayer(nn.Module):
    """Adapters without a block (``ViT-S-MLP``, paper Table 6): linear, GELU, LayerNorm, linear.

    The paper names the parts, not their order or the norm's width; this order normalises what the second adapter reads,
    as the block's own last norm does.

    Args:
        dim: Width d of the tokens.
        hidden_size: Width between the adapters; the block's, for as many trainable weights.
        adapter_init: See `FrozenLLMLayer`.
    """

    def __init__(self, dim: int, hidden_size: int, *, adapter_init: AdapterInit = "default") -> None:
        super().__init__()
        if adapter_init not in ("default", "trunc_normal"):
            raise ValueError(f"adapter_init must be default or trunc_normal, not {adapter_init!r}.")
        self.adapter_init = adapter_init
        self.adapter_in = nn.Linear(dim, hidden_size, bias=False)
        self.norm = nn.LayerNorm(hidden_size)
        self.adapter_out = nn.Linear(hidden_size, dim, bias=False)
        self.reset_adapters()

    def reset_adapters(self) -> None:
        """Initialise both adapters anew."""
        initialize_adapters(self.adapter_in, self.adapter_out, self.adapter_init)

    def forward(self, tokens: Tensor, mask: Tensor | None = None, readout: Readout | None = None) -> Tensor:
        """As `FrozenLLMLayer.forward`; tokens do not see each other, so ``mask`` has no effect."""
        tokens = gather_rows(tokens, resolve_readout(readout, tokens))
        return self.adapter_out(self.norm(F.gelu(self.adapter_in(tokens))))
