"""Toy shapes: points on the surfaces of solids of random proportions, as a scan would see them.

Every cloud is turned about its upright axis, loses the points of one side, and is noisy; ``objectbg`` adds pieces of a
floor and a wall, ``hardest`` moves, turns and scales as well. No class is told by its size.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

__all__ = ["SHAPES", "make_clouds"]

_TURN = 2 * np.pi


def _sphere(rng: np.random.Generator, count: int) -> np.ndarray:
    directions = rng.normal(size=(count, 3))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    return directions * rng.uniform(0.8, 1.2, 3)


def _box(rng: np.random.Generator, count: int) -> np.ndarray:
    half = rng.uniform(0.5, 1.0, 3)
    area = np.array([half[1] * half[2], half[0] * half[2], half[0] * half[1]])
    axis = rng.choice(3, size=count, p=area / area.sum())
    points = rng.uniform(-1, 1, (count, 3))
    points[np.arange(count), axis] = rng.choice([-1.0, 1.0], count)
    return points * half


def _cylinder(rng: np.random.Generator, count: int) -> np.ndarray:
    height = rng.uniform(0.8, 1.4)
    angle, side = rng.uniform(0, _TURN, count), rng.random(count) < height / (height + 0.6)
    radius = np.where(side, 0.6, 0.6 * np.sqrt(rng.random(count)))
    y = np.where(side, rng.uniform(-height, height, count), rng.choice([-height, height], count))
    return np.stack([radius * np.cos(angle), y, radius * np.sin(angle)], 1)


def _cone(rng: np.random.Generator, count: int) -> np.ndarray:
    height, angle = rng.uniform(1.0, 1.6), rng.uniform(0, _TURN, count)
    share = np.sqrt(rng.random(count))  # from the tip down, by area
    base = rng.random(count) < 0.25
    radius = 0.8 * np.where(base, np.sqrt(rng.random(count)), share)
    y = height * np.where(base, -0.5, 0.5 - share)
    return np.stack([radius * np.cos(angle), y, radius * np.sin(angle)], 1)


def _torus(rng: np.random.Generator, count: int) -> np.ndarray:
    tube, angle, around = rng.uniform(0.2, 0.35), rng.uniform(0, _TURN, count), rng.uniform(0, _TURN, count)
    radius = 0.8 + tube * np.cos(around)
    return np.stack([radius * np.cos(angle), tube * np.sin(around), radius * np.sin(angle)], 1)


def _stairs(rng: np.random.Generator, count: int) -> np.ndarray:
    steps, width = int(rng.integers(3, 5)), rng.uniform(0.5, 0.9)
    step, along = rng.integers(0, steps, count), rng.random(count)
    tread = rng.random(count) < 0.5
    x = (step + np.where(tread, along, 0.0)) / steps
    y = (step + np.where(tread, 1.0, along)) / steps
    return np.stack([2 * x - 1, 2 * y - 1, rng.uniform(-width, width, count)], 1)


def _table(rng: np.random.Generator, count: int) -> np.ndarray:
    width, depth, height = rng.uniform(0.7, 1.0), rng.uniform(0.6, 0.9), rng.uniform(0.6, 1.0)
    top = rng.random(count) < 0.6
    legs = rng.choice([-0.85, 0.85], (count, 2)) + rng.uniform(-0.06, 0.06, (count, 2))
    flat = np.where(top[:, None], rng.uniform(-1, 1, (count, 2)), legs) * [width, depth]
    y = np.where(top, height, rng.uniform(-height, height, count))
    return np.stack([flat[:, 0], y, flat[:, 1]], 1)


def _chair(rng: np.random.Generator, count: int) -> np.ndarray:
    width, height = rng.uniform(0.5, 0.7), rng.uniform(0.7, 1.0)
    part = rng.choice(3, size=count, p=[0.4, 0.35, 0.25])  # seat, back, legs
    u, v = rng.uniform(-1, 1, count), rng.uniform(-1, 1, count)
    legs = rng.choice([-0.9, 0.9], (2, count))
    x = width * np.choose(part, [u, u, legs[0]])
    y = np.choose(part, [np.zeros(count), height * (v + 1) / 2, height * (v - 1) / 2])
    z = width * np.choose(part, [v, np.full(count, -1.0), legs[1]])
    return np.stack([x, y, z], 1)


SHAPES: dict[str, Callable[[np.random.Generator, int], np.ndarray]] = {
    "sphere": _sphere,
    "box": _box,
    "cylinder": _cylinder,
    "cone": _cone,
    "torus": _torus,
    "stairs": _stairs,
    "table": _table,
    "chair": _chair,
}
"""The classes, in the order of their numbers: points ``(count, 3)`` on a random member's surface, y upright."""


def make_clouds(
    count: int, points: int, *, variant: str = "objectonly", seed: int = 0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Clouds ``(count, points, 3)`` float32 in the unit sphere, classes ``(count,)``, as many of each, and which points
    are on the object, ``(count, points)`` bool.

    Args:
        count: Number of clouds.
        points: Points of a cloud.
        variant: ``"objectonly"``, ``"objectbg"`` or ``"hardest"``; ``"clean"``: neither hidden nor noisy.
        seed: Of everything.
    """
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.arange(count) % len(SHAPES))
    makers = list(SHAPES.values())
    scans = [_scan(rng, makers[label], points, variant) for label in labels]
    clouds, on_object = (np.stack(arrays) for arrays in zip(*scans, strict=True))
    return clouds.astype(np.float32), labels, on_object


def _scan(
    rng: np.random.Generator, maker: Callable[..., np.ndarray], points: int, variant: str
) -> tuple[np.ndarray, np.ndarray]:
    on_object = np.ones(points, dtype=bool)
    whole = maker(rng, 2 * points)
    whole = whole @ _rotation(1, rng.uniform(0, _TURN))
    if variant == "clean":
        return _unit(whole[:points]), on_object
    if variant == "hardest":
        whole = whole @ _rotation(int(rng.choice([0, 2])), rng.uniform(-0.3, 0.3)) * rng.uniform(0.75, 1.25, 3)
    view = rng.normal(size=3)
    seen = whole[np.argsort(whole @ view)[-int(rng.uniform(0.6, 0.9) * len(whole)) :]]  # the far side is hidden
    cloud = _unit(rng.permutation(seen)[:points])
    if variant in ("objectbg", "hardest"):
        others = int(0.12 * points)
        flat = rng.uniform(-1, 1, (others, 2))
        floor, wall = np.insert(flat, 1, cloud[:, 1].min(), axis=1), np.insert(flat, 2, cloud[:, 2].min() - 0.1, axis=1)
        cloud[:others] = np.where(rng.random((others, 1)) < 0.5, floor, wall)
        on_object[:others] = False
    if variant == "hardest":
        cloud = _unit(cloud) + rng.uniform(-0.2, 0.2, 3)
    noisy = cloud + rng.normal(scale=0.02, size=cloud.shape)
    order = rng.permutation(points)
    return noisy[order], on_object[order]


def _unit(cloud: np.ndarray) -> np.ndarray:
    cloud = cloud - cloud.mean(axis=0)
    return cloud / np.linalg.norm(cloud, axis=1).max()


def _rotation(axis: int, angle: float) -> np.ndarray:
    a, b = (i for i in range(3) if i != axis)
    matrix = np.eye(3)
    matrix[[a, a, b, b], [a, b, a, b]] = np.cos(angle), -np.sin(angle), np.sin(angle), np.cos(angle)
    return matrix
