"""Sampling and augmentation of point clouds, on the device and a batch at a time.

What the official code does (``tools/runner_BERT_finetune.py``): in training a cloud is thinned to somewhat more points
than the model sees, by farthest point sampling from a random start; a random part of these is kept, scaled and moved.
In evaluation it is thinned to the points that the model sees, from the first point on. A voted evaluation sees several
random views of it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from frozenllm.core.training.seeding import derive_seed
from frozenllm.pointcloud.ops import farthest_point_sample, gather

__all__ = ["PointAugment", "default_pool", "thin", "vote_views"]

_POOLS = {1024: 1200, 2048: 2400, 4096: 4800, 8192: 8192}
"""Official: points that farthest point sampling keeps, from which the model's points are drawn."""


def default_pool(num_points: int) -> int:
    """Points that farthest point sampling keeps before ``num_points`` of them are drawn: the official code's numbers.

    For other sizes, an eighth more (this project's choice; 1200 for 1024 is a sixth, 4800 for 4096 too).
    """
    return _POOLS.get(num_points, num_points + num_points // 8)


def thin(points: Tensor, num_points: int) -> Tensor:
    """Thin clouds by farthest point sampling from their first point on.

    Args:
        points: ``(B, N, 3)``.
        num_points: Points to keep.

    Returns:
        ``(B, num_points, 3)``; the clouds themselves where they have no more points than that.
    """
    if points.shape[1] <= num_points:
        return points
    return gather(points, farthest_point_sample(points, num_points))


class PointAugment:
    """A batch transform: sampling, then rotation, flip, scale, shift and jitter, every cloud on its own.

    Every change is left out by its neutral value. Random numbers are torch's global ones.

    Args:
        num_points: Points that the model sees; None for all.
        pool: Points that farthest point sampling keeps first; None for `default_pool`. Clouds with fewer points are
            not thinned.
        scale: Range of the factor on each axis; the official code has 2/3 to 3/2.
        translate: Largest shift on each axis; official: 0.2.
        rotate: Largest angle about the upright axis, in degrees; official: 0 (180 turns freely).
        up: Index of the axis to rotate about: y (1) is the one that stands upright in ModelNet40.
        flip: Probability of mirroring the first axis; official: 0.
        jitter: Standard deviation of noise on every coordinate; official: 0.
        jitter_clip: Largest noise.

    Raises:
        ValueError: A number is out of range.
    """

    def __init__(
        self,
        num_points: int | None = 1024,
        pool: int | None = None,
        *,
        scale: Sequence[float] = (2 / 3, 3 / 2),
        translate: float = 0.2,
        rotate: float = 0.0,
        up: int = 1,
        flip: float = 0.0,
        jitter: float = 0.0,
        jitter_clip: float = 0.05,
    ) -> None:
        for name, count in (("num_points", num_points), ("pool", pool)):
            if count is not None and (not isinstance(count, int) or count < 1):
                raise ValueError(f"{name} must be a positive whole number, not {count!r}.")
        pool = default_pool(num_points) if pool is None and num_points is not None else pool
        if pool is not None and num_points is not None and pool < num_points:
            raise ValueError(f"A pool of {pool} points has no {num_points} to draw.")
        if not isinstance(scale, Sequence) or len(scale) != 2 or not 0 < scale[0] <= scale[1]:
            raise ValueError(f"scale must be a range of positive factors, not {scale!r}.")
        numbers = (flip, translate, rotate, jitter)
        if up not in (0, 1, 2) or not all(isinstance(n, int | float) and n >= 0 for n in numbers) or flip > 1:
            raise ValueError("up must be 0, 1 or 2, flip a probability, and translate, rotate and jitter not negative.")
        self.num_points, self.pool = num_points, pool
        self.scale, self.translate = (float(scale[0]), float(scale[1])), translate
        self.rotate, self.up, self.flip = rotate, up, flip
        self.jitter, self.jitter_clip = jitter, jitter_clip

    def __call__(self, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """New clouds ``(B, num_points, 3)`` from ``(B, N, 3)``; targets as they are.

        Raises:
            ValueError: The clouds have fewer points than the model sees.
        """
        points = self.sample(inputs)
        if self.rotate:
            points = points @ self._rotations(points).transpose(1, 2)
        if self.flip:
            mirror = torch.rand(len(points), device=points.device) < self.flip
            points = torch.where(mirror[:, None, None], points * points.new_tensor([-1.0, 1.0, 1.0]), points)
        points = scale_translate(points, self.scale, self.translate)
        if self.jitter:
            noise = (self.jitter * torch.randn_like(points)).clamp(-self.jitter_clip, self.jitter_clip)
            points = points + noise
        return points, targets

    def sample(self, points: Tensor) -> Tensor:
        """A random part of what farthest point sampling keeps, in random order."""
        if self.num_points is None:
            return points
        batch, count, _ = points.shape
        if count < self.num_points:
            raise ValueError(f"Clouds of {count} points have no {self.num_points} to draw: set data.num_points.")
        if self.pool is not None and count > self.pool:
            start = torch.randint(count, (batch,), device=points.device)
            points = gather(points, farthest_point_sample(points, self.pool, start=start))
        order = torch.rand(points.shape[:2], device=points.device).argsort(dim=1)
        return gather(points, order[:, : self.num_points])

    def _rotations(self, points: Tensor) -> Tensor:
        angle = (torch.rand(len(points), device=points.device) * 2 - 1) * math.radians(self.rotate)
        cos, sin = angle.cos(), angle.sin()
        matrix = torch.eye(3, device=points.device, dtype=points.dtype).repeat(len(points), 1, 1)
        a, b = (axis for axis in range(3) if axis != self.up)
        matrix[:, a, a], matrix[:, b, b] = cos, cos
        matrix[:, a, b], matrix[:, b, a] = -sin, sin
        return matrix


def scale_translate(points: Tensor, scale: tuple[float, float], translate: float) -> Tensor:
    """Scale and move every cloud on its own, by uniform draws for each axis."""
    shape = (len(points), 1, 3)
    factor = torch.empty(shape, device=points.device, dtype=points.dtype).uniform_(*scale)
    shift = torch.empty(shape, device=points.device, dtype=points.dtype).uniform_(-translate, translate)
    return points * factor + shift


def vote_views(
    points: Tensor, index: Tensor, votes: int, num_points: int, *, pool: int | None = None, seed: int = 0
) -> Tensor:
    """Random views of clouds, as the official code votes: a random part of a thinned cloud, scaled and moved.

    The draws depend on the seed and the sample's index alone, and not on batches or processes.

    Args:
        points: ``(B, N, 3)``.
        index: The samples' places in their data set, ``(B,)``.
        votes: Views of each cloud V.
        num_points: Points of a view.
        pool: Points that farthest point sampling keeps first, None for `default_pool`.
        seed: Of the draws.

    Returns:
        ``(B, V, num_points, 3)``.
    """
    points = thin(points, default_pool(num_points) if pool is None else pool)
    num_points = min(num_points, points.shape[1])
    views = []
    for cloud, place in zip(points, index.tolist(), strict=True):
        generator = torch.Generator().manual_seed(derive_seed(seed, "vote", place))
        keep = torch.rand(votes, len(cloud), generator=generator).argsort(dim=1)[:, :num_points]
        factor = torch.empty(votes, 1, 3).uniform_(2 / 3, 3 / 2, generator=generator)
        shift = torch.empty(votes, 1, 3).uniform_(-0.2, 0.2, generator=generator)
        views.append(cloud[keep.to(cloud.device)] * factor.to(cloud) + shift.to(cloud))
    return torch.stack(views)
