"""Neighbourhoods of points against brute force."""

from __future__ import annotations

import functools
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from frozenllm.pointcloud import ops
from frozenllm.pointcloud.ops import ball_query, farthest_point_sample, gather, knn

# Coordinates on a coarse grid: distances are exact in float32, and ties and duplicates are common.
GRID = st.integers(-3, 3).map(float)


@st.composite
def clouds(draw: st.DrawFn, most: int = 24) -> Tensor:
    batch, count = draw(st.integers(1, 2)), draw(st.integers(1, most))
    numbers = draw(st.lists(GRID, min_size=batch * count * 3, max_size=batch * count * 3))
    return torch.tensor(numbers).view(batch, count, 3)


def squared(a: Tensor, b: Tensor) -> float:
    return sum((float(p) - float(q)) ** 2 for p, q in zip(a, b, strict=True))


def brute_sample(cloud: Tensor, num: int, start: int) -> list[int]:
    chosen, nearest = [start], [math.inf] * len(cloud)
    while len(chosen) < num:
        nearest = [min(d, squared(p, cloud[chosen[-1]])) for d, p in zip(nearest, cloud, strict=True)]
        chosen.append(nearest.index(max(nearest)))
    return chosen


@settings(max_examples=60, deadline=None)
@given(xyz=clouds(), num=st.integers(1, 30), data=st.data())
def test_sampling_equals_brute_force(xyz: Tensor, num: int, data: st.DataObject) -> None:
    """Duplicates, one point, and more samples than points included."""
    starts = torch.tensor([data.draw(st.integers(0, xyz.shape[1] - 1)) for _ in xyz])
    found = farthest_point_sample(xyz, num, start=starts)
    assert found.dtype == torch.int64
    assert found.tolist() == [brute_sample(c, num, int(s)) for c, s in zip(xyz, starts, strict=True)]
    assert farthest_point_sample(xyz, num).tolist() == [brute_sample(cloud, num, 0) for cloud in xyz]


@settings(max_examples=60, deadline=None)
@given(xyz=clouds(), query=clouds(8), data=st.data())
def test_neighbours_equal_brute_force(xyz: Tensor, query: Tensor, data: st.DataObject) -> None:
    query = query[:1].expand(len(xyz), -1, -1)
    k = data.draw(st.integers(1, xyz.shape[1]))
    wanted = [
        [sorted(range(len(c)), key=lambda i, c=c, p=p: (squared(c[i], p), i))[:k] for p in points]
        for c, points in zip(xyz, query, strict=True)
    ]
    assert knn(query, xyz, k).tolist() == wanted


@settings(max_examples=60, deadline=None)
@given(xyz=clouds(), query=clouds(8), k=st.integers(1, 30), radii=st.tuples(st.integers(0, 9), st.integers(1, 9)))
def test_ball_query_equals_brute_force(xyz: Tensor, query: Tensor, k: int, radii: tuple[int, int]) -> None:
    query = query[:1].expand(len(xyz), -1, -1)
    low, high = math.sqrt(radii[0]), math.sqrt(radii[0] + radii[1])
    inner, outer = (float(torch.tensor(r, dtype=torch.float32).square()) for r in (low, high))
    for c, points, rows in zip(xyz, query, ball_query(query, xyz, high, k, min_radius=low).tolist(), strict=True):
        for p, row in zip(points, rows, strict=True):
            hits = [i for i in range(len(c)) if inner <= squared(c[i], p) < outer or squared(c[i], p) == 0][:k]
            assert row == hits + [hits[0] if hits else 0] * (k - len(hits))


def test_many_points_go_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    xyz = torch.randn(3, 200, 3, generator=torch.Generator().manual_seed(0))
    whole = knn(xyz, xyz, 7), ball_query(xyz, xyz, 0.5, 9)
    monkeypatch.setattr(ops, "_CPU_TABLE", 1)
    assert torch.equal(knn(xyz, xyz, 7), whole[0])
    assert torch.equal(ball_query(xyz, xyz, 0.5, 9), whole[1])


def test_gather_takes_points_and_hands_gradients_back() -> None:
    points = torch.arange(24.0).view(2, 4, 3).requires_grad_()
    index = torch.tensor([[[0, 3]], [[1, 1]]])
    taken = gather(points, index)
    assert taken.shape == (2, 1, 2, 3)
    assert taken[1, 0, 1].tolist() == points[1, 1].tolist()
    taken.sum().backward()
    assert points.grad[:, :, 0].tolist() == [[1, 0, 0, 1], [0, 2, 0, 0]]


BAD = torch.zeros(1, 4, 3)
NAN, INFINITE = BAD.clone(), BAD.clone()
NAN[0, 2, 1], INFINITE[0, 1, 0] = math.nan, math.inf


