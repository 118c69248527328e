"""Random batches of the form that motion models read: for tests and benchmarks."""

from __future__ import annotations

import torch
from torch import Tensor

from frozenllm.motion.scene import AGENT_FEATURES, AGENT_TYPES, LANE_ATTRIBUTES, LANE_FEATURES


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
