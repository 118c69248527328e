"""Random batches of the form that motion models read, and the hosts of this package at tiny widths: for tests and
benchmarks."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from frozenllm.core.testing import TINY_LLM, Host, Recipe
from frozenllm.motion.scene import AGENT_FEATURES, AGENT_TYPES, LANE_ATTRIBUTES, LANE_FEATURES
from frozenllm.motion.train import build_mmtransformer, build_vectornet


def random_inputs(
    batch: int = 2,
    agents: int = 5,
    lanes: int = 7,
    *,
    history: int = 20,
    points: int = 10,
    full: bool = False,
    seed: int = 0,
) -> dict[str, Tensor]:
    """Inputs of a model; the first sample fills the batch, the others have fewer agents and lanes, steps are missing.

    Args:
        batch: Samples.
        agents: Agents of the largest sample.
        lanes: Its lanes.
        history: Observed steps.
        points: Vectors per lane.
        full: No padding and no gaps.
        seed: Of the numbers.

    Returns:
        ``agents``, ``agents_valid``, ``agent_type``, ``lanes``, ``lanes_valid``, ``lane_attributes`` as described in
        `frozenllm.motion.scene`; zeros where nothing is valid.
    """
    draw = torch.Generator().manual_seed(seed)
    agents_valid = torch.ones(batch, agents, history, dtype=torch.bool)
    lanes_valid = torch.ones(batch, lanes, points, dtype=torch.bool)
    if not full:
        agents_valid &= torch.rand(agents_valid.shape, generator=draw) < 0.8
        lanes_valid &= torch.arange(points) < torch.randint(1, points + 1, (batch, lanes, 1), generator=draw)
        for sample in range(1, batch):
            agents_valid[sample, int(torch.randint(1, agents + 1, (), generator=draw)) :] = False
            lanes_valid[sample, int(torch.randint(0, lanes + 1, (), generator=draw)) :] = False
        agents_valid[:, 0, -1] = True
    scale = torch.tensor([30.0, 30.0, 1.0, 1.0, 1.0, 1.0, 1.0])[: len(AGENT_FEATURES)]
    tracks = torch.randn(batch, agents, history, len(AGENT_FEATURES), generator=draw) * scale
    lines = torch.randn(batch, lanes, points, len(LANE_FEATURES), generator=draw) * scale[: len(LANE_FEATURES)]
    kinds = torch.randint(len(AGENT_TYPES), (batch, agents), generator=draw)
    attributes = (torch.rand(batch, lanes, len(LANE_ATTRIBUTES), generator=draw) < 0.3).float()
    return {
        "agents": tracks.masked_fill(~agents_valid[..., None], 0.0),
        "agents_valid": agents_valid,
        "agent_type": kinds.masked_fill(~agents_valid.any(dim=-1), 0),
        "lanes": lines.masked_fill(~lanes_valid[..., None], 0.0),
        "lanes_valid": lanes_valid,
        "lane_attributes": attributes.masked_fill(~lanes_valid.any(dim=-1, keepdim=True), 0.0),
    }


def noise_in_padding(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same inputs with other values wherever nothing is valid."""
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


_ORDER = ("agents", "agents_valid", "agent_type", "lanes", "lanes_valid", "lane_attributes")
_SIZES: dict[Any, dict[str, Any]] = {
    build_vectornet: {"dim": 24, "width": 16, "hidden": 16},
    build_mmtransformer: {"dim": 16, "hidden": 24, "width": 8, "layers": 1, "position_dim": 8},
}


def _host(builder: Any, insert: str, compiled: bool = False, **options: Any) -> Host:
    inputs = random_inputs(3, 4, 5, history=6, points=4)
    padded = noise_in_padding(inputs)
    sizes = {"horizon": 12, "modes": 3, "llm": TINY_LLM, "insert": insert, **_SIZES[builder]}
    return Host(
        build=Recipe(builder, {**sizes, **options}),
        inputs=tuple(inputs[name] for name in _ORDER),
        padded=tuple(padded[name] for name in _ORDER),
        compiled=compiled,
    )


HOSTS = {
    "vectornet before": _host(build_vectornet, "before_decoder", compiled=True),
    "vectornet after": _host(build_vectornet, "after_subgraph"),
    "vectornet scales": _host(build_vectornet, "before_decoder", scales=True, modes=1),
    "vectornet two blocks": _host(build_vectornet, "before_decoder", llm={**TINY_LLM, "layers": [0, 1]}),
    "mmtransformer before": _host(build_mmtransformer, "before_decoder", compiled=True),
    "mmtransformer after": _host(build_mmtransformer, "after_subgraph"),
}
