"""The contents of a block before it becomes a module: specs, tensors that are read lazily, and the record."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from numbers import Integral

import torch
from torch import Tensor
from tqdm import tqdm

from frozenllm.core.record import BlockRecord, hash_tensors
from frozenllm.core.spec import BlockSpec
from frozenllm.core.weights.sources import BlockSource, LazyTensor, LazyTensors


@dataclass(frozen=True)
class BlockContents:
    """Layers of a language model, checked and hashed, not yet in memory.

    Attributes:
        specs: One per layer.
        tensors: One per layer; every access reads from the source.
        final_norm: The model's norm after its last layer, or empty.
        record: Where they come from and what they hash to.
        kind: The layout they were read from, in words.
    """

    specs: tuple[BlockSpec, ...]
    tensors: tuple[LazyTensors, ...]
    final_norm: LazyTensors
    record: BlockRecord
    kind: str

    @property
    def nbytes(self) -> int:
        """Stored size of the layers in bytes, the final norm not counted."""
        return sum(part.nbytes for layer in self.tensors for part in layer.parts.values())

    def cast(self, dtype: torch.dtype) -> BlockContents:
        """The same layers stored in another dtype, under a hash of their own.

        Raises:
            ValueError: A value does not fit into that dtype.
        """
        tensors = tuple(_cast(layer, dtype) for layer in self.tensors)
        final_norm = _cast(self.final_norm, dtype)
        digest = _hash(self.specs, tensors, final_norm)
        record = replace(self.record, dtype=str(dtype).removeprefix("torch."), sha256=digest)
        return replace(self, tensors=tensors, final_norm=final_norm, record=record)


def read_contents(
    source: BlockSource, layers: Sequence[int] | None, must_fit: torch.dtype | None = None
) -> BlockContents:
    """Describe, check and hash layers of a source.

    Every stored byte is read once, one tensor at a time: memory stays at one tensor.

    Args:
        source: An opened source.
        layers: Layers to take, as `pick_layers` understands them.
        must_fit: A dtype that every value must fit into, such as the one that a block computes in.

    Raises:
        ValueError: A layer is out of range; a tensor is missing, of a wrong shape or dtype, not finite, or too large.
    """
    chosen = pick_layers(source, layers)
    source = source.localize(chosen)
    specs = tuple(source.spec(layer) for layer in chosen)
    tensors = tuple(source.tensors(layer) for layer in chosen)
    final_norm = source.final_norm()
    digest = _hash(specs, tensors, final_norm, must_fit)
    source.verify(chosen, digest)
    dtype = _stored_dtype(tensors)
    record = BlockRecord(source.source, source.revision, chosen, dtype, digest)
    return BlockContents(specs, tensors, final_norm, record, source.kind)


def _stored_dtype(tensors: Sequence[LazyTensors]) -> str:
    """What the matrices are stored in; quantised files mix several formats."""
    matrices = [part for layer in tensors for part in layer.parts.values() if len(part.shape) == 2]
    if any(part.quantization for part in matrices):
        return "+".join(sorted({part.stored for part in matrices}))
    return tensors[0].parts["attn.q.weight"].stored


def pick_layers(source: BlockSource, layers: Sequence[int] | None) -> tuple[int, ...]:
    """Indices of the wanted layers in the language model.

    Args:
        source: An opened source.
        layers: Indices; negative ones count from the end of what the source holds. None: the last layer of a model,
            all layers of a block file.

    Raises:
        ValueError: An index is out of range or not an integer, or there is none.
    """
    if layers is None:
        return source.default_layers
    if isinstance(layers, int) and not isinstance(layers, bool):
        layers = (layers,)
    if isinstance(layers, str) or not layers:
        raise ValueError(f"layers must be a list of one or more integers, not {layers!r}.")
    held = source.layers
    chosen: list[int] = []
    for layer in layers:
        if not isinstance(layer, Integral) or isinstance(layer, bool):
            raise ValueError(f"layers must be integers, not {layer!r}.")
        layer = int(layer)
        if layer < 0 and -layer <= len(held):
            chosen.append(held[layer])
        elif layer in held:
            chosen.append(layer)
        else:
            raise ValueError(f"{source.source} has no layer {layer}: it holds {_ranges(held)} (or -1 to -{len(held)}).")
    return tuple(chosen)


def _ranges(layers: Sequence[int]) -> str:
    if list(layers) == list(range(layers[0], layers[-1] + 1)) and len(layers) > 1:
        return f"layers {layers[0]} to {layers[-1]}"
    return f"layer(s) {', '.join(map(str, layers))}"


def _hash(
    specs: Sequence[BlockSpec],
    tensors: Sequence[LazyTensors],
    final_norm: LazyTensors,
    must_fit: torch.dtype | None = None,
) -> str:
    """Hash and check all tensors in one pass over their bytes."""
    total = sum(part.nbytes for layer in (*tensors, final_norm) for part in layer.parts.values())
    progress = tqdm(total=total, desc="Reading block", unit="B", unit_scale=True, delay=1, leave=False, disable=None)
    with cpu_only(), progress as bar:
        checked = [_Checked(layer, bar, must_fit) for layer in tensors]
        return hash_tensors(specs, checked, _Checked(final_norm, bar, must_fit))


class _Checked(Mapping[str, Tensor]):
    """Lazy tensors that refuse values which are not finite, and report progress."""

    def __init__(self, tensors: LazyTensors, bar: tqdm, must_fit: torch.dtype | None) -> None:
        self._tensors, self._bar, self._must_fit = tensors, bar, must_fit

    def __getitem__(self, name: str) -> Tensor:
        tensor, part = self._tensors[name], self._tensors.parts[name]
        _require_finite(tensor, part, part.dtype)
        if self._must_fit is not None and torch.finfo(self._must_fit).max < torch.finfo(part.dtype).max:
            _require_finite(tensor, part, self._must_fit)
        self._bar.update(part.nbytes)
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)


def _require_finite(tensor: Tensor, part: LazyTensor, dtype: torch.dtype) -> None:
    # The extremes are NaN where any value is, and many times faster to get than isfinite over all.
    if all(torch.isfinite(extreme.to(dtype)) for extreme in torch.aminmax(tensor)):
        return
    fault = "not finite (NaN or infinity)" if dtype == tensor.dtype else f"too large for {dtype}"
    raise ValueError(f"{part.file}: tensor {part.name} holds values that are {fault}.")


def _cast(tensors: LazyTensors, dtype: torch.dtype) -> LazyTensors:
    def recast(name: str, part: LazyTensor) -> LazyTensor:
        def read() -> Tensor:
            tensor = tensors[name]
            _require_finite(tensor, part, dtype)
            return tensor.to(dtype)

        return replace(part, dtype=dtype, quantization=None, read=read)

    return LazyTensors({name: recast(name, part) for name, part in tensors.parts.items()})


@contextlib.contextmanager
def cpu_only() -> Iterator[None]:
    """Make tensors on the CPU and without gradients, also inside ``torch.device("meta")``."""
    with torch.device("cpu"), torch.no_grad():
        yield
