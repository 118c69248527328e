"""The contract of hosts with a frozen layer, on both motion hosts and both places of the layer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from frozenllm.core.testing import CONTRACT, Host, compiles, shortcuts_equal_dense
from frozenllm.motion.models import MMTransformer, MotionHost, VectorNet
from frozenllm.motion.testing import random_inputs

SPEC = {"hidden_size": 48, "num_heads": 4, "num_kv_heads": 2, "head_dim": 12, "intermediate_size": 96}
LLM = {"kind": "random", "spec": SPEC, "seed": 3}
ORDER = ("agents", "agents_valid", "agent_type", "lanes", "lanes_valid", "lane_attributes")
HOSTS: dict[str, tuple[type[MotionHost], dict[str, Any]]] = {
    "vectornet": (VectorNet, {"dim": 24, "width": 16, "hidden": 16}),
    "mmtransformer": (MMTransformer, {"dim": 16, "hidden": 24, "width": 8, "layers": 1, "position_dim": 8}),
}
VARIANTS: dict[str, dict[str, Any]] = {
    "before": {"insert": "before_decoder"},
    "after": {"insert": "after_subgraph"},
    "scales": {"insert": "before_decoder", "scales": True, "modes": 1},
    "two blocks": {"insert": "before_decoder", "llm": {**LLM, "layers": [0, 1]}},
}


def _loss(output: dict[str, Tensor]) -> Tensor:
    return sum(value.square().mean() for value in output.values())


def _noise_in_padding(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(9)
    noise = {name: 100 * torch.randn(x.shape, generator=draw) for name, x in inputs.items() if x.is_floating_point()}
    lane = inputs["lanes_valid"].any(dim=-1, keepdim=True)
    agent = inputs["agents_valid"].any(dim=-1)
    return {
        **inputs,
        "agents": torch.where(inputs["agents_valid"][..., None], inputs["agents"], noise["agents"]),
        "lanes": torch.where(inputs["lanes_valid"][..., None], inputs["lanes"], noise["lanes"]),
        "lane_attributes": torch.where(lane, inputs["lane_attributes"], noise["lane_attributes"]),
        "agent_type": torch.where(agent, inputs["agent_type"], 3),
    }


def _host(kind: str, **options: Any) -> Host:
    host, sizes = HOSTS[kind]

    def build() -> MotionHost:
        torch.manual_seed(0)
        return host(12, **{"modes": 3, "llm": LLM, **sizes, **options})

    inputs = random_inputs(3, 4, 5, history=6, points=4)
    padded = _noise_in_padding(inputs)
    return Host(build=build, inputs=tuple(inputs[k] for k in ORDER), padded=tuple(padded[k] for k in ORDER), loss=_loss)


def _as_tensor(output: dict[str, Tensor]) -> Tensor:
    return torch.cat([value.flatten(1) for value in output.values()], dim=1)


CASES = [
    pytest.param(check, kind, variant, id=f"{check.__name__}-{kind}-{variant}")
    for check in CONTRACT
    for kind in HOSTS
    for variant in VARIANTS
    if (check is not compiles or variant == "before") and (kind == "vectornet" or variant in ("before", "after"))
]


@pytest.mark.parametrize(("check", "kind", "variant"), CASES)
def test_contract(check: Callable[[Host], None], kind: str, variant: str) -> None:
    check(_host(kind, **VARIANTS[variant]))


class _Blind(VectorNet):
    """A host whose frozen layer does not know what is padding."""

    def token_mask(self, inputs: Any) -> Tensor:
        return torch.ones_like(super().token_mask(inputs))


class _WrongToken(VectorNet):
    """A host that reads another token where it takes the shortcut."""

    def decode(self, tokens: Tensor, inputs: Any, *rest: Any) -> dict[str, Tensor]:
        return self.decoder(tokens[:, 0 if self.llm.exact == "dense" else -1])

    reads_target_token = False


@pytest.mark.parametrize(("kind", "check"), [(_WrongToken, shortcuts_equal_dense)])
def test_the_contract_finds_a_broken_host(kind: type[nn.Module], check: Callable[[Host], None]) -> None:
    sound = _host("vectornet")

    def build() -> nn.Module:
        model = sound.build()
        model.__class__ = kind
        return model

    with pytest.raises(AssertionError):
        check(Host(build=build, inputs=sound.inputs, padded=sound.padded, loss=_loss))


def test_more_padding_changes_a_host_without_masks() -> None:
    """What `test_motion_models` relies on: a host that ignores its mask is found by adding padding."""
    sound = _host("vectornet").build().eval()
    blind = _host("vectornet").build().eval()
    blind.__class__ = _Blind
    small, large = random_inputs(1, 4, 5, history=6, points=4), random_inputs(1, 4, 5, history=6, points=4)
    large["lanes"] = torch.cat([large["lanes"], torch.zeros(1, 9, 4, 4)], dim=1)
    large["lanes_valid"] = torch.cat([large["lanes_valid"], torch.zeros(1, 9, 4, dtype=torch.bool)], dim=1)
    large["lane_attributes"] = torch.cat([large["lane_attributes"], torch.zeros(1, 9, 8)], dim=1)
    with torch.no_grad():
        torch.testing.assert_close(_as_tensor(sound(**small)), _as_tensor(sound(**large)))
        assert (_as_tensor(blind(**small)) - _as_tensor(blind(**large))).abs().max() > 1e-3
