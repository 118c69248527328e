"""`load_block`, `save_block`, `reload_blocks`: block weights in and out."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from frozenllm.core.block import LLMBlock, llm_blocks
from frozenllm.core.packed import check_quantize
from frozenllm.core.record import BlockRecord, hash_tensors
from frozenllm.core.spec import BlockSpec
from frozenllm.core.weights.block_file import write_block_file
from frozenllm.core.weights.contents import BlockContents, cpu_only, pick_layers, read_contents
from frozenllm.core.weights.resolve import open_source
from frozenllm.core.weights.sources import LazyTensor, LazyTensors

_DTYPES = {
    "float32": torch.float32,
    "fp32": torch.float32,
    "bfloat16": torch.bfloat16,
    "bf16": torch.bfloat16,
    "float16": torch.float16,
    "fp16": torch.float16,
    "float64": torch.float64,
}
_RANDOM = "random:"  # sources of `ablations.random_block`, followed by the seed


def load_block(
    source: str | os.PathLike[str],
    layers: Sequence[int] | None = None,
    dtype: torch.dtype | str | None = None,
    device: torch.device | str | None = None,
    revision: str | None = None,
    num_heads: int | None = None,
    quantize: str | None = None,
) -> LLMBlock:
    """Read layers of a language model.

    Args:
        source: A folder in transformers' layout, a folder with Meta's ``consolidated.*.pth``, a block file, a
            GGUF file, a checkpoint of the official release, a repository on the hub, or ``"bundled"``.
        layers: Indices, negative ones from the end. None: the last layer of a model, all layers of a block
            file or an official checkpoint.
        dtype: What the block computes in; None means float32.
        device: Where the block goes; None means the CPU.
        revision: For hub repositories; ignored elsewhere, with a warning.
        num_heads: Query heads that the block must have. Only official checkpoints do not say; None means
            LLaMA-7B's 32 there.
        quantize: ``"int8"`` or ``"int4"`` stores the projections as integers, for memory; see ``docs/int8.md``.

    Returns:
        The frozen block. Its record hashes the stored bytes.

    Raises:
        ValueError: One sentence that names the file and the tensor: a source that does not exist, a layer out of
            range, tensors missing, of a wrong shape or not finite, a damaged file.
    """
    compute = parse_dtype(dtype) or torch.float32
    if not compute.is_floating_point:
        raise ValueError(f"A block computes in a floating point dtype, not {compute}.")
    check_quantize(quantize)
    place = _parse_device(device)
    contents = read_contents(open_source(source, revision, num_heads), layers, must_fit=compute)
    if num_heads is not None and contents.specs[0].num_heads != num_heads:
        raise ValueError(f"{source}: the block has {contents.specs[0].num_heads} heads, not {num_heads}.")
    with cpu_only():
        return LLMBlock(
            contents.specs,
            contents.tensors,
            contents.final_norm,
            contents.record,
            dtype=compute,
            device=place,
            quantize=quantize,
        )


def read_block(
    source: str | os.PathLike[str], layers: Sequence[int] | None = None, revision: str | None = None
) -> BlockContents:
    """Check and hash layers without building a module: for `save_block` and for looking at them.

    Args:
        source: As in `load_block`.
        layers: As in `load_block`.
        revision: As in `load_block`.

    Raises:
        ValueError: As `load_block`.
    """
    return read_contents(open_source(source, revision), layers)


def read_specs(
    source: str | os.PathLike[str], layers: Sequence[int] | None = None, revision: str | None = None
) -> tuple[BlockSpec, ...]:
    """What layers compute, from config and headers; no weights are read.

    Args:
        source: As in `load_block`.
        layers: As in `load_block`.
        revision: As in `load_block`.

    Returns:
        One spec per layer.

    Raises:
        ValueError: As `load_block`.
    """
    opened = open_source(source, revision)
    return tuple(opened.spec(layer) for layer in pick_layers(opened, layers))


def save_block(block: LLMBlock | BlockContents, path: str | os.PathLike[str]) -> BlockRecord:
    """Write a block file.

    Args:
        block: What `read_block` gave, which keeps the source's bytes; or a block. A block in a wider dtype than its
            source's is written in the source's, hash unchanged; where its values do not fit that dtype (it was
            narrowed, or trained), it is written as it is, under a hash of its own. Low-rank updates are added to the
            weights.
        path: The file, replaced in one step if it exists.

    Returns:
        The record that the file holds.

    Raises:
        ValueError: The path cannot be written.
        RuntimeError: The block lost its weights (`reload_blocks`).
    """
    contents = _contents_of(block) if isinstance(block, LLMBlock) else block
    write_block_file(contents, path)
    return contents.record


def reload_blocks(model: nn.Module) -> list[str]:
    """Fill every block that lost its weights again, from the source that its record names.

    Needed after a model was built on the meta device and given memory by ``to_empty``.

    Args:
        model: Any module with `LLMBlock`s inside; loaded blocks are left alone.

    Returns:
        Names of the blocks that were filled.

    Raises:
        ValueError: A source is gone, or now holds other weights.
    """
    filled = []
    for name, block in llm_blocks(model):
        if block.is_loaded:
            continue
        if block.record.source.startswith(_RANDOM):
            _refill_random(block)
        else:
            source = open_source(block.record.source, block.record.revision, block.specs[0].num_heads)
            contents = read_contents(source, block.record.layers)
            with cpu_only():
                block.fill(contents.tensors, contents.final_norm, contents.record)
        filled.append(name)
    return filled


def parse_dtype(dtype: torch.dtype | str | None) -> torch.dtype | None:
    """A floating point dtype by name; None and dtypes pass through.

    Raises:
        ValueError: The name is unknown.
    """
    if dtype is None or isinstance(dtype, torch.dtype):
        return dtype
    if str(dtype) not in _DTYPES:
        raise ValueError(f"Unknown dtype {dtype!r}; choose one of {', '.join(_DTYPES)}.")
    return _DTYPES[str(dtype)]


def _parse_device(device: torch.device | str | None) -> torch.device:
    try:
        return torch.device("cpu" if device is None else device)
    except RuntimeError as error:
        raise ValueError(f"Unknown device {device!r}: {str(error).splitlines()[0]}") from error


def _refill_random(block: LLMBlock) -> None:
    from frozenllm.core.ablations import random_block  # which imports the layer, which blocks do not need

    seed = int(block.record.source.removeprefix(_RANDOM))
    with cpu_only():
        again = random_block(block.specs[0], seed, len(block.specs))
        block.fill(again.canonical_tensors(), again.final_norm_tensors(), again.record)


def _contents_of(block: LLMBlock) -> BlockContents:
    block.require_loaded()
    layers = [layer.merged_tensors() for layer in block.decoder_layers]
    final_norm, record = block.final_norm_tensors(), block.record
    stored = _DTYPES.get(record.dtype, block.dtype)
    with cpu_only():
        narrow = [{name: t.cpu().to(stored) for name, t in layer.items()} for layer in layers]
        narrow_norm = {name: t.cpu().to(stored) for name, t in final_norm.items()}
        if hash_tensors(block.specs, narrow, narrow_norm) == record.sha256:
            layers, final_norm = narrow, narrow_norm
        else:
            digest = hash_tensors(block.specs, layers, final_norm)
            trained = block.trainable or any(layer.has_low_rank for layer in block.decoder_layers)
            source = f"{record.source} (trained)" if trained else record.source
            dtype = str(block.dtype).removeprefix("torch.")
            record = replace(record, source=source, dtype=dtype, sha256=digest)
    return BlockContents(
        block.specs, tuple(_in_memory(layer) for layer in layers), _in_memory(final_norm), record, "block in memory"
    )


def _in_memory(tensors: dict[str, Tensor]) -> LazyTensors:
    def reader(tensor: Tensor) -> Callable[[], Tensor]:
        return lambda: tensor.cpu()

    return LazyTensors(
        {name: LazyTensor("memory", name, tuple(t.shape), t.dtype, reader(t)) for name, t in tensors.items()}
    )
