"""What a training step costs, without running it: operations and activations, from the computation on the meta device.

The code that trains is the code that is counted: torch counts the operations of forward and backward pass, and every
tensor that autograd keeps in between is weighed. Attention counts as the fused kernels of GPUs compute it, which keep
no scores and compute them again in the backward pass.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils.checkpoint import checkpoint

from frozenllm.core.block import LLMBlock
from frozenllm.core.flops import count_flops
from frozenllm.core.layer import FrozenLLMLayer
from frozenllm.core.plan import Problem
from frozenllm.core.record import BlockRecord
from frozenllm.core.spec import BlockSpec


@dataclass(frozen=True)
class HostShape:
    """A transformer encoder in front of the layer.

    Attributes:
        dim: Width.
        heads: Heads.
        depth: Layers.
        tokens: Tokens of a sample.
        patch: Numbers in a patch.
        classes: Outputs of the head.
        reads_all: Whether the head reads every token (a mean) or the first alone.
    """

    dim: int
    heads: int
    depth: int
    tokens: int
    patch: int
    classes: int
    reads_all: bool = False


HOSTS = {
    "vit-t": HostShape(192, 3, 12, 197, 3 * 16 * 16, 1000),
    "vit-s": HostShape(384, 6, 12, 197, 3 * 16 * 16, 1000),
    "vit-b": HostShape(768, 12, 12, 197, 3 * 16 * 16, 1000),
    "videomae-s": HostShape(384, 6, 12, 1568, 2 * 3 * 16 * 16, 174, reads_all=True),
    "videomae-b": HostShape(768, 12, 12, 1568, 2 * 3 * 16 * 16, 174, reads_all=True),
}
"""Vision transformers of 224 pixels, and VideoMAE's of 16 frames (docs/vision2d.md, docs/video.md)."""


def _llama(hidden: int, heads: int, kv_heads: int, intermediate: int) -> BlockSpec:
    return BlockSpec(
        hidden_size=hidden,
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=128,
        intermediate_size=intermediate,
    )


LLMS = {
    "llama-7b": _llama(4096, 32, 32, 11008),
    "llama-13b": _llama(5120, 40, 40, 13824),
    "llama-70b": _llama(8192, 64, 8, 28672),
}
"""Blocks by the sizes in the models' config.json."""


@dataclass(frozen=True)
class StepCost:
    """Of one training step in one process.

    Attributes:
        flops: Operations, two for a multiplication and addition; forward and backward pass.
        kept: Bytes that autograd keeps between them; weights not counted.
    """

    flops: int
    kept: int


def meta_block(
    spec: BlockSpec, blocks: int = 1, dtype: torch.dtype = torch.float32, quantize: str | None = None
) -> LLMBlock:
    """A block with shapes and no numbers.

    Args:
        spec: Of every layer.
        blocks: How many layers.
        dtype: Data type to compute in.
        quantize: See `LLMBlock`.
    """
    record = BlockRecord(source="shapes alone", revision=None, layers=tuple(range(blocks)), dtype="none", sha256="")
    tensors = {name: torch.empty(shape, device="meta") for name, shape in spec.tensor_shapes().items()}
    return LLMBlock([spec] * blocks, [tensors] * blocks, {}, record, dtype=dtype, device="meta", quantize=quantize)


def block_bytes(block: nn.Module) -> int:
    """What a block's weights take in memory, in each process."""
    return sum(buffer.numel() * buffer.element_size() for buffer in block.buffers())


def trained(*modules: nn.Module) -> int:
    """Number of trained weights."""
    return sum(p.numel() for module in modules for p in module.parameters() if p.requires_grad)


def meta_host(shape: HostShape) -> nn.Sequential:
    """The host on the meta device: patch embedding, encoder, norm and head."""
    with torch.device("meta"):
        layers = [_EncoderLayer(shape.dim, shape.heads) for _ in range(shape.depth)]
        return nn.Sequential(
            nn.Linear(shape.patch, shape.dim), *layers, nn.LayerNorm(shape.dim), nn.Linear(shape.dim, shape.classes)
        )


