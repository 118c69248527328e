"""A small made-up city: curved roads between crossings, lanes that turn, merge and lie side by side.

Right-hand traffic. Roads from west to east are avenues with two lanes each way, those from south to north streets with
one. Every lane ends in at least one other, so traffic never runs out of road.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np

LANE_WIDTH = 3.5
POINTS = 10
"""Points of a centreline, as both Argoverse data sets have them."""

_GRID = 4
_SPACING = 95.0
_CLEARANCE = 13.0  # from the middle of an intersection to where its roads begin
_PIECE = 22.0  # metres of road that one lane segment covers, about
_TURN = np.deg2rad(35)


@dataclass
class Lane:
    """One lane segment.

    Attributes:
        id: Unique in its city.
        centerline: (POINTS, 2) metres.
        turn: ``"NONE"``, ``"LEFT"`` or ``"RIGHT"``.
        intersection: The node that the lane crosses; None on a road.
        controlled: A traffic light or stop sign stands before it.
        successors: Ids of the lanes that go on.
        predecessors: Ids of the lanes that lead here.
        left: Id of the neighbour on the left that runs the same way, or None.
        right: The same on the right.
    """

    id: int
    centerline: np.ndarray
    turn: str = "NONE"
    intersection: int | None = None
    controlled: bool = False
    successors: list[int] = field(default_factory=list)
    predecessors: list[int] = field(default_factory=list)
    left: int | None = None
    right: int | None = None


@dataclass
class City:
    """Lanes by id, crossings, and what is road.

    Attributes:
        lanes: All lane segments.
        nodes: (N, 2) middles of the intersections.
        approaches: Ids of the lane segments that end at an intersection, per node.
        crossings: (2, 2, 2) arrays: two edges of two points each, along the way of the pedestrians.
        areas: Open outlines of roads and intersections, (n, 2) each.
    """

    lanes: dict[int, Lane]
    nodes: np.ndarray
    approaches: list[list[int]]
    crossings: list[np.ndarray]
    areas: list[np.ndarray]


def resample(line: np.ndarray, count: int) -> np.ndarray:
    """``count`` points at equal distances along a polyline (n, 2)."""
    along = np.concatenate([[0.0], np.cumsum(np.linalg.norm(np.diff(line, axis=0), axis=1))])
    places = np.linspace(0.0, along[-1], count)
    return np.stack([np.interp(places, along, line[:, axis]) for axis in range(line.shape[1])], axis=1)


def offset(line: np.ndarray, distance: float) -> np.ndarray:
    """The polyline (n, 2) that runs ``distance`` metres to the right of another."""
    step = np.gradient(line, axis=0)
    step /= np.linalg.norm(step, axis=1, keepdims=True)
    return line + distance * np.stack([step[:, 1], -step[:, 0]], axis=1)


def _bezier(corners: list[np.ndarray], count: int) -> np.ndarray:
    """A quadratic or cubic curve."""
    t = np.linspace(0.0, 1.0, count)[:, None]
    points = [np.broadcast_to(corner, (count, 2)) for corner in corners]
    while len(points) > 1:  # de Casteljau
        points = [(1 - t) * a + t * b for a, b in pairwise(points)]
    return points[0]


class _Builder:
    def __init__(self, seed: int, centre: tuple[float, float]) -> None:
        self.rng = np.random.default_rng(seed)
        grid = np.stack(np.meshgrid(np.arange(_GRID), np.arange(_GRID), indexing="ij"), axis=-1).reshape(-1, 2)
        middle = (grid - (_GRID - 1) / 2) * _SPACING
        self.nodes = middle + self.rng.uniform(-12, 12, middle.shape) + np.asarray(centre)
        self.controlled = self.rng.random(len(grid)) < 0.6
        self.lanes: dict[int, Lane] = {}
        self.incoming: list[list[list[int]]] = [[] for _ in grid]  # per node, per road: last segments, left to right
        self.outgoing: list[list[list[int]]] = [[] for _ in grid]
        self.areas: list[np.ndarray] = []
        self.crossings: list[np.ndarray] = []

    def build(self) -> City:
        for x in range(_GRID):
            for y in range(_GRID):
                if x + 1 < _GRID:
                    self._road(x * _GRID + y, (x + 1) * _GRID + y, lanes=2)
                if y + 1 < _GRID:
                    self._road(x * _GRID + y, x * _GRID + y + 1, lanes=1)
        for node in range(len(self.nodes)):
            self._intersection(node)
        for lane in self.lanes.values():
            for successor in lane.successors:
                self.lanes[successor].predecessors.append(lane.id)
        approaches = [[lane for road in roads for lane in road] for roads in self.incoming]
        return City(self.lanes, self.nodes, approaches, self.crossings, self.areas)

    def _add(self, line: np.ndarray, **fields: object) -> Lane:
        lane = Lane(1000 + len(self.lanes), resample(line, POINTS), **fields)  # type: ignore[arg-type]
        self.lanes[lane.id] = lane
        return lane

    def _road(self, start: int, end: int, lanes: int) -> None:
        a, b = self.nodes[start], self.nodes[end]
        along = (b - a) / np.linalg.norm(b - a)
        bow = self.rng.uniform(-22, 22) * np.array([along[1], -along[0]])
        middle = _bezier([a + _CLEARANCE * along, (a + b) / 2 + bow, b - _CLEARANCE * along], 80)
        half = LANE_WIDTH * lanes
        self.areas.append(resample(np.concatenate([offset(middle, -half), offset(middle, half)[::-1]]), 40))
        for node, line in ((start, middle[::-1]), (end, middle)):
            if self.rng.random() < 0.7:
                self.crossings.append(self._crossing(line, half))
            # Lanes that lead to `node`, from the inner to the outer one; they leave the other end.
            columns = [self._column(offset(line, (k + 0.5) * LANE_WIDTH)) for k in range(lanes)]
            for inner, outer in pairwise(columns):
                for left, right in zip(inner, outer, strict=True):
                    left.right, right.left = right.id, left.id
            self.incoming[node].append([column[-1].id for column in columns])
            self.outgoing[end if node == start else start].append([column[0].id for column in columns])

    def _column(self, line: np.ndarray) -> list[Lane]:
        """One lane of a road, cut into segments that follow each other."""
        pieces = max(1, round(_SPACING / _PIECE) - 1)
        dense = resample(line, pieces * 12 + 1)
        column = [self._add(dense[12 * piece : 12 * piece + 13]) for piece in range(pieces)]
        for lane, successor in pairwise(column):
            lane.successors.append(successor.id)
        return column

    def _crossing(self, line: np.ndarray, half: float) -> np.ndarray:
        """Across a road, 2 to 5 m before the end of its middle line (n, 2)."""
        end, before = line[-1], line[-6]
        along = (end - before) / np.linalg.norm(end - before)
        across = np.array([-along[1], along[0]]) * (half + 0.5)
        edges = [end - back * along for back in (2.0, 5.0)]
        return np.stack([np.stack([edge - across, edge + across]) for edge in edges])

    def _intersection(self, node: int) -> None:
        ring = np.linspace(0, 2 * np.pi, 12, endpoint=False)
        self.areas.append(self.nodes[node] + (_CLEARANCE + 3) * np.stack([np.cos(ring), np.sin(ring)], axis=1))
        for arrival, lanes_in in enumerate(self.incoming[node]):
            for departure, lanes_out in enumerate(self.outgoing[node]):
                if arrival != departure:  # roads are listed in the same order both ways, and nobody turns round
                    self._connect(node, lanes_in, lanes_out)
            for lane in lanes_in:  # on a lane that none of the turns serves
                if not self.lanes[lane].successors:
                    departure = (arrival + 1) % len(self.outgoing[node])
                    self._link(node, lane, self.outgoing[node][departure][0])

    def _connect(self, node: int, lanes_in: list[int], lanes_out: list[int]) -> None:
        start, end = self.lanes[lanes_in[0]].centerline, self.lanes[lanes_out[0]].centerline
        angle = _angle(start[-1] - start[-2], end[1] - end[0])
        if angle > _TURN:
            pairs = [(lanes_in[0], lanes_out[0])]
        elif angle < -_TURN:
            pairs = [(lanes_in[-1], lanes_out[-1])]
        else:
            pairs = [(lane, lanes_out[min(k, len(lanes_out) - 1)]) for k, lane in enumerate(lanes_in)]
        for lane_in, lane_out in pairs:
            self._link(node, lane_in, lane_out)

    def _link(self, node: int, lane_in: int, lane_out: int) -> None:
        start, end = self.lanes[lane_in].centerline, self.lanes[lane_out].centerline
        reach = 0.55 * np.linalg.norm(end[0] - start[-1]) / np.sqrt(2)
        into = (start[-1] - start[-2]) / np.linalg.norm(start[-1] - start[-2])
        out = (end[1] - end[0]) / np.linalg.norm(end[1] - end[0])
        angle = _angle(into, out)
        turn = "LEFT" if angle > _TURN else "RIGHT" if angle < -_TURN else "NONE"
        line = _bezier([start[-1], start[-1] + reach * into, end[0] - reach * out, end[0]], 40)
        lane = self._add(line, turn=turn, intersection=node, controlled=bool(self.controlled[node]))
        self.lanes[lane_in].successors.append(lane.id)
        lane.successors.append(lane_out)


def _angle(a: np.ndarray, b: np.ndarray) -> float:
    """Radians from one direction to the other, anticlockwise."""
    return float(np.arctan2(a[0] * b[1] - a[1] * b[0], a @ b))


def make_city(seed: int, centre: tuple[float, float] = (0.0, 0.0)) -> City:
    """The city of a seed.

    Args:
        seed: Chooses where intersections lie, how roads bend, and which intersections are controlled.
        centre: Middle of the city, metres.
    """
    return _Builder(seed, centre).build()
