"""From a scene in the city frame to the agent-centred sample that a model reads."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from frozenllm.core.training import BrokenSample
from frozenllm.motion.scene import (
    AGENT_FEATURES,
    FULL_TURNS,
    LANE_ATTRIBUTES,
    LANE_FEATURES,
    STEP_SECONDS,
    MapPolylines,
    Scene,
    on_earth,
    to_agent,
)


@dataclass(frozen=True)
class Window:
    """Which part of a scene a sample holds.

    Attributes:
        history: Observed steps.
        horizon: Steps to predict.
        radius: Metres around the target's last observed position: agents last observed there, and polylines with a
            point there, are in the sample.
        max_agents: The target and the nearest others; None for all.
        max_lanes: The nearest polylines; None for all.
        use_map: Whether there are polylines at all.

    Raises:
        ValueError: A value is out of range.
    """

    history: int
    horizon: int
    radius: float
    max_agents: int | None = None
    max_lanes: int | None = None
    use_map: bool = True

    def __post_init__(self) -> None:
        for name, least in (("history", 1), ("horizon", 1), ("max_agents", 1), ("max_lanes", 0)):
            value = getattr(self, name)
            if value is None and name.startswith("max_"):
                continue
            if isinstance(value, bool) or not isinstance(value, int):
                raise ValueError(f"{name} must be a whole number, not {value!r}.")
            if value < least:
                raise ValueError(f"{name} must be at least {least}, not {value}.")
        if isinstance(self.radius, bool) or not isinstance(self.radius, int | float) or not self.radius > 0:
            raise ValueError(f"radius must be a positive number of metres, not {self.radius!r}.")

    def check(self, data: str, history: int, horizon: int) -> None:
        """That a data set has as many steps.

        Raises:
            ValueError: It has fewer.
        """
        for name, most in (("history", history), ("horizon", horizon)):
            if getattr(self, name) > most:
                raise ValueError(f"{name} must be at most {most} steps for {data}, not {getattr(self, name)}.")

    def settings(self) -> dict[str, Any]:
        """The values by name, as JSON can hold them."""
        return asdict(self)


def centre(scene: Scene, window: Window) -> dict[str, Any]:
    """The sample of a scene.

    Where the target is missing at the last step of the history, its latest observed step takes that place: the frame
    is laid there, and its time is below 0. The future starts after the history all the same. A target whose direction
    is unknown there gets the x axis of the city.

    Args:
        scene: In the city frame. Missing steps of its future are not valid.
        window: What to take: the ``history`` steps before the scene's present, and ``horizon`` after.

    Returns:
        ``inputs``, ``targets``, ``scenario``, ``track``, ``origin``, ``heading`` as described in
        `frozenllm.motion.data`.

    Raises:
        BrokenSample: The target is not observed in the history at all, or a state is not finite.
    """
    history, begin = window.history, scene.present - window.history
    assert begin >= 0, "data sets check their window"
    valid = np.zeros((len(scene.tracks), history + window.horizon), dtype=bool)
    known = scene.valid[:, begin : begin + valid.shape[1]]
    valid[:, : known.shape[1]] = known
    positions = np.zeros((*valid.shape, 2))
    positions[:, : known.shape[1]] = scene.positions[:, begin : begin + valid.shape[1]]
    broken = valid & ~on_earth(positions)
    if broken.any():
        row, step = np.argwhere(broken)[0]
        what = "not a number" if not np.isfinite(positions[row, step]).all() else "not on this planet"
        raise BrokenSample(
            f"{scene.scenario}: the position of track {scene.tracks[row]} at step {begin + step} is {what}."
        )
    headings = scene.headings[:, begin : scene.present]
    if (np.abs(headings) > FULL_TURNS).any():
        raise BrokenSample(f"{scene.scenario}: a heading is infinite, or absurdly large.")
    seen = np.flatnonzero(valid[scene.target, :history])
    if not len(seen):
        raise BrokenSample(
            f"{scene.scenario}: the target {scene.tracks[scene.target]} is not observed in the {history} steps before "
            "the prediction."
        )
    origin = positions[scene.target, seen[-1]]
    heading = float(headings[scene.target, seen[-1]])
    heading = heading if np.isfinite(heading) else 0.0
    rows = _choose_agents(scene, positions[:, :history], valid[:, :history], origin, window)
    agents = _agents(positions[rows, :history], headings[rows], valid[rows, :history], origin, heading)
    polylines = _choose_polylines(scene.polylines, origin, window)
    future_valid = valid[scene.target, history:]
    future = to_agent(positions[scene.target, history:], origin, heading) * future_valid[:, None]
    return {
        "inputs": {
            "agents": torch.from_numpy(agents.astype(np.float32)),
            "agents_valid": torch.from_numpy(valid[rows, :history]),
            "agent_type": torch.from_numpy(scene.types[rows].astype(np.int64)),
            **_lanes(polylines, origin, heading),
        },
        "targets": {"future": torch.from_numpy(future.astype(np.float32)), "valid": torch.from_numpy(future_valid)},
        "scenario": scene.scenario,
        "track": scene.tracks[scene.target],
        "origin": torch.from_numpy(origin.copy()),
        "heading": torch.tensor(heading, dtype=torch.float64),
    }


def empty_sample(window: Window, scenario: str) -> dict[str, Any]:
    """What stands in for a broken sample in evaluation: one agent that stands still, no map, no future, no track."""
    agents = torch.zeros(1, window.history, len(AGENT_FEATURES))
    agents[0, :, AGENT_FEATURES.index("cos_heading")] = 1.0
    nothing = MapPolylines.from_lists([], [])
    return {
        "inputs": {
            "agents": agents,
            "agents_valid": torch.ones(1, window.history, dtype=torch.bool),
            "agent_type": torch.zeros(1, dtype=torch.int64),
            **_lanes(nothing, np.zeros(2), 0.0),
        },
        "targets": {
            "future": torch.zeros(window.horizon, 2),
            "valid": torch.zeros(window.horizon, dtype=torch.bool),
        },
        "scenario": scenario,
        "track": "",
        "origin": torch.zeros(2, dtype=torch.float64),
        "heading": torch.tensor(0.0, dtype=torch.float64),
    }


def _choose_agents(
    scene: Scene, positions: np.ndarray, valid: np.ndarray, origin: np.ndarray, window: Window
) -> np.ndarray:
    """Rows of the agents in the sample: the target first, the others in the order of the data."""
    steps = valid.shape[1]
    last = steps - 1 - valid[:, ::-1].argmax(axis=1)
    distance = np.linalg.norm(positions[np.arange(len(last)), last] - origin, axis=1)
    distance[~valid.any(axis=1)] = np.inf
    distance[scene.target] = -1.0
    near = np.flatnonzero(distance <= window.radius)
    near = near[np.argsort(distance[near], kind="stable")][: window.max_agents]
    others = np.sort(near[near != scene.target])
    return np.concatenate([[scene.target], others]).astype(np.int64)


def _agents(
    positions: np.ndarray, headings: np.ndarray, valid: np.ndarray, origin: np.ndarray, heading: float
) -> np.ndarray:
    """(A, history, len(AGENT_FEATURES)) float64; zeros where nothing is observed."""
    local = to_agent(positions, origin, heading)
    moved = np.zeros_like(local)
    both = valid[:, 1:] & valid[:, :-1]
    moved[:, 1:] = (local[:, 1:] - local[:, :-1]) * both[..., None]
    turned = headings - heading
    direction = np.stack([np.cos(turned), np.sin(turned)], axis=-1)
    direction = np.where(np.isfinite(turned)[..., None], direction, 0.0)
    steps = valid.shape[1]
    times = np.broadcast_to(((np.arange(steps) - (steps - 1)) * STEP_SECONDS)[:, None], (*valid.shape, 1))
    return np.concatenate([local, moved, direction, times], axis=-1) * valid[..., None]


def _choose_polylines(polylines: MapPolylines, origin: np.ndarray, window: Window) -> MapPolylines:
    """The polylines in the sample, in the order of the data."""
    if not window.use_map:
        return MapPolylines.from_lists([], [])
    distance = np.linalg.norm(polylines.points - origin, axis=-1).min(axis=1, initial=np.inf)
    near = np.flatnonzero(distance <= window.radius)
    near = near[np.argsort(distance[near], kind="stable")][: window.max_lanes]
    chosen = polylines[np.sort(near)]
    longest = int(chosen.counts.max(initial=2))
    return MapPolylines(chosen.points[:, :longest], chosen.counts, chosen.attributes)


def _lanes(polylines: MapPolylines, origin: np.ndarray, heading: float) -> dict[str, torch.Tensor]:
    points = to_agent(polylines.points, origin, heading)
    valid = np.arange(points.shape[1] - 1) < (polylines.counts - 1)[:, None]
    vectors = np.concatenate([points[:, :-1], np.diff(points, axis=1)], axis=-1) * valid[..., None]
    assert vectors.shape[-1] == len(LANE_FEATURES)
    assert polylines.attributes.shape[-1] == len(LANE_ATTRIBUTES)
    return {
        "lanes": torch.from_numpy(vectors.astype(np.float32)),
        "lanes_valid": torch.from_numpy(valid),
        "lane_attributes": torch.from_numpy(polylines.attributes.astype(np.float32)),
    }
