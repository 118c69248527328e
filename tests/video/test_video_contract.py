"""The contract of hosts with a frozen layer (tests/integration/test_contract.py) finds broken VideoMAEs."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from broken_hosts import assert_found
from torch import Tensor, nn

from frozenllm.core.testing import Host, both_adapters_get_gradients, shortcuts_equal_dense
from frozenllm.video import FrozenLLMVideoMAE
from frozenllm.video.testing import HOSTS


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
    assert_found(check, HOSTS["videomae"], kind)
