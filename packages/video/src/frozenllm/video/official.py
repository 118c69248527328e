"""Checkpoints of the official release: ViT-LLaMA on Something-Something V2.

Such a file (``video_understanding`` of the release) holds a VideoMAE classifier under the original's names, the block
as ``llama.*`` and the adapters as ``llama_dim_mapper{1,2}``, under the key ``model``, or ``module`` where DeepSpeed
wrote it. It says neither how many heads host and block have nor the size and length of the clips.
"""

from __future__ import annotations

import os
from typing import Any

from torch import Tensor, nn

from frozenllm.core.official import RECORD, OfficialModel, read_official
from frozenllm.video.model import FrozenLLMVideoMAE, videomae_config
from frozenllm.video.pretrained import load_under_own_names, to_transformers

__all__ = ["ChannelsFirst", "load_official_checkpoint"]


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
    stored = read_official(path, "a video model")
    config = videomae_config(**_settings(stored, num_heads, image_size, num_frames))
    model = FrozenLLMVideoMAE(config, llm=stored.layer(config.hidden_size, llm_heads))
    try:
        renamed = to_transformers(stored.state)
    except ValueError as error:
        raise ValueError(f"{stored.path}: {error}") from error
    load_under_own_names(model, renamed, stored.path, left_out={RECORD})
    return ChannelsFirst(model).eval()


def _settings(stored: OfficialModel, num_heads: int | None, image_size: int, num_frames: int) -> dict[str, Any]:
    """Arguments of `videomae_config`, read off the tensors."""
    if any(name.startswith("encoder.") for name in stored.state):
        raise ValueError(
            f"{stored.path}: is a pre-training checkpoint of VideoMAE, which has no classes; start a host from it with "
            "load_host_checkpoint."
        )
    width, channels, tubelet, rows, columns = stored.shape("patch_embed.proj.weight", 5)
    if rows != columns:
        raise ValueError(f"{stored.path}: patches of {rows} x {columns} pixels are not those of VideoMAE.")
    for name, whole, part in (("image_size", image_size, rows), ("num_frames", num_frames, tubelet)):
        if whole < 1 or whole % part:
            raise ValueError(f"{stored.path}: {name}={whole} is not a multiple of the {part} that its patches have.")
    return {
        "image_size": image_size,
        "patch_size": rows,
        "num_frames": num_frames,
        "tubelet_size": tubelet,
        "num_channels": channels,
        "hidden_size": width,
        "num_hidden_layers": stored.depth(),
        "num_attention_heads": stored.heads(width, num_heads),
        "intermediate_size": stored.shape("blocks.0.mlp.fc1.weight", 2)[0],
        "num_labels": stored.shape("head.weight", 2)[0],
    }
