"""Checkpoints from elsewhere: Point-BERT's pre-training, and fine-tuned models of its own and of the official release.

All of them hold the model under ``base_model``, often with ``module.`` before every name. A fine-tuned model has
``encoder``, ``reduce_dim``, ``cls_token``, ``cls_pos``, ``pos_embed``, ``blocks.blocks``, ``norm`` and
``cls_head_finetune``; the official release adds the block as ``llama.*`` and the adapters as
``llama_dim_mapper{1,2}``. Pre-training has the host under ``transformer_q``, with heads of its own.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from frozenllm.core.official import RECORD, OfficialModel, read_official
from frozenllm.core.state_dicts import kept_weights, load_exactly
from frozenllm.core.weights.official import OfficialFile
from frozenllm.pointcloud.model import PointBERT

__all__ = ["load_official_checkpoint", "load_pretrained_host"]

_NAMES = (
    ("blocks.blocks.", "blocks."),
    ("cls_head_finetune.", "head."),
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
    stored = read_official(path, "a point cloud model")
    if any(name.startswith("transformer_q.") for name in stored.state):
        raise ValueError(
            f"{stored.path}: holds Point-BERT's pre-training, not a classifier: read it with load_pretrained_host."
        )
    stored.state = {_renamed(name): tensor for name, tensor in stored.state.items()}
    settings = _host_settings(stored, num_heads)
    layer = stored.layer(settings["embed_dim"], llm_heads)
    model = PointBERT(**settings, num_groups=num_groups, group_size=group_size, llm=layer)
    load_exactly(model, stored.state, stored.path, left_out={RECORD})
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
    load_exactly(model, state, path, left_out=own)
    return kept_weights(model, own, path)


def _renamed(name: str) -> str:
    for theirs, ours in _NAMES:
        if name.startswith(theirs):
            return ours + name.removeprefix(theirs)
    return name


def _host_settings(stored: OfficialModel, num_heads: int | None) -> dict[str, Any]:
    """Arguments of `PointBERT`, read off its tensors."""

    def rows(name: str, ndim: int = 2) -> int:
        return stored.shape(name, ndim)[0]

    width, depth = rows("reduce_dim.weight"), stored.depth()
    if not depth:
        raise ValueError(f"{stored.path}: is not {stored.kind} of the official release: it has no blocks.")
    return {
        "num_classes": rows("head.3.weight"),
        "embed_dim": width,
        "depth": depth,
        "num_heads": stored.heads(width, num_heads),
        "encoder_dim": rows("encoder.second_conv.3.weight", 3),
        "encoder_widths": (
            rows("encoder.first_conv.0.weight", 3),
            rows("encoder.first_conv.3.weight", 3),
            rows("encoder.second_conv.0.weight", 3),
        ),
        "pos_dim": rows("pos_embed.0.weight"),
        "head_dim": rows("head.0.weight"),
    }
