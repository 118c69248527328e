"""The contract of hosts with a frozen layer, on timm's vision transformer in its variants."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from frozenllm.core.testing import (
    CONTRACT,
    Host,
    both_adapters_get_gradients,
    compiles,
    padding_does_not_leak,
    shortcuts_equal_dense,
)
from frozenllm.vision2d import FrozenLLMViT

SPEC = {"hidden_size": 48, "num_heads": 4, "num_kv_heads": 2, "head_dim": 12, "intermediate_size": 96}
LLM = {"kind": "random", "spec": SPEC, "seed": 3}
VARIANTS: dict[str, dict[str, Any]] = {
    "token": {},
    "avg": {"global_pool": "avg"},
    "registers": {"reg_tokens": 2, "no_embed_class": True},
    "middle": {"llm_position": "middle"},
    "head": {"llm_position": "head"},
    "two blocks": {"llm": {**LLM, "layers": [0, 1]}},
}


def _host(**options: Any) -> Host:
    def build() -> FrozenLLMViT:
        torch.manual_seed(0)
        settings = {"img_size": 16, "patch_size": 4, "embed_dim": 24, "depth": 2, "num_heads": 2, "num_classes": 5}
        model = FrozenLLMViT(**{**settings, "llm": LLM, **options})
        with torch.no_grad():  # from std 0.02, little of the input would be left after so few narrow layers
            for name, parameter in model.named_parameters():
                if parameter.ndim > 1 and name != "pos_embed":
                    parameter.mul_(6.0)
        return model

    return Host(build=build, inputs=(torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(1)),))


CASES = [
    pytest.param(check, variant, id=f"{check.__name__}-{variant}")
    for check in CONTRACT
    for variant in VARIANTS
    if check is not padding_does_not_leak and (check is not compiles or variant in ("token", "avg"))
]


@pytest.mark.parametrize(("check", "variant"), CASES)
def test_contract(check: Callable[[Host], None], variant: str) -> None:
    check(_host(**VARIANTS[variant]))


class _Detached(FrozenLLMViT):
    """A host whose loss does not reach its first adapter."""

    def _apply_llm(self, x: torch.Tensor, depth: int, readout: slice | None = None) -> torch.Tensor:
        return super()._apply_llm(x.detach() if depth else x, depth, readout).detach()


class _WrongToken(FrozenLLMViT):
    """A host that reads another token where it takes the shortcut."""

    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        shortcut = self.llm is not None and self.llm.exact == "auto"
        tokens, _ = self._encode(x, readout=slice(1, 2) if shortcut else slice(0, 1))
        return self.forward_head(self.norm(tokens))


@pytest.mark.parametrize(
    ("kind", "check"), [(_Detached, both_adapters_get_gradients), (_WrongToken, shortcuts_equal_dense)]
)
def test_the_contract_finds_a_broken_host(kind: type[nn.Module], check: Callable[[Host], None]) -> None:
    sound = _host()

    def build() -> nn.Module:
        model = sound.build()
        model.__class__ = kind
        return model

    with pytest.raises(AssertionError):
        check(Host(build=build, inputs=sound.inputs))
