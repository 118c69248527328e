"""The contract of hosts with a frozen layer (tests/integration/test_contract.py) finds broken motion hosts."""

from __future__ import annotations

from typing import Any

import torch
from broken_hosts import assert_found, broken
from torch import Tensor

from frozenllm.core.testing import shortcuts_equal_dense
from frozenllm.motion.models import VectorNet
from frozenllm.motion.testing import HOSTS, random_inputs

SOUND = HOSTS["vectornet before"]


def _as_tensor(output: dict[str, Tensor]) -> Tensor:
    return torch.cat([value.flatten(1) for value in output.values()], dim=1)


class _Blind(VectorNet):
    """A host whose frozen layer does not know what is padding."""

    def token_mask(self, inputs: Any) -> Tensor:
        return torch.ones_like(super().token_mask(inputs))


class _WrongToken(VectorNet):
    """A host that reads another token where it takes the shortcut."""

    def decode(self, tokens: Tensor, inputs: Any, *rest: Any) -> dict[str, Tensor]:
        return self.decoder(tokens[:, 0 if self.llm.exact == "dense" else -1])

    reads_target_token = False


def test_the_contract_finds_a_broken_host() -> None:
    assert_found(shortcuts_equal_dense, SOUND, _WrongToken)


def test_more_padding_changes_a_host_without_masks() -> None:
    """What `test_motion_models` relies on: a host that ignores its mask is found by adding padding."""
    sound, blind = SOUND.build().eval(), broken(SOUND, _Blind).build().eval()
    small, large = random_inputs(1, 4, 5, history=6, points=4), random_inputs(1, 4, 5, history=6, points=4)
    large["lanes"] = torch.cat([large["lanes"], torch.zeros(1, 9, 4, 4)], dim=1)
    large["lanes_valid"] = torch.cat([large["lanes_valid"], torch.zeros(1, 9, 4, dtype=torch.bool)], dim=1)
    large["lane_attributes"] = torch.cat([large["lane_attributes"], torch.zeros(1, 9, 8)], dim=1)
    with torch.no_grad():
        torch.testing.assert_close(_as_tensor(sound(**small)), _as_tensor(sound(**large)))
        assert (_as_tensor(blind(**small)) - _as_tensor(blind(**large))).abs().max() > 1e-3
