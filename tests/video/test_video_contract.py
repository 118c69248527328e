"""The contract of hosts with a frozen layer, on VideoMAE in its variants."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from frozenllm.core.testing import (
    CONTRACT,
    Host,
    both_adapters_get_gradients,
    compiles,
    padding_does_not_leak,
    shortcuts_equal_dense,
)
from frozenllm.video import FrozenLLMVideoMAE, videomae_config

SPEC = {"hidden_size": 48, "num_heads": 4, "num_kv_heads": 2, "head_dim": 12, "intermediate_size": 96}
LLM = {"kind": "random", "spec": SPEC, "seed": 3}
SIZES: dict[str, Any] = {
    "image_size": 16, "patch_size": 4, "num_frames": 4, "hidden_size": 24, "num_hidden_layers": 2,
    "num_attention_heads": 2, "intermediate_size": 48, "num_labels": 5,
}  # fmt: skip
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "wide frames": {"image_size": [8, 16], "tubelet_size": 1},
    "two blocks": {"llm": {**LLM, "layers": [0, 1]}},
}


def _host(**options: Any) -> Host:
    llm = options.pop("llm", LLM)
    config = videomae_config(**{**SIZES, **options})

    def build() -> FrozenLLMVideoMAE:
        torch.manual_seed(0)
        model = FrozenLLMVideoMAE(config, llm=llm, head_init_scale=1.0)
        with torch.no_grad():  # from std 0.02, little of the input would be left after so few narrow layers
            for name, parameter in model.named_parameters():
                if parameter.ndim > 1 and "llm" not in name:
                    parameter.mul_(6.0)
        return model

    side = config.image_size if isinstance(config.image_size, list) else [config.image_size] * 2
    clips = torch.randn(3, config.num_frames, 3, *side, generator=torch.Generator().manual_seed(1))
    return Host(build=build, inputs=(clips,))


CASES = [
    pytest.param(check, variant, id=f"{check.__name__}-{variant}")
    for check in CONTRACT
    for variant in VARIANTS
    if check is not padding_does_not_leak and (check is not compiles or variant == "plain")
]


@pytest.mark.parametrize(("check", "variant"), CASES)
def test_contract(check: Callable[[Host], None], variant: str) -> None:
    check(_host(**VARIANTS[variant]))


class _Detached(FrozenLLMVideoMAE):
    """A host whose loss does not reach its first adapter."""

    def forward_features(self, pixel_values: Tensor) -> Tensor:
        return super().forward_features(pixel_values).detach()


class _WrongTokens(FrozenLLMVideoMAE):
    """A host that leaves tokens out where it takes the shortcut."""

    def forward_features(self, pixel_values: Tensor) -> Tensor:
        tokens = super().forward_features(pixel_values)
        return tokens[:, 1:] if self.llm.exact == "auto" else tokens


@pytest.mark.parametrize(
    ("kind", "check"), [(_Detached, both_adapters_get_gradients), (_WrongTokens, shortcuts_equal_dense)]
)
def test_the_contract_finds_a_broken_host(kind: type[nn.Module], check: Callable[[Host], None]) -> None:
    sound = _host()

    def build() -> nn.Module:
        model = sound.build()
        model.__class__ = kind
        return model

    with pytest.raises(AssertionError):
        check(Host(build=build, inputs=sound.inputs))
