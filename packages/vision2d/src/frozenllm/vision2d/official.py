"""Checkpoints from elsewhere: those of the official release, and plain vision transformers as hosts.

An official checkpoint (``image_classification`` of the release) holds a timm-style vision transformer, the block as
``llama.*`` and the adapters as ``llama_dim_mapper{1,2}`` under the key ``model``, beside ``model_ema``, the optimizer
and an ``argparse.Namespace``. The figures of the paper are those of ``model``.
"""

from __future__ import annotations

import logging
import math
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from timm.models.vision_transformer import VisionTransformer, checkpoint_filter_fn
from torch import Tensor, nn

from frozenllm.core import FrozenLLMLayer, LLMBlock, load_block
from frozenllm.core.weights.files import SafetensorsFile
from frozenllm.core.weights.official import OfficialFile
from frozenllm.vision2d.model import FrozenLLMViT

__all__ = ["load_host_checkpoint", "load_official_checkpoint"]

_logger = logging.getLogger(__name__)

_HEAD_WIDTH = 64  # of every DeiT and of the paper's hosts
_ADAPTERS = {"llama_dim_mapper1.weight": "llm.adapter_in.weight", "llama_dim_mapper2.weight": "llm.adapter_out.weight"}


def load_official_checkpoint(
    path: str | os.PathLike[str], *, num_heads: int | None = None, llm_heads: int = 32
) -> FrozenLLMViT:
    """Read an image model of the official release, with or without its language-model block.

    All widths are read off the tensors. The block's record names the file, so that `frozenllm.core.reload_blocks` can
    fill the block again. The official norm after the block has gain 1; a file in which it has not is honoured
    (``output_norm="pretrained"``).

    Args:
        path: The ``.pth`` file. Nothing in it is run.
        num_heads: Attention heads of the host; None for heads 64 wide.
        llm_heads: Attention heads of the block; LLaMA-7B, the only one released, has 32.

    Returns:
        The model in eval mode, on the CPU, in float32.

    Raises:
        ValueError: One sentence: the file is missing or damaged, holds Python objects that could run code, or its
            tensors are not those of such a model.
    """
    path = Path(path).expanduser()
    stored = OfficialFile(path).tensors
    block_names = {name for name in stored if name.startswith("llama.")}
    state = {_ADAPTERS.get(name, name): tensor for name, tensor in stored.items() if name not in block_names}
    settings = _host_settings(state, num_heads, path)
    layer = None
    if block_names or any(name in stored for name in _ADAPTERS):
        _refuse_other_names(block_names, path)
        absent = [name for name in _ADAPTERS if name not in stored]
        if absent:
            raise ValueError(f"{path}: holds a language-model block, but no {' and no '.join(absent)}.")
        block = load_block(path, num_heads=llm_heads)
        norm = "unit" if _is_unit(block) else "pretrained"
        layer = FrozenLLMLayer(settings["embed_dim"], block, output_norm=norm, adapter_init="trunc_normal")
    model = FrozenLLMViT(**settings, llm=layer)
    _load(model, state, path, left_out={"llm.block._extra_state"})
    return model.eval()


def load_host_checkpoint(
    model: FrozenLLMViT, source: str | os.PathLike[str] | nn.Module, *, head: bool = True
) -> list[str]:
    """Start a host from the weights of a plain vision transformer: timm's, DeiT's, or what timm can convert.

    Position embeddings of another resolution are resampled, as timm does; anything else that does not fit is refused.

    Args:
        model: The model with the frozen layer; its host is overwritten.
        source: A ``.safetensors``, ``.pth`` or ``.bin`` file (the model itself, or under ``model`` or ``state_dict``),
            or a model, such as ``timm.create_model("deit_small_patch16_224", pretrained=True)``.
        head: Whether to take the classification head too; False keeps the model's own.

    Returns:
        Names of the weights that were not in the source and keep their values: those of the frozen layer (its
        adapters), and of the head where it was left out. They are logged as well.

    Raises:
        ValueError: The file cannot be read, or it is not the same host.
    """
    where, state = _read_host(source)
    patch, ours = state.get("patch_embed.proj.weight"), model.patch_embed.proj.weight
    if patch is not None and patch.ndim == 4 and patch.shape[-2:] != ours.shape[-2:]:
        raise ValueError(
            f"{where}: its patches have {patch.shape[-2]} x {patch.shape[-1]} pixels, the model's "
            f"{ours.shape[-2]} x {ours.shape[-1]}."
        )
    grid = state.get("pos_embed")
    state = checkpoint_filter_fn(state, model)
    if grid is not None and grid.shape != state["pos_embed"].shape:
        _logger.info("%s: position embeddings resampled from %s tokens.", where, grid.shape[1])
    if not head:
        state = {name: tensor for name, tensor in state.items() if not name.startswith("head.")}
    foreign = [name for name in state if name.startswith(("llm.", "llama"))]
    if foreign:
        raise ValueError(
            f"{where}: has a frozen layer of its own ({foreign[0]}); read it with load_official_checkpoint or "
            "load_state_dict."
        )
    kept = {name for name in model.state_dict() if name.startswith("llm.") or (not head and name.startswith("head."))}
    hint = "" if head else " (the head was left out)"
    _load(model, state, where, left_out=kept, hint=hint or "; head=False keeps the model's own head")
    names = sorted(name for name, _ in model.named_parameters() if name in kept)
    _logger.info("%s: read into the host; not in it, so kept as they are: %s.", where, ", ".join(names) or "none")
    return names


