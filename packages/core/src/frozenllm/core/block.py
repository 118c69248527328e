"""`LLMBlock`: one or more decoder layers of a language model, frozen by construction.

The weights are non-persistent buffers: no optimizer, EMA, weight decay, gradient bucket or checkpoint holds them. What
a checkpoint holds is the block's `BlockRecord`. A block whose bytes are not known to be the recorded ones (it passed
through the meta device, or somebody put other tensors in) refuses to run.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from frozenllm.core.decoder import Attention, DecoderLayer, Positions, copy_checked
from frozenllm.core.functional import normalize
from frozenllm.core.packed import check_quantize
from frozenllm.core.record import BlockRecord
from frozenllm.core.spec import BlockSpec

_probe_values = itertools.count(1)


class LLMBlock(nn.Module):
    """Consecutive decoder layers of a language model.

    Args:
        specs: One spec per layer, all of one width.
        tensors: Canonical name -> tensor for every layer (`BlockSpec.tensor_shapes`); read once, one at a time.
        final_norm: ``final_norm.weight`` (and ``.bias``), or empty.
        record: Where the tensors came from.
        dtype: Data type to compute in; None means float32, as the official code does.
        device: Where to put the weights; None means the CPU.
        quantize: ``"int8"`` stores projections as 8-bit integers with a scale per row, a quarter of float32's memory;
            ``"int4"`` as 4-bit integers with a scale per 32 columns, less than a fifth (`frozenllm.core.packed`).

    Raises:
        ValueError: A tensor is missing or has another shape than the spec says, or ``quantize`` is unknown.
    """

    def __init__(
        self,
        specs: Sequence[BlockSpec],
        tensors: Sequence[Mapping[str, Tensor]],
        final_norm: Mapping[str, Tensor],
        record: BlockRecord,
        *,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        quantize: str | None = None,
    ) -> None:
        super().__init__()
        if not specs or len(specs) != len(tensors):
            raise ValueError(f"A block needs one spec per layer, got {len(specs)} spec(s) for {len(tensors)} layer(s).")
        if len({spec.hidden_size for spec in specs}) > 1:
            raise ValueError("All layers of a block must have the same width.")
        dtype = dtype or torch.float32
        check_quantize(quantize)
        if not dtype.is_floating_point:
            raise ValueError(f"A block's dtype must be a floating point type, not {dtype}.")
        # Explicit, since a model may be built inside `torch.device("meta")`.
        device = torch.device(device if device is not None else "cpu")
        self.record = record
        self.layers = nn.ModuleList(DecoderLayer(spec, dtype, device, quantize) for spec in specs)
        for name in specs[-1].final_norm_shapes() if final_norm else ():
            empty = torch.empty(self.hidden_size, dtype=dtype, device=device)
            self.register_buffer(name.replace(".", "_"), empty, persistent=False)
        self._verified: list[Tensor] = []
        self._register_state_dict_hook(_write_record)
        self._copy_in(tensors, final_norm)

    @property
    def decoder_layers(self) -> list[DecoderLayer]:
        """The layers, in order."""
        return cast("list[DecoderLayer]", list(self.layers))

    @property
    def specs(self) -> tuple[BlockSpec, ...]:
        """The spec of every layer."""
        return tuple(layer.spec for layer in self.decoder_layers)

    @property
    def hidden_size(self) -> int:
        """Width D of the residual stream."""
        return self.decoder_layers[0].spec.hidden_size

    @property
    def dtype(self) -> torch.dtype:
        """Data type that the block computes in; that of the weights, unless they are stored as integers."""
        return self.decoder_layers[0].dtype

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.decoder_layers[0].qkv_weight.device

    @property
    def trainable(self) -> bool:
        """Whether the weights are parameters (`make_trainable`)."""
        return "qkv_weight" in self.decoder_layers[0]._parameters

    @property
    def has_final_norm(self) -> bool:
        """Whether the source gave the model's norm after its last block."""
        return hasattr(self, "final_norm_weight")

    @property
    def is_loaded(self) -> bool:
        """Whether the weights in memory are the recorded ones."""
        if self.trainable:
            return True
        verified = self._verified
        return bool(verified) and all(a is b for a, b in zip(self.buffers(), verified, strict=True))

    def num_parameters(self) -> int:
        """Number of weights in all layers, the final norm not counted."""
        return sum(spec.num_parameters() for spec in self.specs)

    def canonical_tensors(self) -> list[dict[str, Tensor]]:
        """Canonical name -> view of the weights, for every layer."""
        return [layer.canonical_tensors() for layer in self.decoder_layers]

    def final_norm_tensors(self) -> dict[str, Tensor]:
        """``final_norm.weight`` (and ``.bias``), or empty."""
        names = self.specs[-1].final_norm_shapes() if self.has_final_norm else ()
        return {name: getattr(self, name.replace(".", "_")) for name in names}

    def fill(
        self, tensors: Sequence[Mapping[str, Tensor]], final_norm: Mapping[str, Tensor], record: BlockRecord
    ) -> None:
        """Read the weights in again, after they were lost on the meta device.

        Args:
            tensors: As given to the constructor.
            final_norm: As given to the constructor.
            record: Record of what was read now; its hash must be that of this block's record.

        Raises:
            ValueError: The source now holds other weights.
        """
        if record.sha256 != self.record.sha256:
            raise ValueError(
                f"The block was made from {self.record.describe()}, but the source now gives {record.describe()}."
            )
        if self.device.type == "meta":
            # Low-rank updates may have their values already, from a checkpoint.
            super()._apply(lambda t: torch.empty_like(t, device="cpu") if t.is_meta else t)
        self._copy_in(tensors, final_norm)

    def make_trainable(self) -> LLMBlock:
        """Turn the weights into parameters (the fine-tuned ablation, paper Table 6); returns the block."""
        if not self.trainable:
            self.require_loaded()
            for layer in self.decoder_layers:
                layer.make_trainable()
            self._verified = []
        return self

    def with_low_rank(self, rank: int, alpha: float | None = None) -> LLMBlock:
        """A copy that shares the frozen weights, with a trainable low-rank update on every projection.

        Args:
            rank: Rank of each update.
            alpha: The updates' scale is ``alpha / rank``; 1 by default.
        """
        block = copy.deepcopy(self)
        for layer in block.decoder_layers:
            layer.add_low_rank(rank, alpha)
        if any(p.is_meta for p in block.parameters()):  # a model being built on the meta device, its block elsewhere
            return block
        return block.to(self.device)

    def require_loaded(self) -> None:
        """Raise where the weights in memory are not known to be the recorded ones."""
        if not self.is_loaded:
            raise RuntimeError(
                f"The language-model block ({self.record.describe()}) lost its weights, because the model was built on "
                "the meta device or its buffers were replaced: call frozenllm.core.reload_blocks(model) first."
            )

    def apply_final_norm(self, h: Tensor, mode: str) -> Tensor:
        """The norm after the last layer: ``"unit"`` (gain 1, bias 0), ``"pretrained"``, or ``"none"``."""
        if mode == "none":
            return h
        weight = getattr(self, "final_norm_weight", None) if mode == "pretrained" else None
        bias = getattr(self, "final_norm_bias", None) if mode == "pretrained" else None
        return normalize(h, weight, bias, self.specs[-1])

    def forward(
        self,
        h: Tensor,
        mask: Tensor | None = None,
        positions: Positions = "none",
        attention: Attention = "bidirectional",
    ) -> Tensor:
        """Apply all layers.

        Args:
            h: (B, N, D) in the block's dtype.
            mask: (B, N) bool, False = padding.
            positions: ``"rotary"`` gives the language model's own positions.
            attention: ``"causal"`` gives the language model's own mask.

        Returns:
            (B, N, D), before the final norm.
        """
        if not torch.compiler.is_compiling():
            self.require_loaded()
        for layer in self.decoder_layers:
            h = layer(h, mask, positions, attention)
        return h

    def get_extra_state(self) -> Tensor:
        """The record, as the state dict holds it."""
        return self.record.to_tensor()

    def set_extra_state(self, state: Tensor) -> None:
        """Verify that a checkpoint was made with this block.

        Raises:
            ValueError: It was made with another one.
        """
        record = BlockRecord.from_tensor(state)
        if not self.trainable and record.sha256 != self.record.sha256:
            raise ValueError(
                f"The checkpoint was made with the block {record.describe()}, but this model holds "
                f"{self.record.describe()}."
            )

    def extra_repr(self) -> str:
        """Shown by ``print(model)``."""
        kind = "trainable" if self.trainable else "frozen"
        return f"{self.record.describe()}, {kind}, {self.num_parameters():,} weights in {self.dtype}"

    def _copy_in(self, tensors: Sequence[Mapping[str, Tensor]], final_norm: Mapping[str, Tensor]) -> None:
        for layer, source in zip(self.decoder_layers, tensors, strict=True):
            layer.fill(source)
        for name, tensor in self.final_norm_tensors().items():
            copy_checked(tensor, final_norm, name)
        self._mark_verified()

    def _mark_verified(self) -> None:
        self._verified = [] if self.trainable else list(self.buffers())

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> LLMBlock:
        """Moves and casts keep the block loaded; whatever does not carry the values over unloads it."""
        was_loaded = self.is_loaded and self.device.type != "meta"
        super()._apply(fn, recurse)
        carried = was_loaded and self.device.type != "meta" and _carries_values(fn, self.dtype)
        if carried:
            self._mark_verified()
        else:
            self._verified = []
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> LLMBlock:
        """Copies (EMA, for one) share the frozen weights' memory."""
        memo.update({id(buffer): buffer for buffer in self.buffers()})
        clone = self.__class__.__new__(self.__class__)
        memo[id(self)] = clone
        clone.__dict__.update({key: copy.deepcopy(value, memo) for key, value in self.__dict__.items()})
        return clone


