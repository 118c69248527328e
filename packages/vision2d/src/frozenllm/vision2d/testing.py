"""The hosts of this package, at tiny widths: what the contract of hosts with a frozen layer is checked on."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch

from frozenllm.core.testing import TINY_LLM, Host, Recipe, strengthen
from frozenllm.vision2d.train import build_vit

_SIZES: dict[str, Any] = {
    "variant": "vit_small_patch16_224_frozenllm", "img_size": 16, "patch_size": 4, "embed_dim": 24, "depth": 2,
    "num_heads": 2, "num_classes": 5, "llm": TINY_LLM,
}  # fmt: skip


def _host(compiled: bool = False, **options: Any) -> Host:
    images = torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    recipe = Recipe(build_vit, {**_SIZES, **options}, partial(strengthen, skip="pos_embed"))
    return Host(build=recipe, inputs=(images,), compiled=compiled)


HOSTS = {
    "vit token": _host(compiled=True),
    "vit avg": _host(compiled=True, global_pool="avg"),
    "vit registers": _host(reg_tokens=2, no_embed_class=True),
    "vit middle": _host(llm_position="middle"),
    "vit head": _host(llm_position="head"),
    "vit two blocks": _host(llm={**TINY_LLM, "layers": [0, 1]}),
}