def _host_settings(state: Mapping[str, Tensor], num_heads: int | None, path: Path) -> dict[str, Any]:
    """Arguments of timm's `VisionTransformer`, read off its tensors."""

    def shape(name: str, ndim: int) -> tuple[int, ...]:
        if name not in state:
            raise ValueError(f"{path}: is not a vision transformer of the official release: {name} is missing.")
        if state[name].ndim != ndim:
            raise ValueError(
                f"{path}: {name} has the shape {tuple(state[name].shape)}, which should be {ndim}-dimensional."
            )
        return tuple(state[name].shape)

    width, channels, height, patch = shape("patch_embed.proj.weight", 4)
    tokens = shape("pos_embed", 3)[1] - 1  # one class token
    side = math.isqrt(max(tokens, 0))
    if height != patch or side < 1 or side * side != tokens:
        raise ValueError(f"{path}: {tokens} patches of {height} x {patch} pixels do not make a square image.")
    depth = len({match[1] for name in state if (match := re.match(r"blocks\.(\d+)\.", name))})
    if num_heads is None:
        if width % _HEAD_WIDTH:
            raise ValueError(f"{path}: a host {width} wide has no heads of {_HEAD_WIDTH}; give num_heads.")
        num_heads = width // _HEAD_WIDTH
    if num_heads < 1 or width % num_heads:
        raise ValueError(f"{path}: a host {width} wide cannot have {num_heads} heads.")
    return {
        "img_size": side * patch,
        "patch_size": patch,
        "in_chans": channels,
        "embed_dim": width,
        "depth": depth,
        "num_heads": num_heads,
        "mlp_ratio": shape("blocks.0.mlp.fc1.weight", 2)[0] / width,
        "qkv_bias": "blocks.0.attn.qkv.bias" in state,
        "num_classes": shape("head.weight", 2)[0] if "head.weight" in state else 0,
    }


def _refuse_other_names(names: Iterable[str], path: Path) -> None:
    other = sorted(
        n for n in names if not n.startswith("llama.layers.") and n != "llama.norm.weight" and "rope" not in n
    )
    if other:
        raise ValueError(f"{path}: also holds {', '.join(other[:3])}, which the official model does not have.")


def _is_unit(block: LLMBlock) -> bool:
    return all(bool((tensor == 1).all()) for tensor in block.final_norm_tensors().values())


def _read_host(source: str | os.PathLike[str] | nn.Module) -> tuple[str, dict[str, Tensor]]:
    if isinstance(source, nn.Module):
        return type(source).__name__, dict(source.state_dict())
    path = Path(source).expanduser()
    if path.suffix == ".safetensors":
        file = SafetensorsFile(path)
        return str(path), {name: file.read(name) for name in file.names()}
    return str(path), dict(OfficialFile(path).tensors)


def _load(
    model: VisionTransformer, state: Mapping[str, Tensor], where: object, left_out: set[str], hint: str = ""
) -> None:
    """Copy a state dict in if it has exactly the model's tensors, ``left_out`` aside; else change nothing."""
    wanted = {name: t for name, t in model.state_dict().items() if name not in left_out}
    missing, extra = sorted(wanted.keys() - state.keys()), sorted(state.keys() - wanted.keys())
    wrong = [
        f"{name} {tuple(state[name].shape)} instead of {tuple(t.shape)}"
        for name, t in wanted.items()
        if name in state and state[name].shape != t.shape
    ]
    faults = [
        f"{what} {', '.join(names[:3])}{f' and {len(names) - 3} more' if len(names) > 3 else ''}"
        for what, names in (("missing", missing), ("unexpected", extra), ("of another shape", wrong))
        if names
    ]
    if faults:
        raise ValueError(f"{where}: does not fit the model: {'; '.join(faults)}{hint}.")
    with torch.no_grad():
        model.load_state_dict(dict(state), strict=False)