@pytest.mark.parametrize(("call", "words"), [
    (lambda: farthest_point_sample(NAN, 2), "not finite"),
    (lambda: farthest_point_sample(INFINITE, 2), "not finite"),
    (lambda: knn(BAD, NAN, 2), "not finite"),
    (lambda: knn(NAN, BAD, 2), "not finite"),
    (lambda: ball_query(BAD, NAN, 1.0, 2), "not finite"),
    (lambda: farthest_point_sample(torch.zeros(2, 0, 3), 1), "no points"),
    (lambda: farthest_point_sample(torch.zeros(2, 5, 6), 1), r"\(clouds, points, 3\), not \(2, 5, 6\)"),
    (lambda: farthest_point_sample(torch.zeros(5, 3), 1), r"\(clouds, points, 3\)"),
    (lambda: farthest_point_sample(BAD, 0), "At least 1 point"),
    (lambda: farthest_point_sample(BAD, 1, start=4), "index of the 4 points, not 4"),
    (lambda: farthest_point_sample(BAD, 1, start=torch.tensor([7])), r"index of the 4 points, not \[7\]"),
    (lambda: farthest_point_sample(BAD, 1, start=torch.tensor([0, 1])), r"of shape \(1,\), not \(2,\)"),
    (lambda: knn(BAD, BAD, 5), "5 neighbours were asked for in clouds of 4 points"),
    (lambda: knn(BAD.repeat(2, 1, 1), BAD, 2), "2 sets of centres, and 1 clouds"),
    (lambda: ball_query(BAD, BAD, 0.0, 2), "min_radius < radius"),
])  # fmt: skip
def test_wrong_input_gives_one_sentence(call: object, words: str) -> None:
    with pytest.raises(ValueError, match=words) as caught:
        call()
    assert "\n" not in str(caught.value)


def kernel_sample(xyz: np.ndarray, num: int) -> list[int]:
    """mmcv's kernel, thread by thread: a stride of points each, then a tree that keeps the lower thread at ties."""
    count = len(xyz)
    threads = max(min(1 << int(math.log(count) / math.log(2.0)), 1024), 1)
    nearest, chosen = np.full(count, 1e10, np.float32), [0]
    while len(chosen) < num:
        nearest = np.minimum(nearest, ((xyz - xyz[chosen[-1]]) ** 2).sum(1).astype(np.float32))
        best = [max(range(t, count, threads), key=lambda k: (nearest[k], -k)) for t in range(threads)]
        width = threads
        while width > 1:
            width //= 2
            for t in range(width):
                if nearest[best[t + width]] > nearest[best[t]]:
                    best[t] = best[t + width]
        chosen.append(best[0])
    return chosen


@settings(max_examples=40, deadline=None)
@given(xyz=clouds(40), num=st.integers(1, 12))
def test_the_compiled_kernel_is_handed_points_so_that_ties_agree(xyz: Tensor, num: int) -> None:
    """The kernel settles ties by thread; the order it is given makes that the order of the indices."""
    places = ops._kernel_places(xyz.shape[1])
    arranged = torch.empty_like(xyz)
    arranged[:, places] = xyz
    chosen = torch.tensor([kernel_sample(cloud.numpy(), num) for cloud in arranged])
    assert torch.equal(places.argsort()[chosen], farthest_point_sample(xyz, num))


@pytest.mark.parametrize(("built_for", "used"), [("not available", False), ("12.6", True)])
def test_kernels_of_a_build_without_cuda_are_left_alone(
    monkeypatch: pytest.MonkeyPatch, built_for: str, used: bool
) -> None:
    """mmcv built for the CPU has them by name, and refuses tensors of a GPU."""
    compiled = pytest.importorskip("mmcv.ops", reason="needs mmcv built with its operators")
    monkeypatch.setattr(compiled, "get_compiling_cuda_version", lambda: built_for)
    monkeypatch.setattr(ops, "_compiled_ops", functools.cache(ops._compiled_ops.__wrapped__))
    assert (ops._compiled_ops() is compiled) == used


def test_kernels_are_handed_what_they_take(monkeypatch: pytest.MonkeyPatch) -> None:
    """mmcv's ball query asserts that both of its tensors are contiguous."""

    def kernel(low: float, high: float, k: int, xyz: Tensor, centers: Tensor) -> Tensor:
        assert xyz.is_contiguous()
        assert centers.is_contiguous()
        return torch.zeros(*centers.shape[:2], k, dtype=torch.int32)

    monkeypatch.setattr(ops, "_kernels", lambda xyz: SimpleNamespace(ball_query=kernel))
    planes = torch.randn(2, 3, 7)
    assert ball_query(planes.transpose(1, 2), planes.transpose(1, 2), 1.0, 4).shape == (2, 7, 4)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_the_gpu_gives_the_same_indices() -> None:
    xyz = torch.randint(-9, 10, (2, 3000, 3), generator=torch.Generator().manual_seed(0)).float()
    assert torch.equal(farthest_point_sample(xyz.cuda(), 64).cpu(), farthest_point_sample(xyz, 64))
    assert torch.equal(ball_query(xyz.cuda(), xyz.cuda(), 3.0, 8).cpu(), ball_query(xyz, xyz, 3.0, 8))
    assert torch.equal(knn(xyz.cuda(), xyz.cuda(), 8).cpu(), knn(xyz, xyz, 8))
