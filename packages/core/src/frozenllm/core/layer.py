"""`FrozenLLMLayer`: what a user inserts into an encoder (Pang et al., ICLR 2024, section 3).

adapter in (d -> D) -> one or more frozen decoder layers -> norm -> adapter out (D -> d). No residual around the whole,
no positions, bidirectional attention, a mask for padding only: the semantics of the official code.
"""

from __future__ import annotations

import copy
import operator
import warnings
import weakref
from collections.abc import Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from frozenllm.core.block import LLMBlock
from frozenllm.core.decoder import Attention, DecoderLayer, Positions
from frozenllm.core.plan import Problem, plan
from frozenllm.core.readout import AttentionInput, attend_readout, folded_input, gather_rows

OutputNorm = Literal["unit", "pretrained", "none"]
AdapterInit = Literal["default", "trunc_normal"]
Readout = slice | Sequence[int] | Tensor

EXPORT_BATCH = 8  # an exported program has one plan, made for this batch and exact for all: its own may be symbolic
_is_exporting = getattr(torch.compiler, "is_exporting", torch.compiler.is_compiling)  # new in torch 2.7

_CHOICES = {
    "output_norm": ("unit", "pretrained", "none"),
    "adapter_init": ("default", "trunc_normal"),
    "positions": ("none", "rotary"),
    "attention": ("bidirectional", "causal"),
    "exact": ("auto", "dense"),
}


