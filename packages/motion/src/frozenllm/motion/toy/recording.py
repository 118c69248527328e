"""What a made-up car with sensors records of made-up traffic: noisy tracks with gaps, and one of them to predict."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from frozenllm.motion.scene import STEP_SECONDS
from frozenllm.motion.toy.city import City
from frozenllm.motion.toy.traffic import Motion, simulate


@dataclass
class Recording:
    """Tracks of one scenario; row 0 is the track to predict, row 1 the recording car.

    Attributes:
        kinds: ``"vehicle"`` or ``"pedestrian"``, per track.
        positions: (A, T, 2) metres.
        headings: (A, T) radians.
        velocities: (A, T, 2) m/s.
        valid: (A, T) bool.
    """

    kinds: list[str]
    positions: np.ndarray
    headings: np.ndarray
    velocities: np.ndarray
    valid: np.ndarray


def record(city: City, rng: np.random.Generator, history: int, steps: int, noise: float) -> Recording:
    """One scenario around an intersection of a city.

    Args:
        city: Where.
        rng: All random choices.
        history: Steps before the prediction.
        steps: All steps.
        noise: Standard deviation of recorded positions, metres.
    """
    while True:
        motions = simulate(city, rng, int(rng.integers(len(city.nodes))), steps)
        weights = np.array([_interest(motion, history) for motion in motions])
        if weights.any() and sum(motion.kind == "vehicle" for motion in motions) > 1:
            break
    target = int(rng.choice(len(motions), p=weights / weights.sum()))
    recorder = next(i for i, motion in enumerate(motions) if i != target and motion.kind == "vehicle")
    order = [target, recorder] + [i for i in range(len(motions)) if i not in (target, recorder)]
    motions = [motions[i] for i in order]
    positions = np.stack([motion.positions for motion in motions])
    headings = np.stack([motion.headings for motion in motions])
    speeds = np.stack([motion.speeds for motion in motions])
    velocities = speeds[..., None] * np.stack([np.cos(headings), np.sin(headings)], axis=-1)
    valid = np.stack([_seen(rng, row, history, steps) for row in range(len(motions))])
    return Recording(
        [motion.kind for motion in motions],
        positions + rng.normal(0, noise, positions.shape),
        np.angle(np.exp(1j * (headings + rng.normal(0, 0.02, headings.shape)))),
        velocities + rng.normal(0, 0.1, velocities.shape),
        valid,
    )


def _interest(motion: Motion, history: int) -> float:
    """Weight in the choice of the one to predict; as in Argoverse, those that turn, stop or change lanes stand out."""
    if motion.speeds[history - 1] < (1.0 if motion.kind == "pedestrian" else 2.0):
        return 0.0
    if motion.kind == "pedestrian":
        return 0.3
    turns = abs(motion.headings[-1] - motion.headings[history - 1]) > 0.5
    stops = motion.speeds[history:].min() < 1.0
    return 1.0 + turns + stops + motion.changes_lane


def _seen(rng: np.random.Generator, row: int, history: int, steps: int) -> np.ndarray:
    """(T,) bool: when a track has states."""
    valid = np.ones(steps, dtype=bool)
    if row == 1:  # a car always knows where it is
        return valid
    if row == 0:
        if rng.random() < 0.1:
            begin = int(rng.integers(1, history - 4))
            valid[begin : begin + int(rng.integers(1, 4))] = False
        return valid
    if rng.random() < 0.5:
        valid[: int(rng.integers(0, history))] = False
    if rng.random() < 0.3:
        valid[int(rng.integers(history, steps)) :] = False
    if rng.random() < 0.4:
        begin = int(rng.integers(0, steps - 5))
        valid[begin : begin + round(1.0 / STEP_SECONDS)] = False
    if not valid[:history].any():
        valid[history - 1] = True
    return valid
