"""Checkpoints of the official release: ViT-LLaMA on Something-Something V2.

Such a file (``video_understanding`` of the release) holds a VideoMAE classifier under the original's names, the block
as ``llama.*`` and the adapters as ``llama_dim_mapper{1,2}``, under the key ``model``, or ``module`` where DeepSpeed
wrote it. It says neither how many heads host and block have nor the size and length of the clips.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from frozenllm.core import FrozenLLMLayer, LLMBlock, load_block
from frozenllm.core.weights.official import OfficialFile
from frozenllm.video.model import FrozenLLMVideoMAE, videomae_config
from frozenllm.video.pretrained import load_exactly, to_transformers

__all__ = ["ChannelsFirst", "load_official_checkpoint"]

_HEAD_WIDTH = 64  # of both hosts of the paper
_ADAPTERS = {"llama_dim_mapper1.weight": "llm.adapter_in.weight", "llama_dim_mapper2.weight": "llm.adapter_out.weight"}


class ChannelsFirst(nn.Module):
    """A model that takes clips as the official code does.

    Args:
        model: Takes (B, T, C, H, W).
    """

    def __init__(self, model: FrozenLLMVideoMAE) -> None:
        super().__init__()
        self.model = model

    def forward(self, clips: Tensor) -> Tensor:
        """Class scores.

        Args:
            clips: (B, C, T, H, W), normalised.

        Returns:
            (B, num_labels).
        """
        if clips.ndim != 5:
            raise ValueError(f"Clips must be (batch, channels, frames, height, width), not {tuple(clips.shape)}.")
        return self.model(clips.transpose(1, 2))


def load_official_checkpoint(
    path: str | os.PathLike[str],
    *,
    num_heads: int | None = None,
    llm_heads: int = 32,
    image_size: int = 224,
    num_frames: int = 16,
) -> ChannelsFirst:
    """Read a video model of the official release, with or without its language-model block.

    All widths are read off the tensors. The block's record names the file, so that `frozenllm.core.reload_blocks` can
    fill the block again. The official norm after the block has gain 1; a file in which it has not is honoured
    (``output_norm="pretrained"``). Fine-tuning files of VideoMAE itself are read as hosts alone.

    Args:
        path: The ``.pth`` file. Nothing in it is run.
        num_heads: Attention heads of the host; None for heads 64 wide.
        llm_heads: Attention heads of the block; LLaMA-7B has 32.
        image_size: Width and height of the clips in pixels.
        num_frames: Their length.

    Returns:
        The model in eval mode, on the CPU, in float32; it takes clips as (B, C, T, H, W). Its ``model`` is the
        `FrozenLLMVideoMAE`, which takes (B, T, C, H, W).

    Raises:
        ValueError: One sentence: the file is missing or damaged, holds Python objects that could run code, or its
            tensors are not those of such a model.
    """
    path = Path(path).expanduser()
    stored = OfficialFile(path).tensors
    block_names = {name for name in stored if name.startswith("llama.")}
    state = {_ADAPTERS.get(name, name): tensor for name, tensor in stored.items() if name not in block_names}
    config = videomae_config(**_settings(state, num_heads, image_size, num_frames, path))
    layer = None
    if block_names or any(name in stored for name in _ADAPTERS):
        _refuse_other_names(block_names, path)
        absent = [name for name in _ADAPTERS if name not in stored]
        if absent:
            raise ValueError(f"{path}: holds a language-model block, but no {' and no '.join(absent)}.")
        block = load_block(path, num_heads=llm_heads)
        layer = FrozenLLMLayer(config.hidden_size, block, output_norm="unit" if _is_unit(block) else "pretrained")
    model = FrozenLLMVideoMAE(config, llm=layer)
    try:
        renamed = to_transformers(state)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    load_exactly(model, renamed, path, left_out={"llm.block._extra_state"})
    return ChannelsFirst(model).eval()


def _settings(
    state: Mapping[str, Tensor], num_heads: int | None, image_size: int, num_frames: int, path: Path
) -> dict[str, Any]:
    """Arguments of `videomae_config`, read off the tensors."""

    def shape(name: str, ndim: int) -> tuple[int, ...]:
        if name not in state:
            raise ValueError(f"{path}: is not a video model of the official release: {name} is missing.")
        if state[name].ndim != ndim:
            raise ValueError(
                f"{path}: {name} has the shape {tuple(state[name].shape)}, which should be {ndim}-dimensional."
            )
        return tuple(state[name].shape)

    if any(name.startswith("encoder.") for name in state):
        raise ValueError(
            f"{path}: is a pre-training checkpoint of VideoMAE, which has no classes; start a host from it with "
            "load_host_checkpoint."
        )
    width, channels, tubelet, rows, columns = shape("patch_embed.proj.weight", 5)
    if rows != columns:
        raise ValueError(f"{path}: patches of {rows} x {columns} pixels are not those of VideoMAE.")
    if num_heads is None:
        if width % _HEAD_WIDTH:
            raise ValueError(f"{path}: a host {width} wide has no heads of {_HEAD_WIDTH}; give num_heads.")
        num_heads = width // _HEAD_WIDTH
    if num_heads < 1 or width % num_heads:
        raise ValueError(f"{path}: a host {width} wide cannot have {num_heads} heads.")
    for name, whole, part in (("image_size", image_size, rows), ("num_frames", num_frames, tubelet)):
        if whole < 1 or whole % part:
            raise ValueError(f"{path}: {name}={whole} is not a multiple of the {part} that its patches have.")
    return {
        "image_size": image_size,
        "patch_size": rows,
        "num_frames": num_frames,
        "tubelet_size": tubelet,
        "num_channels": channels,
        "hidden_size": width,
        "num_hidden_layers": len({match[1] for name in state if (match := re.match(r"blocks\.(\d+)\.", name))}),
        "num_attention_heads": num_heads,
        "intermediate_size": shape("blocks.0.mlp.fc1.weight", 2)[0],
        "num_labels": shape("head.weight", 2)[0],
    }


def _refuse_other_names(names: Iterable[str], path: Path) -> None:
    other = sorted(
        n for n in names if not n.startswith("llama.layers.") and n != "llama.norm.weight" and "rope" not in n
    )
    if other:
        raise ValueError(f"{path}: also holds {', '.join(other[:3])}, which the official model does not have.")


def _is_unit(block: LLMBlock) -> bool:
    return all(bool((tensor == 1).all()) for tensor in block.final_norm_tensors().values())
