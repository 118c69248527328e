"""The hosts of this package, at tiny widths: what the contract of hosts with a frozen layer is checked on."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch

from frozenllm.core.testing import TINY_LLM, Host, Recipe, strengthen
from frozenllm.video.train import build_videomae

_SIZES: dict[str, Any] = {
    "image_size": 16, "patch_size": 4, "num_frames": 4, "hidden_size": 24, "num_hidden_layers": 2,
    "num_attention_heads": 2, "intermediate_size": 48, "num_classes": 5, "head_init_scale": 1.0, "llm": TINY_LLM,
}  # fmt: skip


def _host(compiled: bool = False, height: int = 16, **options: Any) -> Host:
    clips = torch.randn(3, 4, 3, height, 16, generator=torch.Generator().manual_seed(1))
    recipe = Recipe(build_videomae, {**_SIZES, **options}, partial(strengthen, skip="llm"))
    return Host(build=recipe, inputs=(clips,), compiled=compiled)


HOSTS = {
    "videomae": _host(compiled=True),
    "videomae wide frames": _host(height=8, image_size=[8, 16], tubelet_size=1),
    "videomae two blocks": _host(llm={**TINY_LLM, "layers": [0, 1]}),
}
