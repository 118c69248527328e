"""Made-up traffic: vehicles that follow lanes, turn, change lanes, stop and queue; pedestrians on crossings.

What moves is exact here; noise and gaps are added where the tracks are written.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from frozenllm.motion.scene import STEP_SECONDS
from frozenllm.motion.toy.city import City, Lane, resample

_STRIDE = 0.5  # metres between the points of a path
_AHEAD = 60  # points of its path that a driver watches
_BRAKE = 2.5  # m/s^2
_SIDEWAYS = 2.6  # m/s^2 in bends
_GAP = 7.0  # metres between the middles of queueing vehicles


@dataclass
class Motion:
    """One road user.

    Attributes:
        kind: ``"vehicle"`` or ``"pedestrian"``.
        positions: (T, 2) metres.
        headings: (T,) radians.
        speeds: (T,) m/s.
        changes_lane: Its way leads from one lane to the next.
    """

    kind: str
    positions: np.ndarray
    headings: np.ndarray
    speeds: np.ndarray
    changes_lane: bool = False


@dataclass
class _Path:
    points: np.ndarray  # (M, 2), _STRIDE apart
    headings: np.ndarray  # (M,)
    limit: np.ndarray  # (M,) m/s in bends, brakes taken in time
    stop: int | None  # point before a stop line, or None
    changes_lane: bool


def simulate(city: City, rng: np.random.Generator, node: int, steps: int) -> list[Motion]:
    """Traffic around one intersection.

    Args:
        city: Where.
        rng: All random choices.
        node: Index of the intersection.
        steps: Number of states, `STEP_SECONDS` apart.

    Returns:
        Vehicles first (4 to 8 that drive), then 0 to 2 that are parked, then pedestrians.
    """
    length = steps * STEP_SECONDS * 13.0 + _AHEAD * _STRIDE
    paths, starts, places = [], [], []
    for lane in rng.permutation(city.approaches[node])[: rng.integers(3, 6)]:
        back, first = rng.uniform(4, 4 + 0.7 * steps), city.lanes[int(lane)]
        while back > _length(first) and first.predecessors:
            back -= _length(first)
            first = city.lanes[int(rng.choice(first.predecessors))]
        for _ in range(2 if rng.random() < 0.35 else 1):  # the second one follows, or goes another way
            path = _path(city, rng, first, length)
            start = max(_length(first) - back, 0.0)
            where = path.points[int(start / _STRIDE)]
            if all(np.linalg.norm(taken - where) > 1.5 * _GAP for taken in places):
                paths.append(path)
                starts.append(start)
                places.append(where)
            if not first.predecessors:
                break
            first = city.lanes[first.predecessors[0]]
    vehicles = _drive(paths, starts, rng, steps)
    parked = [_parked(city, rng, node, steps) for _ in range(rng.integers(0, 3))]
    return vehicles + parked + _pedestrians(city, rng, node, steps)


def _length(lane: Lane) -> float:
    return float(np.linalg.norm(np.diff(lane.centerline, axis=0), axis=1).sum())


def _path(city: City, rng: np.random.Generator, lane: Lane, length: float) -> _Path:
    """The way of one vehicle from the start of a lane on."""
    lines, stop, driven, changed = [], None, 0.0, False
    while driven < length:
        line, neighbour = lane.centerline, lane.left if lane.left is not None else lane.right
        if neighbour is not None and not changed and rng.random() < 0.15:
            other, changed = city.lanes[neighbour], True
            t = np.linspace(0, 1, len(line))[:, None]
            line = line + (3 * t**2 - 2 * t**3) * (other.centerline - line)
            lane = other
        lines.append(line if not lines else line[1:])
        driven += _length(lane)
        ways = [city.lanes[i] for i in lane.successors]
        straight = np.array([1.0 + (way.turn == "NONE") for way in ways])
        following = ways[int(rng.choice(len(ways), p=straight / straight.sum()))]
        if following.controlled and lane.intersection is None and stop is None and rng.random() < 0.4:
            stop = int((driven - 2.0) / _STRIDE)
        lane = following
    dense = np.concatenate(lines)
    points = resample(dense, int(np.linalg.norm(np.diff(dense, axis=0), axis=1).sum() / _STRIDE) + 1)
    step = np.gradient(points, axis=0)
    headings = np.unwrap(np.arctan2(step[:, 1], step[:, 0]))
    smooth = np.ones(9) / 9
    bend = np.abs(np.convolve(np.gradient(np.pad(headings, 4, mode="edge")), smooth, mode="valid")) / _STRIDE
    limit = np.sqrt(_SIDEWAYS / np.maximum(bend, 1e-3))
    for point in range(len(limit) - 2, -1, -1):
        limit[point] = min(limit[point], np.sqrt(limit[point + 1] ** 2 + 2 * _BRAKE * 0.7 * _STRIDE))
    return _Path(points, headings, limit, stop, changed)


def _drive(paths: list[_Path], starts: list[float], rng: np.random.Generator, steps: int) -> list[Motion]:
    """All vehicles at once, each behind whoever is on its way."""
    count, size = len(paths), max(len(path.points) for path in paths)
    points, limit, headings = np.zeros((count, size, 2)), np.zeros((count, size)), np.zeros((count, size))
    for row, path in enumerate(paths):
        points[row], limit[row], headings[row] = path.points[-1], path.limit[-1], path.headings[-1]
        points[row, : len(path.points)] = path.points
        limit[row, : len(path.limit)] = path.limit
        headings[row, : len(path.headings)] = path.headings
    stop = np.array([np.inf if path.stop is None else path.stop * _STRIDE for path in paths])
    waits = rng.uniform(1.0, 6.0, count)
    wish, along = rng.uniform(6.5, 12.0, count), np.array(starts)
    rows, ahead = np.arange(count)[:, None], np.arange(_AHEAD)
    speed = np.minimum(wish, limit[np.arange(count), (along / _STRIDE).astype(int)])
    track, turn, fast = np.zeros((count, steps, 2)), np.zeros((count, steps)), np.zeros((count, steps))
    for step in range(steps):
        at = np.clip(along / _STRIDE, 0, size - 1.001)
        low, part = at.astype(int), (at % 1)[:, None]
        track[:, step] = points[rows[:, 0], low] * (1 - part) + points[rows[:, 0], low + 1] * part
        turn[:, step] = headings[rows[:, 0], low] * (1 - part[:, 0]) + headings[rows[:, 0], low + 1] * part[:, 0]
        fast[:, step] = speed
        window = points[rows, np.minimum(low[:, None] + ahead, size - 1)]  # (N, _AHEAD, 2)
        distance = np.linalg.norm(window[:, :, None] - track[None, None, :, step], axis=-1)
        blocked = distance < 1.6
        blocked[np.arange(count), :, np.arange(count)] = False
        # Those side by side or a little behind on a merging way are no obstacle: the one in front goes first.
        gap = np.where(blocked[:, 4:].any(axis=2), (ahead[4:] * _STRIDE)[None], np.inf).min(axis=1) - _GAP
        stop[(waits < 0) | (along > stop)] = np.inf
        to_line = stop - along
        room = np.maximum(np.minimum(gap, to_line), 0.0)
        target = np.minimum(np.minimum(wish, limit[rows[:, 0], low]), np.sqrt(2 * _BRAKE * 0.6 * room))
        speed = np.maximum(speed + np.clip(target - speed, -1.6 * _BRAKE * STEP_SECONDS, 1.8 * STEP_SECONDS), 0.0)
        waits = np.where((to_line < 2.5) & (speed < 0.6), waits - STEP_SECONDS, waits)
        along = along + speed * STEP_SECONDS
    return [Motion("vehicle", track[row], turn[row], fast[row], path.changes_lane) for row, path in enumerate(paths)]


def _parked(city: City, rng: np.random.Generator, node: int, steps: int) -> Motion:
    """A vehicle at the right edge of a road."""
    lane = city.lanes[int(rng.choice(city.approaches[node]))]
    lane = city.lanes[lane.predecessors[0]] if lane.predecessors else lane
    while lane.right is not None:
        lane = city.lanes[lane.right]
    step = lane.centerline[5] - lane.centerline[4]
    step /= np.linalg.norm(step)
    place = lane.centerline[int(rng.integers(1, 9))] + 2.8 * np.array([step[1], -step[0]])
    heading = float(np.arctan2(step[1], step[0]))
    return Motion("vehicle", np.tile(place, (steps, 1)), np.full(steps, heading), np.zeros(steps))


def _pedestrians(city: City, rng: np.random.Generator, node: int, steps: int) -> list[Motion]:
    """People who walk over the crossings of an intersection, from some way before the kerb to some way behind it."""
    walkers = []
    for edges in city.crossings:
        if np.linalg.norm(edges.mean(axis=(0, 1)) - city.nodes[node]) > 30 or rng.random() < 0.6:
            continue
        start, end = edges[:, 0].mean(axis=0), edges[:, 1].mean(axis=0)
        if rng.random() < 0.5:
            start, end = end, start
        across = np.linalg.norm(end - start)
        along = (end - start) / across
        speed, begin = rng.uniform(1.1, 1.8), rng.uniform(-0.5, 0.7) * steps * STEP_SECONDS
        way = np.clip((np.arange(steps) * STEP_SECONDS - begin) * speed, -4.0, across + 4.0)
        moving = (way > -4.0) & (way < across + 4.0)
        heading = float(np.arctan2(along[1], along[0]))
        side = rng.uniform(-1.0, 1.0) * np.array([-along[1], along[0]])
        track = start + side + way[:, None] * along
        walkers.append(Motion("pedestrian", track, np.full(steps, heading), np.where(moving, speed, 0.0)))
    return walkers
