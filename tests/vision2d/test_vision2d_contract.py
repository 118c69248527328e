"""The contract of hosts with a frozen layer (tests/integration/test_contract.py) finds broken vision transformers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from broken_hosts import assert_found
from torch import nn

from frozenllm.core.testing import Host, both_adapters_get_gradients, shortcuts_equal_dense
from frozenllm.vision2d import FrozenLLMViT
from frozenllm.vision2d.testing import HOSTS


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
    assert_found(check, HOSTS["vit token"], kind)