class FrozenLLMLayer(nn.Module):
    """Frozen language-model layers between two trainable linear adapters.

    The layer computes in the block's dtype, whatever autocast says: load the block in bfloat16 to train in bfloat16.

    Args:
        dim: Width d of the tokens.
        block: What `load_block` returns.
        output_norm: Norm after the last layer: ``"unit"`` has gain 1 (the official code never loads the model's own),
            ``"pretrained"`` has the model's gain.
        adapter_init: ``"trunc_normal"`` (std 0.02; the official image code) or ``"default"`` (PyTorch's own for linear
            layers; the official video and point cloud code).
        positions: ``"rotary"`` keeps the language model's rotary positions.
        attention: ``"causal"`` keeps the language model's mask.
        trainable: Train the block too (the fine-tuned ablation, paper Table 6): a copy, the given one stays frozen.
        lora_rank: Train low-rank updates of this rank on all projections of the block, which itself stays frozen.
        lora_alpha: Scale of these updates, times the rank; the rank itself (scale 1) by default.
        exact: ``"auto"`` takes the exact shortcuts of `readout.py` where they pay, ``"dense"`` never.
        checkpoint_activations: Recompute the layer in the backward pass instead of storing its activations.

    Raises:
        ValueError: An option is unknown or does not fit the block.
    """

    def __init__(
        self,
        dim: int,
        block: LLMBlock,
        *,
        output_norm: OutputNorm = "unit",
        adapter_init: AdapterInit = "default",
        positions: Positions = "none",
        attention: Attention = "bidirectional",
        trainable: bool = False,
        lora_rank: int | None = None,
        lora_alpha: float | None = None,
        exact: Literal["auto", "dense"] = "auto",
        checkpoint_activations: bool = False,
    ) -> None:
        super().__init__()
        options = dict(
            output_norm=output_norm, adapter_init=adapter_init, positions=positions, attention=attention, exact=exact
        )
        for name, value in options.items():
            if value not in _CHOICES[name]:
                raise ValueError(f"{name} must be one of {', '.join(_CHOICES[name])}, not {value!r}.")
        if not isinstance(block, LLMBlock):
            raise ValueError(f"block must be an LLMBlock (see frozenllm.core.load_block), not {type(block).__name__}.")
        if dim < 1:
            raise ValueError(f"dim must be positive, not {dim}.")
        if output_norm == "pretrained" and not block.has_final_norm:
            raise ValueError(f'output_norm="pretrained", but {block.record.source} has no norm after its last layer.')
        if positions == "rotary" and any(spec.rotary_base is None for spec in block.specs):
            raise ValueError(f'positions="rotary", but {block.record.source} has no rotary positions.')
        if lora_rank is not None and trainable:
            raise ValueError("lora_rank trains updates of a frozen block: leave out trainable=True, or the rank.")
        if lora_alpha is not None and lora_rank is None:
            raise ValueError("lora_alpha needs a lora_rank.")
        self.dim = dim
        self.output_norm = output_norm
        self.adapter_init = adapter_init
        self.positions = positions
        self.attention = attention
        self.exact = exact
        self.checkpoint_activations = checkpoint_activations
        self.adapter_in = nn.Linear(dim, block.hidden_size, bias=False)
        if trainable and not block.trainable:
            block = copy.deepcopy(block).make_trainable()  # the caller's stays frozen: another layer may hold it
        self.block = block
        if lora_rank is not None:
            self.block = block.with_low_rank(lora_rank, lora_alpha)
        self.adapter_out = nn.Linear(block.hidden_size, dim, bias=False)
        self._folded: dict[str, Tensor] = {}
        self._folded_from: list[weakref.ref[Tensor]] = []
        self._folded_key: tuple[Any, ...] = ()
        self.reset_adapters()

    def reset_adapters(self) -> None:
        """Initialise both adapters anew."""
        initialize_adapters(self.adapter_in, self.adapter_out, self.adapter_init)

    def forward(self, tokens: Tensor, mask: Tensor | None = None, readout: Readout | None = None) -> Tensor:
        """Apply the layer.

        Args:
            tokens: (B, N, d).
            mask: (B, N) bool, False = padding: no token attends to padding. What comes out at padding is unspecified.
            readout: Tokens to return: a slice, indices (R,), or indices (B, R) for each sample. All others are read as
                context only, which costs a fraction. Equals ``layer(tokens, mask)[:, readout]``.

        Returns:
            (B, N, d), or (B, R, d) with ``readout``, in the dtype of ``tokens``.

        Raises:
            ValueError: A shape or dtype does not fit.
            RuntimeError: The block's weights were lost (`LLMBlock.require_loaded`).
        """
        if tokens.ndim != 3 or tokens.shape[-1] != self.dim:
            raise ValueError(f"tokens must have shape (batch, tokens, {self.dim}), got {tuple(tokens.shape)}.")
        if mask is not None and (mask.shape != tokens.shape[:2] or mask.dtype != torch.bool):
            raise ValueError(
                f"mask must be bool of shape {tuple(tokens.shape[:2])}, got {mask.dtype} of shape {tuple(mask.shape)}."
            )
        if not torch.compiler.is_compiling():
            self.block.require_loaded()
            self._warn_about_precision(tokens.device.type)
        rows = resolve_readout(readout, tokens)
        with torch.autocast(tokens.device.type, enabled=False):
            if self.checkpoint_activations and self.training and torch.is_grad_enabled():
                return checkpoint(self._compute, tokens, mask, rows, use_reentrant=False)
            return self._compute(tokens, mask, rows)

    def _compute(self, tokens: Tensor, mask: Tensor | None, rows: Tensor | None) -> Tensor:
        dtype = self.block.dtype
        if self.exact == "dense":
            h = F.linear(tokens.to(dtype), self.adapter_in.weight.to(dtype))
            h = gather_rows(self.block(h, mask, self.positions, self.attention), rows)
        else:
            layers = self.block.decoder_layers
            h = self._first(layers[0], tokens, mask, rows if len(layers) == 1 else None)
            for index, layer in enumerate(layers[1:], start=1):
                last = index == len(layers) - 1
                h = self._later(layer, h, mask, rows if last else None)
        h = self.block.apply_final_norm(h, self.output_norm)
        return F.linear(h, self.adapter_out.weight.to(dtype)).to(tokens.dtype)

    def _first(self, layer: DecoderLayer, tokens: Tensor, mask: Tensor | None, rows: Tensor | None) -> Tensor:
        """The first layer, whose input is only ``dim`` wide: fold, absorb, tail at the readout."""
        adapter, dtype = self.adapter_in.weight, self.block.dtype
        cache = self._cache()
        chosen = plan(self._problem(layer, tokens, rows, self.dim, cached=cache is not None))
        if not (chosen.absorb or chosen.fold_context):
            return self._later(layer, F.linear(tokens.to(dtype), adapter.to(dtype)), mask, rows)
        if rows is None or not chosen.gram:
            hidden = F.linear(tokens.to(dtype), adapter.to(dtype))
            read = gather_rows(hidden, rows)
        else:  # nothing D wide is made for tokens that are only context
            hidden = None
            read = F.linear(gather_rows(tokens, rows).to(dtype), adapter.to(dtype))
        for_norms = None if chosen.gram else hidden
        source = folded_input(layer, tokens, adapter.float(), for_norms, {} if cache is None else cache)
        normed = None if chosen.fold_queries else layer.attention_input(read)
        attended = attend_readout(source, normed, rows, mask, chosen, self.positions, self.attention)
        return layer.tail(read, attended)

    def _later(self, layer: DecoderLayer, h: Tensor, mask: Tensor | None, rows: Tensor | None) -> Tensor:
        """A layer whose input is as wide as the block: absorb and tail at the readout, where there is one."""
        if rows is None:
            return layer(h, mask, self.positions, self.attention)
        chosen = plan(self._problem(layer, h, rows, None, cached=False))
        normed = layer.attention_input(h)
        source = AttentionInput(layer, normed)
        read = gather_rows(normed, rows)
        attended = attend_readout(source, read, rows, mask, chosen, self.positions, self.attention)
        return layer.tail(gather_rows(h, rows), attended)

    def _problem(
        self, layer: DecoderLayer, x: Tensor, rows: Tensor | None, dim: int | None, *, cached: bool
    ) -> Problem:
        batch, length = x.shape[:2]
        if _is_exporting():
            batch = EXPORT_BATCH
        return Problem(
            spec=layer.spec,
            dim=dim,
            batch=batch,
            length=length,
            rows=length if rows is None else rows.shape[-1],
            dtype=self.block.dtype,
            device=x.device.type,
            cached=cached,
            can_absorb=self.positions == "none" and layer.spec.qk_norm == "none" and not layer.has_low_rank,
        )

    def _cache(self) -> dict[str, Tensor] | None:
        """Folded weights that outlive this call, or None where they change with every step."""
        if self.training or torch.compiler.is_compiling():
            return None
        weights = [self.adapter_in.weight, *self.block.decoder_layers[0].parameters()]
        if torch.is_grad_enabled() and any(w.requires_grad for w in weights):
            return None
        if any(w.is_inference() for w in weights):  # they do not tell when they are written to
            return None
        key: tuple[Any, ...] = tuple((w._version, w.dtype, w.device) for w in weights)
        key += (self.block.dtype, torch.is_inference_mode_enabled())  # inference tensors are of no use outside
        # References, not `id`: that of a tensor that is gone may be another one's.
        same = len(weights) == len(self._folded_from) and all(
            known() is w for known, w in zip(self._folded_from, weights, strict=True)
        )
        if not same or key != self._folded_key:
            self.clear_cache()
            self._folded_from, self._folded_key = [weakref.ref(w) for w in weights], key
        return self._folded

    def clear_cache(self) -> None:
        """Forget folded weights; needed only after writing to ``adapter_in.weight.data`` in eval mode."""
        self._folded, self._folded_from, self._folded_key = {}, [], ()

    def train(self, mode: bool = True) -> FrozenLLMLayer:
        """Set the mode; what comes out does not depend on it."""
        self.clear_cache()
        return super().train(mode)

    def _apply(self, fn: Any, recurse: bool = True) -> FrozenLLMLayer:
        self.clear_cache()
        return super()._apply(fn, recurse)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_folded": {}, "_folded_from": [], "_folded_key": ()}

    def _warn_about_precision(self, device: str) -> None:
        if torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device).itemsize < self.block.dtype.itemsize:
            wanted = torch.get_autocast_dtype(device)
            warnings.warn(
                f"The frozen block computes in {self.block.dtype} although autocast asks for {wanted}; "
                f"load it with dtype={wanted} to save time and memory.",
                stacklevel=3,
            )

    def extra_repr(self) -> str:
        """Shown by ``print(model)``."""
        return f"dim={self.dim}, output_norm={self.output_norm}, positions={self.positions}, attention={self.attention}"


