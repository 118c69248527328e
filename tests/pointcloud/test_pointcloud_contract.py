"""The contract of hosts with a frozen layer (tests/integration/test_contract.py) finds a broken Point-BERT."""

from __future__ import annotations

from broken_hosts import assert_found
from torch import Tensor

from frozenllm.core.testing import both_adapters_get_gradients
from frozenllm.pointcloud import PointBERT
from frozenllm.pointcloud.testing import HOSTS


class _Detached(PointBERT):
    """A host whose loss does not reach its first adapter."""

    def forward_features(self, points: Tensor) -> Tensor:
        return super().forward_features(points).detach()


def test_the_contract_finds_a_broken_host() -> None:
    assert_found(both_adapters_get_gradients, HOSTS["point_bert"], _Detached)
