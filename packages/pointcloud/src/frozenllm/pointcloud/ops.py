"""Neighbourhoods of points: farthest point sampling, nearest neighbours, ball query, gathering.

Pure torch on any device. On CUDA, sampling and ball query use mmcv's kernels where it was built with CUDA; both ways
follow the same rules, so they give the same indices (up to distances that differ in the last bit only):

- Coordinates are taken in float32, and squared distances are summed directly, so that equal points are at distance 0.
- Of points at the same distance, the one with the lower index counts first.
- `ball_query` takes the first points in index order, not the nearest.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

__all__ = ["ball_query", "farthest_point_sample", "gather", "knn"]

# Elements of a (queries x points) table that are held at a time: 128 MiB in float32.
_TABLE = 1 << 25
_CPU_TABLE = 1 << 18  # fits the cache: twice as fast


def farthest_point_sample(xyz: Tensor, num: int, *, start: int | Tensor = 0) -> Tensor:
    """Choose points one after the other, each the farthest from those already chosen.

    Args:
        xyz: Coordinates, ``(B, N, 3)``.
        num: How many to choose. Where a cloud has fewer different points, index 0 fills the rest: every distance is
            0 by then, and the lowest index comes first.
        start: Index of the first point; one for all clouds or ``(B,)``.

    Returns:
        Indices in the order of choice, ``(B, num)`` int64. Nothing is differentiated through.

    Raises:
        ValueError: A coordinate is not finite, a cloud is empty, or ``num`` or ``start`` is out of range.
    """
    _check(xyz, "xyz")
    if num < 1:
        raise ValueError(f"At least 1 point must be sampled, not {num}.")
    if isinstance(start, Tensor):
        first = start.to(device=xyz.device, dtype=torch.int64)
        if first.shape != xyz.shape[:1]:
            raise ValueError(f"start must be a number or of shape ({len(xyz)},), not {tuple(first.shape)}.")
    else:
        if not 0 <= start < xyz.shape[1]:
            raise ValueError(f"start must be an index of the {xyz.shape[1]} points, not {start}.")
        first = torch.full((xyz.shape[0],), start, dtype=torch.int64, device=xyz.device)
    return torch.ops.frozenllm.farthest_point_sample(xyz.detach().float().contiguous(), num, first)


def knn(query: Tensor, xyz: Tensor, k: int) -> Tensor:
    """The ``k`` nearest points of every query.

    Args:
        query: Coordinates, ``(B, M, 3)``.
        xyz: Points to choose from, ``(B, N, 3)``.
        k: How many.

    Returns:
        Indices into ``xyz``, nearest first, ``(B, M, k)`` int64.

    Raises:
        ValueError: There are fewer than ``k`` points, shapes do not fit, or a coordinate is not finite.
    """
    _check_pair(query, xyz)
    if not 1 <= k <= xyz.shape[1]:
        raise ValueError(f"{k} neighbours were asked for in clouds of {xyz.shape[1]} points.")
    index = torch.arange(xyz.shape[1], device=xyz.device)

    def nearest(squared: Tensor) -> Tensor:
        # Bits of floats that are not negative sort like the floats; the index in the low half settles ties.
        keys = squared.view(torch.int32).to(torch.int64) * (1 << 32) + index
        return keys.topk(k, dim=-1, largest=False, sorted=True).values % (1 << 32)

    return _by_chunks(query, xyz, nearest)


def ball_query(centers: Tensor, xyz: Tensor, radius: float, k: int, *, min_radius: float = 0.0) -> Tensor:
    """Points around every centre: the first ``k`` in index order with ``min_radius <= distance < radius``.

    A point exactly at the centre counts whatever ``min_radius`` is. Where fewer than ``k`` are found, the first of them
    fills the rest; where none is found, index 0 does (mmcv's rules, which PointNet++ set).

    Args:
        centers: Coordinates, ``(B, M, 3)``.
        xyz: Points to choose from, ``(B, N, 3)``.
        radius: Largest distance, excluded.
        k: How many.
        min_radius: Smallest distance, included.

    Returns:
        Indices into ``xyz``, ``(B, M, k)`` int64.

    Raises:
        ValueError: A number is out of range, shapes do not fit, or a coordinate is not finite.
    """
    _check_pair(centers, xyz)
    if k < 1 or not 0 <= min_radius < radius:
        raise ValueError(f"k must be positive and 0 <= min_radius < radius, not {k}, {min_radius} and {radius}.")
    if (kernels := _kernels(xyz)) is not None:
        xyz, centers = (points.detach().float().contiguous() for points in (xyz, centers))
        return kernels.ball_query(min_radius, radius, k, xyz, centers).long()
    count = xyz.shape[1]
    index = torch.arange(count, device=xyz.device)
    low, high = (float(torch.tensor(r, dtype=torch.float32).square()) for r in (min_radius, radius))

    def inside(squared: Tensor) -> Tensor:
        hit = ((squared >= low) & (squared < high)) | (squared == 0)
        found = torch.where(hit, index, count).topk(min(k, count), dim=-1, largest=False, sorted=True).values
        first = found[..., :1]
        first = torch.where(first == count, 0, first)
        found = torch.where(found == count, first, found)
        return torch.cat([found, first.expand(*found.shape[:-1], k - found.shape[-1])], dim=-1)

    return _by_chunks(centers, xyz, inside)


def gather(points: Tensor, index: Tensor) -> Tensor:
    """Take points by index.

    Args:
        points: ``(B, N, C)``.
        index: ``(B, ...)`` int64.

    Returns:
        ``(B, ..., C)``, differentiable in ``points``.
    """
    flat = index.flatten(1).unsqueeze(-1).expand(-1, -1, points.shape[-1])
    return points.gather(1, flat).unflatten(1, index.shape[1:])


# One operator, so that `torch.compile` does not unroll the loop. (The decorator `custom_op` would import the compiler.)
_OPERATOR = "frozenllm::farthest_point_sample"
torch.library.define(_OPERATOR, "(Tensor xyz, int num, Tensor first) -> Tensor")


@torch.library.impl(_OPERATOR, ("cpu", "cuda"))
def _farthest_point_sample(xyz: Tensor, num: int, first: Tensor) -> Tensor:
    _check_finite(xyz, "xyz")
    count = xyz.shape[1]
    if bool(((first < 0) | (first >= count)).any()):
        raise ValueError(f"start must be an index of the {count} points, not {first.tolist()}.")
    if not bool(first.any()) and (kernels := _kernels(xyz)) is not None:
        places = _kernel_places(count).to(xyz.device)
        arranged = torch.empty_like(xyz)
        arranged[:, places] = xyz
        with torch.cuda.device_of(arranged):  # mmcv puts its result on the current device
            return places.argsort()[kernels.furthest_point_sample(arranged, num).long()]
    planes = xyz.permute(2, 0, 1).contiguous()
    chosen = torch.empty(xyz.shape[0], num, dtype=torch.int64, device=xyz.device)
    smallest = torch.full_like(planes[0], torch.inf)
    step, squared = torch.empty_like(smallest), torch.empty_like(smallest)
    latest = first.unsqueeze(1)
    for position in range(num):
        chosen[:, position] = latest[:, 0]
        if position + 1 == num:
            break
        x, y, z = (plane.gather(1, latest) for plane in planes)
        torch.sub(planes[0], x, out=step)
        torch.mul(step, step, out=squared)
        torch.sub(planes[1], y, out=step)
        squared.addcmul_(step, step)
        torch.sub(planes[2], z, out=step)
        squared.addcmul_(step, step)
        torch.minimum(smallest, squared, out=smallest)
        latest = smallest.argmax(dim=1, keepdim=True)  # of equal ones, the first
    return chosen


@torch.library.register_fake(_OPERATOR)
def _(xyz: Tensor, num: int, first: Tensor) -> Tensor:
    return xyz.new_empty(xyz.shape[0], num, dtype=torch.int64)


@functools.cache
def _kernel_places(count: int) -> Tensor:
    """Where the points must stand so that mmcv's sampling kernel settles ties by their order, ``(count,)``.

    The kernel has ``T = min(1024, 2^floor(log2 count))`` threads; thread t looks at t, t + T, t + 2T, ... in this
    order, and a tree then joins threads by their highest bit first, the lower thread winning ties. So the thread whose
    bits, read backwards, are the smallest number wins.
    """
    threads = min(1024, 1 << (count.bit_length() - 1))
    bits = threads.bit_length() - 1
    rank = [int(format(t, f"0{bits}b")[::-1], 2) if bits else 0 for t in range(threads)]
    return torch.tensor(sorted(range(count), key=lambda place: (rank[place % threads], place // threads)))


@functools.cache
def _compiled_ops() -> Any:
    """mmcv's operators, or None where those for CUDA are not there."""
    try:
        import mmcv.ops as compiled  # heavy, and optional
    except (ImportError, ModuleNotFoundError, AssertionError, OSError):  # absent, or built without its operators
        return None
    # This repository's own build is for the CPU: its kernels are there by name, and refuse tensors of a GPU.
    return None if compiled.get_compiling_cuda_version() == "not available" else compiled


def _kernels(xyz: Tensor) -> Any:
    return _compiled_ops() if xyz.is_cuda and not torch.compiler.is_compiling() else None


def _by_chunks(query: Tensor, xyz: Tensor, select: Any) -> Tensor:
    """``select`` on squared distances ``(B, rows, N)``, a few rows of queries at a time."""
    query, xyz = query.detach().float(), xyz.detach().float()
    limit = _TABLE if xyz.is_cuda else _CPU_TABLE
    rows = max(1, limit // max(1, xyz.shape[0] * xyz.shape[1]))
    return torch.cat([select(_squared_distances(part, xyz)) for part in query.split(rows, dim=1)], dim=1)


def _squared_distances(query: Tensor, xyz: Tensor) -> Tensor:
    x, y, z = (query[..., axis].unsqueeze(2) - xyz[..., axis].unsqueeze(1) for axis in range(3))
    return (x * x).addcmul(y, y).addcmul(z, z)


def _check_pair(query: Tensor, xyz: Tensor) -> None:
    _check(query, "the centres")
    _check(xyz, "xyz")
    if query.shape[0] != xyz.shape[0]:
        raise ValueError(f"There are {query.shape[0]} sets of centres, and {xyz.shape[0]} clouds.")
    if not torch.compiler.is_compiling():  # reading a value would cut the graph
        _check_finite(query, "the centres")
        _check_finite(xyz, "xyz")


def _check(xyz: Tensor, name: str) -> None:
    if xyz.ndim != 3 or xyz.shape[2] != 3:
        raise ValueError(f"The coordinates of {name} must be of shape (clouds, points, 3), not {tuple(xyz.shape)}.")
    if xyz.shape[1] == 0:
        raise ValueError(f"There are no points in {name}.")


def _check_finite(xyz: Tensor, name: str) -> None:
    if not bool(xyz.isfinite().all()):
        raise ValueError(f"A coordinate of {name} is not finite (NaN or infinite).")