class _EncoderLayer(nn.Module):
    """A vision transformer's, with fused attention."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.ffn = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim))

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, dim) -> (B, N, dim)."""
        parts = self.qkv(self.norm1(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(*parts.unbind(0))
        x = x + self.proj(attended.transpose(1, 2).flatten(2))
        return x + self.ffn(self.norm2(x))


def host_step(shape: HostShape, batch: int, dtype: torch.dtype) -> StepCost:
    """A step of the host alone.

    Args:
        shape: Its sizes.
        batch: Samples of a process.
        dtype: Of autocast.
    """
    host = meta_host(shape).to(dtype).train()
    embed, encoder, norm, head = host[0], host[1:-2], host[-2], host[-1]
    patches = torch.empty(batch, shape.tokens, shape.patch, device="meta", dtype=dtype)

    def forward() -> Tensor:
        with _FusedAttention():
            tokens = norm(encoder(embed(patches)))
        return head(tokens.mean(dim=1) if shape.reads_all else tokens[:, 0])

    return _step(forward, host, patches)


def layer_step(
    block: LLMBlock,
    dim: int,
    batch: int,
    tokens: int,
    readout: int | None,
    *,
    exact: str = "auto",
    recompute: bool = False,
    device: str = "cuda",
) -> StepCost:
    """A step of the frozen layer behind trained layers of a host.

    Args:
        block: From `meta_block`.
        dim: Width of the host.
        batch: Samples of a process.
        tokens: Tokens of a sample.
        readout: Tokens that the head reads; None for all.
        exact: ``"auto"`` (the shortcuts) or ``"dense"``.
        recompute: Whether activations are recomputed in the backward pass (``llm.checkpoint_activations``).
        device: Kind of device whose rules pick the shortcut (`frozenllm.core.plan`).
    """
    with torch.device("meta"):
        layer = _LayerElsewhere(dim, block, exact=exact).train()  # type: ignore[arg-type]
    layer.planned_for = device  # type: ignore[assignment]
    inputs = torch.empty(batch, tokens, dim, device="meta", dtype=block.dtype, requires_grad=True)
    rows = None if readout is None else torch.empty(readout, dtype=torch.long, device="meta")

    def compute() -> Tensor:
        with _FusedAttention():  # not around all: the backward pass that recomputes would leave it
            return layer._compute(inputs, None, rows)  # `layer(...)` asks for autocast, which meta does not have

    def forward() -> Tensor:
        return checkpoint(compute, use_reentrant=False, preserve_rng_state=False) if recompute else compute()

    return _step(forward, layer, inputs)


class _LayerElsewhere(FrozenLLMLayer):
    """Computes on the meta device what it would on another."""

    planned_for = "cuda"

    def _problem(self, *args: Any, **kwargs: Any) -> Problem:
        return replace(super()._problem(*args, **kwargs), device=self.planned_for)


def _step(forward: Callable[[], Tensor], model: nn.Module, inputs: Tensor) -> StepCost:
    weights = {_storage(t) for t in (*model.parameters(), *model.buffers())}
    kept = {_storage(inputs): inputs}

    def pack(tensor: Tensor) -> Tensor:
        if _storage(tensor) not in weights:
            kept[_storage(tensor)] = tensor
        return tensor

    def run() -> None:
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            output = forward()
        held.append(sum(t.untyped_storage().nbytes() for t in kept.values()))
        output.sum().backward()

    held: list[int] = []
    flops = count_flops(run)
    return StepCost(flops, held[0])


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


class _FusedAttention(TorchFunctionMode):
    """Attention as fused kernels do it; on the meta device, torch would take the plain formulas."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.scaled_dot_product_attention:
            return _Attention.apply(*args[:3])
        return func(*args, **(kwargs or {}))


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        out = (query @ key.transpose(-2, -1)) @ value
        sums = query.new_empty(query.shape[:-1], dtype=torch.float32)  # the logarithms of the softmax's denominators
        ctx.save_for_backward(query, key, value, out, sums)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        query, key, value, _, _ = ctx.saved_tensors
        scores = query @ key.transpose(-2, -1)
        grad_scores = grad @ value.transpose(-2, -1)
        return grad_scores @ key, grad_scores.transpose(-2, -1) @ query, scores.transpose(-2, -1) @ grad
