"""`tapped`: the intermediate tokens of every frozen layer inside a model, by name, without a change to the model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn

from frozenllm.core import functional
from frozenllm.core.ablations import MLPLayer
from frozenllm.core.analysis.patching import replace, run_eagerly, watch
from frozenllm.core.decoder import DecoderLayer
from frozenllm.core.layer import FrozenLLMLayer, Readout, resolve_readout
from frozenllm.core.readout import gather_rows

TappedLayer = FrozenLLMLayer | MLPLayer


class LayerTaps:
    """What one frozen layer held in its last call, by name.

    ========================  ====================  =================================================================
    name                      shape                 what
    ========================  ====================  =================================================================
    ``host``                  (B, N, dim)           the tokens that enter the layer: the host's output
    ``adapter_in``            (B, N, D)             after the first adapter
    ``attention``             (B, N, D)             what the attention adds to the stream
    ``attention_residual``    (B, N, D)             the stream after that sum (normalised where the family does so)
    ``attention_weights``     (B, heads, N, N)      attention probabilities; only with ``attention_weights=True``
    ``ffn``                   (B, N, D)             what the feed-forward network adds to the stream
    ``ffn_residual``          (B, N, D)             the stream after that sum: the block's output, before the last norm
    ``adapter_out``           (B, N, dim)           all tokens that leave the layer, whatever the model reads of them
    ``mask``                  (B, N) bool, or None  False = padding, as the host gave it
    ========================  ====================  =================================================================

    With several blocks, the names from ``attention`` to ``ffn_residual`` are those of the last one, and
    ``blocks.0.attention`` those of the first. An MLP in the block's place has ``host``, ``adapter_in``,
    ``adapter_out`` and ``mask`` alone.
    """

    def __init__(self, layer: str) -> None:
        self.layer = layer
        self._held: dict[str, Tensor | None] = {}
        self._last = ""
        self._open = False

    def __getitem__(self, name: str) -> Tensor:
        """A tap by name; of ``mask``, which may be None, as well.

        Raises:
            ValueError: The model was not run, or the layer has no such tap.
        """
        if not self._held:
            raise ValueError(f"Nothing was tapped at {self.layer}: run the model inside `with tapped(model)` first.")
        for key in (name, f"{self._last}.{name}"):
            if key in self._held:
                return self._held[key]  # type: ignore[return-value]
        hint = ": ask for it with tapped(model, attention_weights=True)" if name.endswith("attention_weights") else ""
        raise ValueError(f"{self.layer} has no tap {name!r}{hint}; it has {', '.join(self.names)}.")

    @property
    def names(self) -> tuple[str, ...]:
        """The names that can be asked for, in the order of the computation; empty before the first call."""
        own = f"{self._last}."
        return tuple(key.removeprefix(own) if key.startswith(own) else key for key in self._held)

    def _start(self, host: Tensor, mask: Tensor | None, blocks: int) -> None:
        self._last = f"blocks.{blocks - 1}"
        self._held = {"mask": mask, "host": host}
        self._open = True

    def _put(self, name: str, value: Tensor) -> None:
        if self._open:  # two layers may share one block
            self._held[name] = value

    def _finish(self, output: Tensor) -> None:
        self._put("adapter_out", output)
        self._open = False


class Taps:
    """The taps of all frozen layers of a model.

    ``taps["host"]`` is short for the taps of the only layer; a model with several is asked by name, as in
    ``taps.layers["encoder.llm"]["host"]``.

    Attributes:
        layers: `LayerTaps` by the name of the module, "" where the model itself is the layer.
    """

    def __init__(self, layers: Mapping[str, LayerTaps]) -> None:
        self.layers = dict(layers)

    def __getitem__(self, name: str) -> Tensor:
        """A tap of the only layer; see `LayerTaps`.

        Raises:
            ValueError: There are several layers, or no such tap.
        """
        if len(self.layers) > 1:
            names = ", ".join(self.layers)
            raise ValueError(f"The model has several frozen layers ({names}): ask taps.layers[NAME][{name!r}].")
        return next(iter(self.layers.values()))[name]

    @property
    def names(self) -> tuple[str, ...]:
        """The names that the first layer can be asked for."""
        return next(iter(self.layers.values())).names


@contextmanager
def tapped(model: nn.Module, *, attention_weights: bool = False) -> Iterator[Taps]:
    """Record what every frozen layer inside a model holds, in every call until the end of the ``with`` block.

    The layer computes all tokens on its plain path meanwhile, and hands the model those that it asked for: the model's
    results are those of an untapped run up to rounding. Compiled models run eagerly. The taps outlive the block and
    hold the last call's tensors, which are part of the autograd graph: run the model under `torch.no_grad` unless the
    gradients are wanted.

    Args:
        model: Any module that is or holds a `FrozenLLMLayer` or an `MLPLayer`, at any depth, wrapped or not.
        attention_weights: Record the blocks' attention probabilities too, which takes heads x N x N numbers a sample.

    Raises:
        ValueError: The model holds no such layer.
    """
    layers = {name: module for name, module in model.named_modules() if isinstance(module, TappedLayer)}
    if not layers:
        raise ValueError(
            f"{type(model).__name__} has no frozen layer to tap: it holds neither a FrozenLLMLayer nor an MLPLayer."
        )
    taps = Taps({name: LayerTaps(name or type(model).__name__) for name in layers})
    with ExitStack() as stack:
        run_eagerly(stack)
        for name, layer in layers.items():
            _tap(layer, taps.layers[name], attention_weights, stack)
        yield taps


def _tap(layer: TappedLayer, taps: LayerTaps, attention_weights: bool, stack: ExitStack) -> None:
    plain = layer.forward

    def forward(tokens: Tensor, mask: Tensor | None = None, readout: Readout | None = None) -> Tensor:
        rows = resolve_readout(readout, tokens)
        taps._start(tokens, mask, len(layer.block.decoder_layers) if isinstance(layer, FrozenLLMLayer) else 0)
        output = plain(tokens, mask)
        taps._finish(output)
        return gather_rows(output, rows)

    replace(layer, "forward", forward, stack)
    if isinstance(layer, MLPLayer):
        watch(layer.adapter_in, "forward", lambda output, *_: taps._put("adapter_in", output), stack)
        return
    replace(layer, "exact", "dense", stack)
    replace(layer, "checkpoint_activations", False, stack)  # it would compute, and record, a second time
    for index, decoder in enumerate(layer.block.decoder_layers):
        _tap_block(decoder, taps, index, attention_weights, stack)


def _tap_block(decoder: DecoderLayer, taps: LayerTaps, index: int, weights: bool, stack: ExitStack) -> None:
    prefix = f"blocks.{index}"

    def record(name: str) -> Callable[..., None]:
        return lambda output, *_: taps._put(f"{prefix}.{name}", output)

    def enter(_output: Tensor, h: Tensor, *_: Any) -> None:
        if index == 0:
            taps._put("adapter_in", h)

    def attend(_output: Tensor, q: Tensor, k: Tensor, _v: Tensor, allowed: Tensor | None) -> None:
        taps._put(f"{prefix}.attention_weights", functional.attention_weights(q, k, allowed, decoder.spec))

    watch(decoder, "attention_input", enter, stack)
    if weights:
        watch(decoder, "attend", attend, stack)
    watch(decoder, "attention_update", record("attention"), stack)
    watch(decoder, "after_attention", record("attention_residual"), stack)
    watch(decoder, "ffn_update", record("ffn"), stack)
    watch(decoder, "tail", record("ffn_residual"), stack)
