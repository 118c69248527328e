"""Training and evaluation of image classifiers: ``python -m frozenllm.vision2d.train [overrides]``.

Without arguments it trains a small vision transformer on handwritten digits, alone and with the frozen bundled block,
on a CPU in about a minute.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import timm
from timm.models import is_model, list_models
from torch import nn

from frozenllm.core.training import (
    DATASETS,
    MODELS,
    TRANSFORMS,
    call_with_options,
    compare_toys,
    hosts,
    run_tool,
)
from frozenllm.vision2d.data import Mixup, digits, image_folder
from frozenllm.vision2d.hosts import load_host
from frozenllm.vision2d.model import FrozenLLMViT
from frozenllm.vision2d.toy_imagenet_s import toy_imagenet_s

CONFIG = "frozenllm.vision2d.conf"
METRIC = "accuracy/top1"


def build_vit(
    variant: str,
    *,
    llm: Mapping[str, Any] | None = None,
    grad_checkpointing: bool = False,
    host: str | None = None,
    host_head: bool = True,
    freeze_host: bool = False,
    **options: Any,
) -> nn.Module:
    """The model of the config group ``model``.

    Args:
        variant: A name that `frozenllm.vision2d` has registered in timm.
        llm: The config group ``llm``; None for the host alone.
        grad_checkpointing: Recompute activations in the backward pass.
        host: Pretrained weights of the host, see `frozenllm.vision2d.hosts.load_host`; None for a random start.
        host_head: Whether these give the classification head too; else a new head is trained.
        freeze_host: Train only what the frozen layer trains (its adapters), and the head if it is new.
        **options: Arguments of timm's `VisionTransformer`, and ``llm_position``.

    Raises:
        ValueError: The variant is unknown or has no place for a frozen layer, or an option is unknown.
    """
    known = list_models("*_frozenllm")
    if not is_model(variant) or variant not in known:
        raise ValueError(f"model.variant must be one of {', '.join(known)}, not {variant!r}.")
    model = call_with_options(timm.create_model, options, "timm's VisionTransformer", variant, llm=llm or "none")
    assert isinstance(model, FrozenLLMViT)
    if grad_checkpointing:
        model.set_grad_checkpointing()
    kept = [] if host is None else load_host(model, host, head=host_head)
    if freeze_host:
        hosts.freeze_host(model, kept)
    return model


MODELS.register_module("vit", module=build_vit)
DATASETS.register_module("image_folder", module=image_folder)
DATASETS.register_module("digits", module=digits)
DATASETS.register_module("toy_imagenet_s", module=toy_imagenet_s)
TRANSFORMS.register_module("mixup", module=Mixup)


def toy() -> None:
    """The host alone beside the host with the frozen layer, on the toy data."""
    compare_toys(CONFIG, ["recipe=digits"], METRIC)


main = partial(run_tool, CONFIG, toy)
"""The command line; takes overrides in Hydra's grammar, or None for the process's. Without any, `toy` runs."""


if __name__ == "__main__":
    main()
