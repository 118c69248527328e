"""Checkpoints from elsewhere: Point-BERT's pre-training, and fine-tuned models of its own and of the official release.

All of them hold the model under ``base_model``, often with ``module.`` before every name. A fine-tuned model has
``encoder``, ``reduce_dim``, ``cls_token``, ``cls_pos``, ``pos_embed``, ``blocks.blocks``, ``norm`` and
``cls_head_finetune``; the official release adds the block as ``llama.*`` and the adapters as
``llama_dim_mapper{1,2}``. Pre-training has the host under ``transformer_q``, with heads of its own.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from frozenllm.core import FrozenLLMLayer, load_block
from frozenllm.core.weights.official import OfficialFile
from frozenllm.pointcloud.model import PointBERT

__all__ = ["load_official_checkpoint", "load_pretrained_host"]

_logger = logging.getLogger(__name__)

_HEAD_WIDTH = 64  # of Point-BERT's attention: 384 wide, 6 heads
_NAMES = (
    ("blocks.blocks.", "blocks."),
    ("cls_head_finetune.", "head."),
    ("llama_dim_mapper1.", "llm.adapter_in."),
    ("llama_dim_mapper2.", "llm.adapter_out."),
)
_PRETRAINING_HEADS = ("mask_token", "lm_head.", "cls_head.")


def load_official_checkpoint(
    path: str | os.PathLike[str],
    *,
    num_groups: int = 64,
    group_size: int = 32,
    num_heads: int | None = None,
    llm_heads: int = 32,
) -> PointBERT:
    """Read a fine-tuned point cloud model of the official release or of Point-BERT, with or without ``llama.*``.

    All widths and the number of classes are read off the tensors; what a file cannot tell is an argument. The model
    takes ``(B, N, 3)``: the paper's 1024, 4096 and 8192 points go with 64, 256 and 512 groups.

    Args:
        path: The ``.pth`` file. Nothing in it is run.
        num_groups: Groups of a cloud.
        group_size: Points of a group.
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
    if any(name.startswith("transformer_q.") for name in stored):
        raise ValueError(
            f"{path}: holds Point-BERT's pre-training, not a classifier: read it with load_pretrained_host."
        )
    state = {_renamed(name): tensor for name, tensor in stored.items() if not name.startswith("llama.")}
    settings = _host_settings(state, num_heads, path)
    with_block, adapters = len(state) < len(stored), [f"llm.adapter_{side}.weight" for side in ("in", "out")]
    layer = None
    if with_block or any(name in state for name in adapters):
        absent = [name for name in ("llama_dim_mapper1.weight", "llama_dim_mapper2.weight") if name not in stored]
        if absent:
            raise ValueError(f"{path}: holds a language-model block, but no {' and no '.join(absent)}.")
        block = load_block(path, num_heads=llm_heads)
        unit = all(bool((gain == 1).all()) for gain in block.final_norm_tensors().values())
        layer = FrozenLLMLayer(settings["embed_dim"], block, output_norm="unit" if unit else "pretrained")
    model = PointBERT(**settings, num_groups=num_groups, group_size=group_size, llm=layer)
    _load(model, state, path, left_out={"llm.block._extra_state"})
    return model.eval()


def load_pretrained_host(model: PointBERT, path: str | os.PathLike[str]) -> list[str]:
    """Start a host from Point-BERT's pre-training (``Point-BERT.pth``); its classification head stays as it is.

    Args:
        model: The model, with or without a frozen layer; its host is overwritten.
        path: The file. Nothing in it is run.

    Returns:
        Names of the weights that were not in the file and keep their values: those of the head and of the frozen
        layer's adapters. They are logged as well.

    Raises:
        ValueError: The file cannot be read, or it is not the same host.
    """
    path = Path(path).expanduser()
    stored = OfficialFile(path).tensors
    prefix = next((p for p in ("transformer_q.", "base_model.") if any(name.startswith(p) for name in stored)), None)
    if prefix is None:
        raise ValueError(f"{path}: holds no pre-trained Point-BERT: no tensor is named transformer_q.*.")
    state = {
        _renamed(name.removeprefix(prefix)): tensor
        for name, tensor in stored.items()
        if name.startswith(prefix) and not name.removeprefix(prefix).startswith((*_PRETRAINING_HEADS, "cls_head_"))
    }
    own = {name for name in model.state_dict() if name.startswith(("llm.", "head."))}
    _load(model, state, path, left_out=own)
    names = sorted(name for name, _ in model.named_parameters() if name in own)
    _logger.info("%s: read into the host; not in it, so kept as they are: %s.", path, ", ".join(names))
    return names


def _renamed(name: str) -> str:
    for theirs, ours in _NAMES:
        if name.startswith(theirs):
            return ours + name.removeprefix(theirs)
    return name


def _host_settings(state: Mapping[str, Tensor], num_heads: int | None, path: Path) -> dict[str, Any]:
    """Arguments of `PointBERT`, read off its tensors."""

    def rows(name: str, ndim: int = 2) -> int:
        if name not in state:
            raise ValueError(f"{path}: is not a point cloud model of the official release: {name} is missing.")
        if state[name].ndim != ndim:
            raise ValueError(
                f"{path}: {name} has the shape {tuple(state[name].shape)}, which should be {ndim}-dimensional."
            )
        return state[name].shape[0]

    width = rows("reduce_dim.weight")
    depth = len({match[1] for name in state if (match := re.match(r"blocks\.(\d+)\.", name))})
    if num_heads is None:
        if width % _HEAD_WIDTH:
            raise ValueError(f"{path}: a host {width} wide has no heads of {_HEAD_WIDTH}; give num_heads.")
        num_heads = width // _HEAD_WIDTH
    if num_heads < 1 or width % num_heads:
        raise ValueError(f"{path}: a host {width} wide cannot have {num_heads} heads.")
    if not depth:
        raise ValueError(f"{path}: is not a point cloud model of the official release: it has no blocks.")
    return {
        "num_classes": rows("head.3.weight"),
        "embed_dim": width,
        "depth": depth,
        "num_heads": num_heads,
        "encoder_dim": rows("encoder.second_conv.3.weight", 3),
        "encoder_widths": (
            rows("encoder.first_conv.0.weight", 3),
            rows("encoder.first_conv.3.weight", 3),
            rows("encoder.second_conv.0.weight", 3),
        ),
        "pos_dim": rows("pos_embed.0.weight"),
        "head_dim": rows("head.0.weight"),
    }


def _load(model: PointBERT, state: Mapping[str, Tensor], path: Path, left_out: set[str]) -> None:
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
        raise ValueError(f"{path}: does not fit the model: {'; '.join(faults)}.")
    with torch.no_grad():
        model.load_state_dict(dict(state), strict=False)
