"""Clips of one digit on a circle of places and sizes, and what is known about them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image

CLASSES = ("left", "right", "approaching", "leaving")
"""Short names by class index."""

_SMALLEST, _LARGEST = 0.3, 0.85  # height of the digit, in heights of the frame


@dataclass(frozen=True)
class Clip:
    """One video, and what is known about it.

    Attributes:
        frames: ``(T, S, S, 3)`` uint8.
        boxes: ``(T, 4)`` int, left, top, right and bottom of the digit's square in pixels; what reaches beyond the
            right edge comes back on the left.
        moves: ``(T,)`` bool, frames in which the digit is elsewhere, or of another size, than in the one before.
    """

    frames: np.ndarray
    boxes: np.ndarray
    moves: np.ndarray


def moving_digit(
    digit: np.ndarray, label: int, num_frames: int, size: int, rng: np.random.Generator, moving: int | None = None
) -> Clip:
    """One video.

    Args:
        digit: Ink of the digit, ``(8, 8)``, from 0 to 255.
        label: Index into `CLASSES`.
        num_frames: Frames.
        size: Width and height of a frame in pixels.
        rng: Draws the pairing of positions and sizes, their offsets, and where the motion begins.
        moving: Frames in which the digit moves; None for all.
    """
    count = num_frames if moving is None else moving
    places = np.arange(count)
    shift, row = rng.uniform(0, size), rng.uniform(-0.08, 0.08) * size
    colour = rng.uniform(0.6, 1.0, 3)
    heights = np.linspace(_SMALLEST, _LARGEST, count) * size
    # place[t] and rank[t]: which position and which size the digit has at step t of its motion.
    ordered, paired = (places + rng.integers(count)) % count, rng.permutation(count)
    place, rank = (ordered, paired) if label < 2 else (paired, ordered)
    if CLASSES[label] in ("left", "leaving"):
        place, rank = place[::-1], rank[::-1]
    moves = np.ones(num_frames, dtype=bool)
    steps = places
    if moving is not None:  # it rests where the motion ends, which is one step before where it begins
        start = int(rng.integers(num_frames - count + 1))
        steps = np.clip(np.arange(num_frames) - start, -1, count - 1)
        moves = (steps >= 0) & (np.diff(steps, prepend=-1) > 0)
    image = Image.fromarray(digit.astype(np.uint8))
    frames, boxes = np.zeros((num_frames, size, size, 3), np.uint8), np.zeros((num_frames, 4), np.int64)
    for time, step in enumerate(steps):
        side = max(2, round(heights[rank[step]]))
        sprite = np.asarray(image.resize((side, side), Image.Resampling.BICUBIC))
        canvas = np.zeros((size, size), np.uint8)
        top = int(np.clip(round((size - side) / 2 + row), 0, size - side))
        left = round(shift + place[step] * size / count - side / 2) % size
        canvas[top : top + side, :side] = sprite
        frames[time] = (np.roll(canvas, left, axis=1)[..., None] * colour).round()
        boxes[time] = left, top, left + side, top + side
    return Clip(frames, boxes, moves)
