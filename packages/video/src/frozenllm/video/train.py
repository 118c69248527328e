"""Training and evaluation of video classifiers: ``python -m frozenllm.video.train [overrides]``.

Without arguments it trains a small VideoMAE on moving digits, alone and with the frozen bundled block, on a CPU in
about a minute.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from torch import nn

from frozenllm.core.training import (
    DATASETS,
    FUNCTIONS,
    METRICS,
    MODELS,
    TRANSFORMS,
    compare_toys,
    hosts,
    run_tool,
)
from frozenllm.video import data
from frozenllm.video.hosts import load_host
from frozenllm.video.metrics import VideoAccuracy
from frozenllm.video.mixing import VideoMix
from frozenllm.video.model import FrozenLLMVideoMAE, videomae_config

CONFIG = "frozenllm.video.conf"
METRIC = "accuracy/top1"


def build_videomae(
    num_classes: int,
    *,
    size: str = "small",
    llm: Mapping[str, Any] | None = None,
    drop_path_rate: float = 0.0,
    head_init_scale: float = 1e-3,
    grad_checkpointing: bool = False,
    host: str | None = None,
    host_head: bool | None = None,
    freeze_host: bool = False,
    **options: Any,
) -> nn.Module:
    """The model of the config group ``model``.

    Args:
        num_classes: Number of classes.
        size: See `frozenllm.video.videomae_config`.
        llm: The config group ``llm``; None for the host alone.
        drop_path_rate: See `FrozenLLMVideoMAE`.
        head_init_scale: See `FrozenLLMVideoMAE`.
        grad_checkpointing: Recompute activations in the backward pass.
        host: Pretrained weights of the host, see `frozenllm.video.hosts.load_host`; None for a random start.
        host_head: Whether these give the classification head too; None for: where they have one.
        freeze_host: Train only what the frozen layer trains (its adapters), and the head if it is new.
        **options: Fields of transformers' `VideoMAEConfig`.

    Raises:
        ValueError: An option is unknown or does not fit.
    """
    config = videomae_config(size, num_labels=num_classes, **options)
    model = FrozenLLMVideoMAE(config, llm=llm, drop_path_rate=drop_path_rate, head_init_scale=head_init_scale)
    if grad_checkpointing:
        model.set_grad_checkpointing()
    kept = [] if host is None else load_host(model, host, head=host_head)
    if freeze_host:
        hosts.freeze_host(model, kept)
    return model


MODELS.register_module("videomae", module=build_videomae)
DATASETS.register_module("ssv2_frames", module=data.ssv2_frames)
DATASETS.register_module("encoded_videos", module=data.encoded_videos)
DATASETS.register_module("video_csv", module=data.video_csv)
DATASETS.register_module("toy_frames", module=data.toy_frames)
DATASETS.register_module("toy_videos", module=data.toy_videos)
FUNCTIONS.register_module("video", module=data.collate_videos)
TRANSFORMS.register_module("video_mix", module=VideoMix)
METRICS.register_module("VideoAccuracy", module=VideoAccuracy)


def toy() -> None:
    """The host alone beside the host with the frozen layer, on the toy data."""
    compare_toys(CONFIG, ["recipe=moving_digits"], METRIC)


main = partial(run_tool, CONFIG, toy)
"""The command line; takes overrides in Hydra's grammar, or None for the process's. Without any, `toy` runs."""


if __name__ == "__main__":
    main()
