"""Checkpoints from elsewhere: those of the official release, and plain vision transformers as hosts.

An official checkpoint (``image_classification`` of the release) holds a timm-style vision transformer, the block as
``llama.*`` and the adapters as ``llama_dim_mapper{1,2}`` under the key ``model``, beside ``model_ema``, the optimizer
and an ``argparse.Namespace``. The figures of the paper are those of ``model``.
"""

from __future__ import annotations

import logging
import math
import os
from operator import attrgetter
from pathlib import Path
from typing import Any

from timm.layers import resample_abs_pos_embed
from timm.models.vision_transformer import checkpoint_filter_fn
from torch import Tensor, nn

from frozenllm.core.official import RECORD, OfficialModel, read_official
from frozenllm.core.state_dicts import kept_weights, load_exactly
from frozenllm.core.weights.files import SafetensorsFile
from frozenllm.core.weights.official import OfficialFile
from frozenllm.vision2d.model import FrozenLLMViT

__all__ = ["load_host_checkpoint", "load_official_checkpoint"]

_logger = logging.getLogger(__name__)


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
    stored = read_official(path, "a vision transformer")
    settings = _host_settings(stored, num_heads)
    layer = stored.layer(settings["embed_dim"], llm_heads, adapter_init="trunc_normal")
    model = FrozenLLMViT(**settings, llm=layer)
    load_exactly(model, stored.state, stored.path, left_out={RECORD})
    return model.eval()


def load_host_checkpoint(
    model: FrozenLLMViT, source: str | os.PathLike[str] | nn.Module, *, head: bool = True
) -> list[str]:
    """Start a host from the weights of a plain vision transformer: timm's, DeiT's, or what timm can convert.

    Position embeddings of another resolution are resampled, as timm does; anything else that does not fit is refused.
    A file does not say how its patches lie: timm takes them for a square. A model says it, and how it computes.

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
    if isinstance(source, nn.Module):
        _check_alike(where, source, model)
    positions = state.get("pos_embed")
    known = _own_positions(source, model, positions)
    state = checkpoint_filter_fn(state, model)
    if known is not None:
        state["pos_embed"] = known  # timm took their grid for that of the variant's name
    if positions is not None and state.get("pos_embed") is not positions:
        _logger.info("%s: position embeddings resampled from %s tokens.", where, positions.shape[1])
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
    load_exactly(model, state, where, left_out=kept, hint=hint or "; head=False keeps the model's own head")
    return kept_weights(model, kept, where)


def _check_alike(where: str, source: nn.Module, model: FrozenLLMViT) -> None:
    """Raise where a model with the same weights computes something else: no weight tells its heads or activation."""
    for what, option in (("attn.num_heads", "num_heads"), ("mlp.act", "act_layer")):
        theirs, ours = (_of_first_block(host, what) for host in (source, model))
        if theirs is not None and theirs != ours:
            raise ValueError(
                f"{where}: {what} of its blocks is {theirs}, the model's is {ours}; give the model {option}."
            )


def _of_first_block(model: Any, what: str) -> Any:
    try:
        value = attrgetter(what)(model.blocks[0])
    except (AttributeError, TypeError, IndexError):
        return None
    return type(value).__name__ if isinstance(value, nn.Module) else value


def _own_positions(source: Any, model: FrozenLLMViT, positions: Tensor | None) -> Tensor | None:
    """A model's position embeddings on the grid of the other; None where its own grid is not known."""
    grid = getattr(getattr(source, "patch_embed", None), "grid_size", None)
    if grid is None or positions is None or positions.ndim != 3 or model.pos_embed is None:
        return None
    prefix, target = positions.shape[1] - math.prod(grid), list(model.patch_embed.grid_size)
    if prefix != model.pos_embed.shape[1] - math.prod(target):
        return None
    if list(grid) == target:
        return positions
    return resample_abs_pos_embed(positions, target, list(grid), num_prefix_tokens=prefix)


def _host_settings(stored: OfficialModel, num_heads: int | None) -> dict[str, Any]:
    """Arguments of timm's `VisionTransformer`, read off its tensors."""
    width, channels, height, patch = stored.shape("patch_embed.proj.weight", 4)
    tokens = stored.shape("pos_embed", 3)[1] - 1  # one class token
    side = math.isqrt(max(tokens, 0))
    if height != patch or side < 1 or side * side != tokens:
        raise ValueError(f"{stored.path}: {tokens} patches of {height} x {patch} pixels do not make a square image.")
    return {
        "img_size": side * patch,
        "patch_size": patch,
        "in_chans": channels,
        "embed_dim": width,
        "depth": stored.depth(),
        "num_heads": stored.heads(width, num_heads),
        "mlp_ratio": stored.shape("blocks.0.mlp.fc1.weight", 2)[0] / width,
        "qkv_bias": "blocks.0.attn.qkv.bias" in stored.state,
        "num_classes": stored.shape("head.weight", 2)[0] if "head.weight" in stored.state else 0,
    }


def _read_host(source: str | os.PathLike[str] | nn.Module) -> tuple[str, dict[str, Tensor]]:
    if isinstance(source, nn.Module):
        return type(source).__name__, dict(source.state_dict())
    path = Path(source).expanduser()
    if path.suffix == ".safetensors":
        file = SafetensorsFile(path)
        return str(path), {name: file.read(name) for name in file.names()}
    return str(path), dict(OfficialFile(path).tensors)
