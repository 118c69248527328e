"""One traffic scene, whatever data set it comes from, and the names of what a model reads of it.

A `Scene` is in the city frame (metres, float64). What a model gets is the agent-centred sample that
`frozenllm.motion.data.centre` makes of it: origin at the target's last observed position, x axis along its heading
there, everything float32. The columns of a sample's arrays are named here.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

STEP_SECONDS = 0.1
"""Both Argoverse data sets are sampled at 10 Hz."""

AGENT_FEATURES = ("x", "y", "dx", "dy", "cos_heading", "sin_heading", "t")
"""Last axis of ``agents``: position (m), displacement since the step before (m, 0 where that step is not observed),
direction (both 0 where it is unknown), time (s, 0 at the last step of the history and negative before)."""

AGENT_TYPES = (
    "vehicle",
    "pedestrian",
    "motorcyclist",
    "cyclist",
    "bus",
    "static",
    "background",
    "construction",
    "riderless_bicycle",
    "unknown",
)
"""Meaning of ``agent_type``: Argoverse 2's object types. Of Argoverse 1, AGENT and AV are vehicles, OTHERS unknown."""

LANE_FEATURES = ("x", "y", "dx", "dy")
"""Last axis of ``lanes``: start of a vector (m), and from there to its end (m)."""

LANE_ATTRIBUTES = (
    "is_intersection",
    "turn_left",
    "turn_right",
    "traffic_control",
    "vehicle",
    "bike",
    "bus",
    "crossing",
)
"""Last axis of ``lane_attributes``, each 0 or 1. Argoverse 2 has no turn direction and no traffic control, Argoverse 1
no bike and bus lanes and no crossings; these stay 0 there."""


EARTH = 2.1e7
"""Metres beyond which a coordinate is damage: half of the planet's circumference."""

FULL_TURNS = 1e4
"""Radians beyond which a heading is damage, in float32 no direction any more."""


def on_earth(points: np.ndarray) -> np.ndarray:
    """Which points (..., 2) have coordinates that are numbers, of a size that metres can have; (...) bool."""
    return (np.abs(points) <= EARTH).all(axis=-1)


@dataclass(frozen=True)
class MapPolylines:
    """Centrelines of lanes and outlines of pedestrian crossings in the city frame.

    Attributes:
        points: (L, P, 2) float64 metres; rows with fewer points repeat their last one.
        counts: (L,) int64, points per polyline, at least 2.
        attributes: (L, len(LANE_ATTRIBUTES)) float32.
    """

    points: np.ndarray
    counts: np.ndarray
    attributes: np.ndarray

    def __len__(self) -> int:
        return len(self.points)

    def __getitem__(self, index: np.ndarray) -> MapPolylines:
        """The polylines that an index or mask array picks."""
        return MapPolylines(self.points[index], self.counts[index], self.attributes[index])

    @classmethod
    def from_lists(cls, lines: list[np.ndarray], attributes: list[np.ndarray]) -> MapPolylines:
        """From one (P_i, 2) array and one attribute row per polyline; none at all gives an empty map."""
        counts = np.array([len(line) for line in lines], dtype=np.int64)
        longest = int(counts.max()) if len(lines) else 2
        points = np.zeros((len(lines), longest, 2))
        for row, line in zip(points, lines, strict=True):
            row[: len(line)] = line
            row[len(line) :] = line[-1]
        stacked = np.stack(attributes) if attributes else np.zeros((0, len(LANE_ATTRIBUTES)))
        return cls(points, counts, stacked.astype(np.float32))


@dataclass(frozen=True)
class Scene:
    """Tracks and map of one scenario in the city frame.

    Attributes:
        scenario: Its id.
        city: Name of the city.
        tracks: Ids of the A tracks.
        types: (A,) int64 into `AGENT_TYPES`.
        positions: (A, T, 2) float64 metres; anything where ``valid`` is False.
        headings: (A, T) float64 radians; NaN where unknown.
        valid: (A, T) bool: the track has a state at that step.
        target: Row of the track to predict.
        present: Number of steps before the prediction.
        polylines: The map around, or all of it.
    """

    scenario: str
    city: str
    tracks: tuple[str, ...]
    types: np.ndarray
    positions: np.ndarray
    headings: np.ndarray
    valid: np.ndarray
    target: int
    present: int
    polylines: MapPolylines

    def moved(self, angle: float, shift: tuple[float, float]) -> Scene:
        """The same scene, rotated about the city's origin and then shifted.

        Args:
            angle: Radians, anticlockwise.
            shift: Metres.
        """
        turn = rotation(angle).T
        return replace(
            self,
            positions=self.positions @ turn + np.asarray(shift),
            headings=self.headings + angle,
            polylines=replace(self.polylines, points=self.polylines.points @ turn + np.asarray(shift)),
        )


def rotation(angle: float) -> np.ndarray:
    """(2, 2) float64 matrix that turns column vectors anticlockwise by ``angle`` radians."""
    cos, sin = np.cos(angle), np.sin(angle)
    return np.array([[cos, -sin], [sin, cos]])


def to_city(points: np.ndarray, origin: np.ndarray, heading: float) -> np.ndarray:
    """Points of an agent frame in the city frame.

    Args:
        points: (..., 2) metres.
        origin: (2,) the agent's position in the city frame, metres.
        heading: The agent's heading in the city frame, radians.

    Returns:
        (..., 2) float64.
    """
    return np.asarray(points, dtype=np.float64) @ rotation(heading).T + np.asarray(origin, dtype=np.float64)


def to_agent(points: np.ndarray, origin: np.ndarray, heading: float) -> np.ndarray:
    """Points of the city frame in an agent frame; the inverse of `to_city`."""
    return (np.asarray(points, dtype=np.float64) - np.asarray(origin, dtype=np.float64)) @ rotation(heading)