def initialize_adapters(adapter_in: nn.Linear, adapter_out: nn.Linear, how: AdapterInit) -> None:
    """``"trunc_normal"`` (std 0.02), or ``"default"``: PyTorch's own for linear layers."""
    for adapter in (adapter_in, adapter_out):
        if how == "trunc_normal":
            nn.init.trunc_normal_(adapter.weight, std=0.02)
        else:
            adapter.reset_parameters()


def resolve_readout(readout: Readout | None, tokens: Tensor) -> Tensor | None:
    """Positions of the tokens to return, (R,) or (B, R); None for all."""
    if readout is None:
        return None
    batch, length = tokens.shape[:2]
    if not isinstance(readout, slice | list | tuple | Tensor):
        readout = torch.as_tensor(readout)  # a range, an array
    if isinstance(readout, slice):
        if readout.step is not None and readout.step < 1:
            raise ValueError(f"readout must be a slice with a positive step, not {readout.step}.")
        rows = torch.arange(length, device=tokens.device)[readout]
        if rows.shape[0] == length:
            return None
    elif isinstance(readout, Tensor):
        if readout.dtype == torch.bool or readout.is_floating_point() or readout.ndim not in (1, 2):
            raise ValueError(
                f"readout must hold integer positions (R,) or (batch, R), got {readout.dtype} "
                f"of shape {tuple(readout.shape)}."
            )
        if readout.ndim == 2 and readout.shape[0] != batch:
            raise ValueError(f"readout has {readout.shape[0]} rows for a batch of {batch}.")
        _check_range(readout, length)
        rows = readout.to(tokens.device, torch.long)
        rows = torch.where(rows < 0, rows + length, rows)
    else:
        positions = _positions(readout)
        if any(not -length <= i < length for i in positions):
            raise ValueError(f"readout {positions} is out of range for {length} tokens.")
        rows = torch.tensor([i % length for i in positions], dtype=torch.long, device=tokens.device)
    if rows.shape[-1] == 0:
        raise ValueError("readout selects no token.")
    return rows


def _positions(readout: Sequence[int]) -> list[int]:
    try:
        if any(isinstance(i, bool) for i in readout):  # a mask's True would be token 1
            raise TypeError
        return [operator.index(i) for i in readout]
    except TypeError:
        raise ValueError(
            f"readout must be a slice, positions, or a tensor of them (batch, R), not {readout!r}."
        ) from None


def _check_range(rows: Tensor, length: int) -> None:
    """Raise for positions on a CPU that are out of range: torch reads other memory there. A GPU asserts by itself."""
    if type(rows) is not Tensor or rows.device.type != "cpu" or torch.compiler.is_compiling() or not rows.numel():
        return
    low, high = rows.aminmax()
    if low < -length or high >= length:
        raise ValueError(f"readout holds positions from {int(low)} to {int(high)}, out of range for {length} tokens.")
