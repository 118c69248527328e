"""`analyse`: every activation of every tap, for all samples of a model with a frozen layer inside, in one call.

::

    from frozenllm.core.analysis import analyse

    analysis = analyse(model, images, grid=(14, 14))  # any model with a FrozenLLMLayer inside
    print(analysis.table(relevant))  # (images, 196) bool: which patches lie on the object
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from frozenllm.core.analysis.activations import class_attention, frequency, magnitude
from frozenllm.core.analysis.amplification import block_outputs, effective_rank
from frozenllm.core.analysis.attention import attention_of
from frozenllm.core.analysis.taps import LayerTaps, TappedLayer, tapped

TAPS = ("host", "adapter_in", "attention", "attention_residual", "ffn", "ffn_residual", "adapter_out")
"""In the order of the computation; `LayerTaps` says what each is."""
_STREAM = ("host", "adapter_in", "attention_residual", "ffn_residual", "adapter_out")  # those one after the other
_WEIGHTS = "attention_weights"


@dataclass
class Analysis:
    """What `analyse` found: S samples of N tokens.

    Attributes:
        activations: (kind, tap) -> (S, N), each sample from 0 to 1. Kinds are ``"magnitude"`` and ``"frequency"`` at
            every tap, and ``"attention"`` (paid by the class token) at ``"host"``, of the host's last block before the
            layer, and at ``"attention_weights"``, of the language-model block.
        strengths: Depth -> (S, N), magnitude as it is, in the order of the computation: the host's blocks by number
            (``"block 1"``), and the layer's stream by tap.
        ranks: Depth -> (S,), effective rank of the tokens without their mean.
        outputs: (S, C), what the model returned; None where that is not one row of numbers a sample.
        mask: (S, N) bool, False = padding, or None.
        grid: Rows and columns of the tokens, or None.
        notes: What was left out.
    """

    activations: dict[tuple[str, str], Tensor] = field(default_factory=dict)
    strengths: dict[str, Tensor] = field(default_factory=dict)
    ranks: dict[str, Tensor] = field(default_factory=dict)
    outputs: Tensor | None = None
    mask: Tensor | None = None
    grid: tuple[int, int] | None = None
    notes: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(next(iter(self.strengths.values())))

    def map(self, kind: str, tap: str) -> Tensor:
        """Activations of one kind at one tap: (S, rows, columns), or (S, N) without a grid.

        Raises:
            ValueError: There are none.
        """
        if (kind, tap) not in self.activations:
            known = ", ".join(f"{k} at {t}" for k, t in self.activations)
            raise ValueError(f"There is no {kind} at {tap}; there is {known}.")
        values = self.activations[kind, tap]
        return values if self.grid is None else values.unflatten(1, self.grid)

    def table(self, relevant: Tensor, counted: Tensor | None = None, ids: Sequence[str] | None = None) -> str:
        """The measures against true masks as text; arguments as for `frozenllm.core.analysis.findings.of_analysis`."""
        from frozenllm.core.analysis.findings import findings_table, of_analysis  # they read this module

        return findings_table(of_analysis(self, relevant, counted, ids))


@torch.no_grad()
def analyse(
    model: nn.Module,
    batches: Any,
    *,
    grid: tuple[int, int] | None = None,
    layer: str | None = None,
    blocks: Sequence[nn.Module] | None = None,
    host: nn.Module | None = None,
    ranks: bool = True,
) -> Analysis:
    """Run a model and keep what its tokens do around its frozen layer, and along its depth.

    The model computes what it always computes, in eval mode; its mode afterwards is that of before.

    Args:
        model: Any module with a `FrozenLLMLayer` inside. A host alone is analysed where the layer would stand.
        batches: One batch, or an iterable of them such as a `DataLoader`. A batch is a tensor, a tuple whose first
            item is one (labels are not read), or a mapping of the model's arguments.
        grid: Rows and columns of the patch tokens, which come last: tokens before them (class, registers) take no part.
            None takes all tokens.
        layer: Name of the layer, for a model that has several.
        blocks: The host's blocks, for the depth; None for ``model.blocks`` where there is such a thing (timm). Blocks
            that do not return (B, N, D) with the layer's N are left out.
        host: For a host alone, the module whose output would enter the layer; None for the last block.
        ranks: Whether to compute effective ranks (a singular value decomposition for every sample and depth).

    Raises:
        ValueError: There is no such layer, no host, no data, or the grid has more patches than there are tokens.
    """
    if blocks is None:
        found = getattr(model, "blocks", ())
        blocks = tuple(found) if isinstance(found, (nn.Sequential, nn.ModuleList)) else ()
    layers = {name: part for name, part in model.named_modules() if isinstance(part, TappedLayer)}
    blocks = tuple(block for block in blocks if not isinstance(block, TappedLayer))
    if not layers and host is None and not blocks:
        raise ValueError(f"{type(model).__name__} has no frozen layer and no blocks: name the module that is its host.")
    if layers and host is not None:
        raise ValueError("host= is for models without a frozen layer: here it is what enters the layer.")
    if layer is not None and layer not in layers:
        raise ValueError(f"There is no frozen layer {layer!r}; the model has {', '.join(layers) or 'none'}.")
    if len(layers) > 1 and layer is None:
        raise ValueError(f"The model has several frozen layers: choose one with layer=, of {', '.join(layers)}.")
    collected = _Collected(grid, ranks)
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    training = model.training
    model.eval()
    try:
        site = None
        for batch in _batches(batches):
            if site is None:
                name = layer if layer is not None else next(iter(layers), None)
                site = _find_site(model, name, blocks, host, batch, device)
            _analyse_batch(model, site, batch, device, collected)
    finally:
        model.train(training)
    return collected.finish()


@dataclass(frozen=True)
class _Site:
    """Where the layer stands: its name (None in a host alone), the host's blocks, those that run before the layer (by
    place, in order), and the module that the layer, or what would be in its place, follows."""

    name: str | None
    blocks: tuple[nn.Module, ...]
    before: tuple[int, ...]
    host: nn.Module | None


def _find_site(
    model: nn.Module,
    name: str | None,
    blocks: tuple[nn.Module, ...],
    host: nn.Module | None,
    batch: Any,
    device: torch.device,
) -> _Site:
    """Run the model once to see what comes before what."""
    before: list[tuple[int, ...]] = []
    with block_outputs(blocks) as depth:
        if name is not None:
            hook = model.get_submodule(name).register_forward_pre_hook(lambda *_: before.append(tuple(depth)))
        else:
            host = host if host is not None else blocks[-1]
            hook = host.register_forward_hook(lambda *_: before.append(tuple(depth)))
        try:
            _run(model, batch, device)
        finally:
            hook.remove()
    if not before:
        part = f"its frozen layer {name!r}" if name is not None else "the module that is named as its host"
        raise ValueError(f"{type(model).__name__} does not use {part} for these inputs.")
    if name is not None and before[0]:
        host = blocks[before[0][-1]]
    return _Site(name, blocks, before[0], host)


def _analyse_batch(model: nn.Module, site: _Site, batch: Any, device: torch.device, collected: _Collected) -> None:
    with ExitStack() as stack:
        depth = stack.enter_context(block_outputs(site.blocks))
        entering = stack.enter_context(block_outputs([site.host] if site.host is not None else []))
        attention = stack.enter_context(attention_of(site.host)) if site.host is not None else []
        taps: LayerTaps | None = None
        if site.name is not None:
            taps = stack.enter_context(tapped(model, attention_weights=True)).layers[site.name]
        output = _run(model, batch, device)
    weights = {"host": attention[-1]} if attention else {}
    if taps is None:
        held, mask = {"host": entering[0]}, None
    else:
        held, mask = {tap: taps[tap] for tap in TAPS if tap in taps.names}, taps["mask"]
        if _WEIGHTS in taps.names:
            weights[_WEIGHTS] = taps[_WEIGHTS]
    before = {f"block {place + 1}": depth[place] for place in site.before}
    after = {f"block {place + 1}": tokens for place, tokens in depth.items() if place not in site.before}
    if before and _same(next(reversed(before.values())), held["host"]):
        before.popitem()  # it is what enters the layer
    collected.add(
        held, {**before, **{tap: held[tap] for tap in _STREAM if tap in held}, **after}, weights, mask, output
    )


class _Collected:
    """Activations of batch after batch."""

    def __init__(self, grid: tuple[int, int] | None, ranks: bool) -> None:
        self.grid = grid
        self.with_ranks = ranks
        self.activations: dict[tuple[str, str], list[Tensor]] = {}
        self.strengths: dict[str, list[Tensor]] = {}
        self.ranks: dict[str, list[Tensor]] = {}
        self.outputs: list[Tensor] = []
        self.masks: list[Tensor] = []
        self.notes: list[str] = []

    def add(
        self,
        held: Mapping[str, Tensor],
        stream: Mapping[str, Tensor],
        weights: Mapping[str, Tensor],
        mask: Tensor | None,
        output: Any,
    ) -> None:
        count = held["host"].shape[1]
        patches = count if self.grid is None else self.grid[0] * self.grid[1]
        if patches > count:
            raise ValueError(f"The grid {self.grid} has {patches} patches, but the layer sees {count} tokens.")
        kept = None if mask is None else mask[:, count - patches :]
        for tap, tokens in held.items():
            for kind, of in (("magnitude", magnitude), ("frequency", frequency)):
                self._put(self.activations, (kind, tap), of(tokens[:, count - patches :], kept))
        for tap, probabilities in weights.items():
            # The class token is the first of those before the patches.
            if patches < count and probabilities.shape[2:] == (count, count):
                paid = class_attention(probabilities[..., count - patches :], kept)
                self._put(self.activations, ("attention", tap), paid)
        for depth, tokens in stream.items():
            if tokens.ndim != 3 or tokens.shape[1] != count:
                note = f"{depth} is left out: it returns {tuple(tokens.shape)}, not {count} tokens."
                self.notes += [note] if note not in self.notes else []
                continue
            tokens = tokens[:, count - patches :]
            self._put(self.strengths, depth, magnitude(tokens, kept, normalize=False))
            if self.with_ranks:
                self._put(self.ranks, depth, effective_rank(tokens, kept))
        if kept is not None:
            self.masks.append(kept.cpu())
        if isinstance(output, Tensor) and output.ndim == 2 and len(output) == len(held["host"]):
            self.outputs.append(output.float().cpu())

    def finish(self) -> Analysis:
        if not self.strengths:
            raise ValueError("There is no data to analyse: no batch came.")
        samples = sum(len(part) for part in next(iter(self.strengths.values())))
        outputs = torch.cat(self.outputs) if self.outputs else None
        return Analysis(
            {key: torch.cat(parts) for key, parts in self.activations.items()},
            {key: torch.cat(parts) for key, parts in self.strengths.items()},
            {key: torch.cat(parts) for key, parts in self.ranks.items()},
            outputs if outputs is not None and len(outputs) == samples else None,
            torch.cat(self.masks) if self.masks else None,
            self.grid,
            self.notes,
        )

    @staticmethod
    def _put(into: dict[Any, list[Tensor]], key: Any, value: Tensor) -> None:
        into.setdefault(key, []).append(value.float().cpu())


def _batches(batches: Any) -> Iterable[Any]:
    return [batches] if isinstance(batches, (Tensor, Mapping)) else batches


def _run(model: nn.Module, batch: Any, device: torch.device) -> Any:
    if isinstance(batch, Mapping):
        return model(**{k: v.to(device) if isinstance(v, Tensor) else v for k, v in batch.items()})
    if isinstance(batch, (tuple, list)):
        batch = batch[0]
    return model(batch.to(device))


def _same(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and torch.equal(a, b)