def llm_blocks(model: nn.Module) -> Iterator[tuple[str, LLMBlock]]:
    """Name and module of every language-model block inside a model."""
    for name, module in model.named_modules():
        if isinstance(module, LLMBlock):
            yield name, module


def ignore_blocks_in_ddp(model: nn.Module) -> None:
    """Keep DistributedDataParallel from broadcasting frozen blocks (0.4-0.8 GB every step at LLaMA-7B's size).

    Call it on the very module that is then wrapped: DDP reads the list of names from there.
    """
    names = [
        f"{prefix}.{name}" if prefix else name
        for prefix, block in llm_blocks(model)
        for name, _ in block.named_buffers()
    ]
    already = list(getattr(model, "_ddp_params_and_buffers_to_ignore", []))
    model._ddp_params_and_buffers_to_ignore = already + [name for name in names if name not in already]  # type: ignore


def _carries_values(fn: Callable[[Tensor], Tensor], dtype: torch.dtype) -> bool:
    """Whether a function given to `nn.Module._apply` keeps values (``to``, ``half``) or not (``to_empty``)."""
    value = float(next(_probe_values) % 128 + 1)  # exact in every floating point type, new on every call
    probe = torch.full((16,), value, dtype=dtype, device="cpu")
    result = fn(probe)
    return result.device.type != "meta" and bool((result.cpu().float() == value).all())


def _write_record(module: LLMBlock, state_dict: dict[str, Any], prefix: str, _metadata: Any) -> None:
    # mmengine collects state dicts on its own: it skips extra state, but runs these hooks.
    state_dict[f"{prefix}_extra_state"] = module.get_extra_state()
