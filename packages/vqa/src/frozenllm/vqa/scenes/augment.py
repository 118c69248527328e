"""Augmentation of a scene with somebody in it: points, boxes and the person's pose move together.

SQA3D's, which is ScanRefer's: flips along x and y, turns by up to 5 degrees about the three axes, and a shift of up to
0.5 m along each. Turns and shifts change nothing that the person sees. **A flip does: left and right change places**,
but not in the texts and answers. SQA3D flips all the same.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from frozenllm.vqa.scenes.pose import pose_of, rotation

_OWN_MIRROR = np.diag([1.0, -1.0, 1.0])  # the person's left and right: see `pose`


@dataclass(frozen=True)
class Augmentation:
    """How a scene is varied.

    Attributes:
        flip: Flip along x and along y, each with probability 1/2.
        degrees: Largest turn about each axis.
        metres: Largest shift along each axis.
    """

    flip: bool = True
    degrees: float = 5.0
    metres: float = 0.5

    def __post_init__(self) -> None:
        for name, value in (("degrees", self.degrees), ("metres", self.metres)):
            if isinstance(value, bool) or not isinstance(value, int | float) or not value >= 0:
                raise ValueError(f"data.augment: {name} must be a number from 0, not {value!r}.")
        if not isinstance(self.flip, bool):
            raise ValueError(f"data.augment: flip must be true or false, not {self.flip!r}.")

    def draw(self) -> Move:
        """A random move, from numpy's global generator."""
        signs = np.ones(3)
        if self.flip:
            signs[:2] = np.where(np.random.random(2) > 0.5, -1.0, 1.0)
        angles = np.random.uniform(-self.degrees, self.degrees, 3)
        shift = np.random.uniform(-self.metres, self.metres, 3)
        return Move.of(signs, angles, shift)


@dataclass(frozen=True)
class Move:
    """A point x goes to ``matrix @ x + shift``.

    Attributes:
        matrix: (3, 3), a rotation, or a rotation of a mirror image.
        shift: (3,), metres.
    """

    matrix: NDArray[np.float64]
    shift: NDArray[np.float64]

    @classmethod
    def of(cls, signs: NDArray[np.floating], degrees: NDArray[np.floating], shift: NDArray[np.floating]) -> Move:
        """First the signs of the axes, then turns about x, y and z in this order, then the shift (SQA3D's order)."""
        turn = np.eye(3)
        for axis, angle in enumerate(degrees):
            turn = _turn(axis, math.radians(float(angle))) @ turn
        return cls(turn * np.asarray(signs, dtype=np.float64), np.asarray(shift, dtype=np.float64))

    def points(self, xyz: NDArray[np.floating]) -> NDArray[np.float64]:
        """Points (N, 3)."""
        return np.asarray(xyz, dtype=np.float64) @ self.matrix.T + self.shift

    def boxes(self, boxes: NDArray[np.floating]) -> NDArray[np.float64]:
        """Boxes (K, 6), centre and size along the axes: the smallest such boxes around the moved ones.

        SQA3D does so about z; about x and y it takes the matrix of the wrong plane, which shortens the boxes a little.
        """
        boxes = np.asarray(boxes, dtype=np.float64)
        return np.concatenate([self.points(boxes[:, :3]), boxes[:, 3:6] @ np.abs(self.matrix).T], axis=1)

    def pose(self, pose: NDArray[np.floating]) -> NDArray[np.float64]:
        """A pose (7,). In a mirror image the person is mirrored, too: what is ahead stays ahead, left becomes right."""
        pose = np.asarray(pose, dtype=np.float64)
        matrix = self.matrix @ rotation(pose[3:]).as_matrix()
        if np.linalg.det(self.matrix) < 0:
            matrix = matrix @ _OWN_MIRROR
        return pose_of(self.points(pose[None, :3])[0], matrix)


def _turn(axis: int, angle: float) -> NDArray[np.float64]:
    """Right-handed, about an axis."""
    one, other = (axis + 1) % 3, (axis + 2) % 3
    matrix = np.eye(3)
    matrix[one, one] = matrix[other, other] = math.cos(angle)
    matrix[other, one], matrix[one, other] = math.sin(angle), -math.sin(angle)
    return matrix
