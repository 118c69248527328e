"""Which lanes an agent truly drives on, from its future and the geometry of the map: the data sets do not say."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

from frozenllm.motion.scene import LANE_ATTRIBUTES

REACH = 2.0
"""Metres from a lane's centreline within which an agent is on it: half a lane's width, and a little."""
ANGLE = 45.0
"""Degrees that its way may differ from the lane's, so that neither crossing nor oncoming lanes count."""
WINDOW = 5
"""Steps before and after, between whose positions the direction of its way is taken: noise turns single steps."""
MOVES = 1.0
"""Metres that it must get on within this window: what stands has no direction."""
STEPS = 3
"""Steps on a lane that make it a driven one."""


def driven_lanes(inputs: Mapping[str, Tensor], future: Tensor, valid: Tensor) -> Tensor:
    """The lanes that the target drives on after the present.

    At every future step it is on the nearest of the centrelines that are within `REACH` and run its way; a lane on
    which it is for `STEPS` steps or more is driven. All numbers are chosen.

    Args:
        inputs: A batch of `frozenllm.motion.data`.
        future: (B, T, 2) metres, the target's positions.
        valid: (B, T) bool, which of them are known.

    Returns:
        (B, L) bool; crossings and padding are never driven.
    """
    crossing = inputs["lane_attributes"][..., LANE_ATTRIBUTES.index("crossing")] > 0.5
    usable = inputs["lanes_valid"] & ~crossing[..., None]
    rows = zip(inputs["lanes"].float(), usable, future.float(), valid, strict=True)
    return torch.stack([_driven(*row) for row in rows])


def _driven(lanes: Tensor, usable: Tensor, future: Tensor, valid: Tensor) -> Tensor:
    driven = torch.zeros(len(lanes), dtype=torch.bool, device=lanes.device)
    places, direction = _way(future, valid)
    if not len(places) or not usable.any():
        return driven
    owner = usable.nonzero()[:, 0]
    start, step = lanes[usable][:, :2], lanes[usable][:, 2:4]
    along = ((places[:, None] - start) * step).sum(-1) / step.square().sum(-1).clamp_min(1e-9)
    nearest = start + along.clamp(0, 1)[..., None] * step
    distance = (places[:, None] - nearest).norm(dim=-1)  # (steps, vectors)
    same_way = direction @ F.normalize(step, dim=-1).T > torch.tensor(ANGLE).deg2rad().cos()
    distance = distance.masked_fill(~same_way | (distance > REACH), torch.inf)
    best, vector = distance.min(dim=1)
    counts = torch.bincount(owner[vector[best.isfinite()]], minlength=len(lanes))
    return counts >= STEPS


def _way(future: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
    """Positions (n, 2) and unit directions (n, 2) of the known steps in which the agent gets on."""
    origin = future.new_zeros(1, 2)  # the present: samples are centred on it
    places = torch.cat([origin, future[valid]])
    steps = torch.arange(len(places), device=places.device)
    ahead = places[(steps + WINDOW).clamp_max(len(places) - 1)]
    moved = ahead - places[(steps - WINDOW).clamp_min(0)]
    length = moved.norm(dim=-1)
    moving = (length > MOVES) & (steps > 0)
    return places[moving], moved[moving] / length[moving, None]
