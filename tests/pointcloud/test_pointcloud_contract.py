"""The contract of hosts with a frozen layer, on Point-BERT in its variants."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from frozenllm.core.testing import CONTRACT, Host, both_adapters_get_gradients, compiles, padding_does_not_leak
from frozenllm.pointcloud import PointBERT

SPEC = {"hidden_size": 48, "num_heads": 4, "num_kv_heads": 2, "head_dim": 12, "intermediate_size": 96}
LLM = {"kind": "random", "spec": SPEC, "seed": 3}
SMALL: dict[str, Any] = {
    "num_classes": 5, "embed_dim": 24, "depth": 2, "num_heads": 2, "num_groups": 6, "group_size": 8,
    "encoder_dim": 16, "encoder_widths": (8, 12, 20), "pos_dim": 8, "head_dim": 16,
    "drop_path_rate": 0.0, "head_dropout": 0.0,
}  # fmt: skip
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "two blocks": {"llm": {**LLM, "layers": [0, 1]}},
    "one group": {"num_groups": 1},
}


def _host(kind: type[PointBERT] = PointBERT, **options: Any) -> Host:
    def build() -> PointBERT:
        torch.manual_seed(0)
        return kind(**{**SMALL, "llm": LLM, **options})

    return Host(build=build, inputs=(torch.randn(4, 40, 3, generator=torch.Generator().manual_seed(1)),))


CASES = [
    pytest.param(check, variant, id=f"{check.__name__}-{variant}")
    for check in CONTRACT
    for variant in VARIANTS
    if check is not padding_does_not_leak and (check is not compiles or variant == "plain")
]


@pytest.mark.parametrize(("check", "variant"), CASES)
def test_contract(check: Callable[[Host], None], variant: str) -> None:
    check(_host(**VARIANTS[variant]))


class _Detached(PointBERT):
    """A host whose loss does not reach its first adapter."""

    def tokens(self, points: Tensor, groups: Any = None) -> Tensor:
        return super().tokens(points, groups).detach()

    def forward_features(self, points: Tensor) -> Tensor:
        return super().forward_features(points).detach()


def test_the_contract_finds_a_broken_host() -> None:
    with pytest.raises(AssertionError):
        both_adapters_get_gradients(_host(_Detached))
