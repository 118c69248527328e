"""The stand-ins for CUDA kernels, through mmcv's own functions, against loops written from the kernels' rules."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

pytest.importorskip("mmdet3d", reason="needs the extra [mmdet3d]")
ops = pytest.importorskip("mmcv.ops", reason="needs mmcv built with its operators")
if torch.cuda.is_available():
    pytest.skip("mmcv's own kernels serve where there is CUDA", allow_module_level=True)

from frozenllm.pointcloud.detection import cpu_ops  # noqa: E402

SMALL = settings(max_examples=30, deadline=None)
SIZES = dict(seed=st.integers(0, 10_000), count=st.integers(1, 24))


@pytest.fixture(scope="module", autouse=True)
def _installed(uncompiled_mmdet3d: None) -> None:
    assert cpu_ops.install()
    assert cpu_ops.install()  # twice is harmless


@pytest.mark.parametrize(("kernels", "stand_ins"), [(None, True), (ops, False)])
def test_a_gpu_with_an_mmcv_for_cpus_gets_the_stand_ins(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, kernels: Any, stand_ins: bool
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(cpu_ops.ops, "_compiled_ops", lambda: kernels)
    assert cpu_ops.install() == stand_ins
    assert ("built without CUDA" in caplog.text) == stand_ins


def points(seed: int, count: int, batch: int = 2) -> Tensor:
    """Points on a coarse grid, so that there are duplicates and equal distances."""
    return torch.randint(-3, 4, (batch, count, 3), generator=torch.Generator().manual_seed(seed)).float()


def squared(a: Any, b: Any) -> float:
    return sum((float(x) - float(y)) ** 2 for x, y in zip(a, b, strict=True))


@SMALL
@given(num=st.integers(1, 12), **SIZES)
def test_furthest_points(seed: int, count: int, num: int) -> None:
    xyz = points(seed, count)
    found = ops.furthest_point_sample(xyz, num)
    assert found.dtype == torch.int32
    for cloud, chosen in zip(xyz, found, strict=True):
        latest, nearest = 0, [1e10] * count
        for index in chosen.tolist():
            assert index == latest
            nearest = [min(d, squared(p, cloud[index])) for d, p in zip(nearest, cloud, strict=True)]
            latest = max(range(count), key=lambda i: (nearest[i], -i))


@SMALL
@given(k=st.integers(1, 6), low=st.sampled_from([0.0, 1.0]), **SIZES)
def test_ball_query(seed: int, count: int, k: int, low: float) -> None:
    xyz, centres = points(seed, count), points(seed + 1, 5)
    found = ops.ball_query(low, 2.0, k, xyz, centres)
    assert found.dtype == torch.int32
    for b in range(2):
        for m in range(5):
            distances = [squared(p, centres[b, m]) for p in xyz[b]]
            inside = [i for i, d in enumerate(distances) if d == 0 or low**2 <= d < 4.0][:k]
            assert found[b, m].tolist() == inside + [inside[0] if inside else 0] * (k - len(inside))


@SMALL
@given(**SIZES)
def test_three_nearest(seed: int, count: int) -> None:
    target, source = points(seed, 7), points(seed + 1, count)
    distance, index = ops.three_nn(target, source)
    assert index.dtype == torch.int32
    for b in range(2):
        for n in range(7):
            order = sorted(range(count), key=lambda i: (squared(target[b, n], source[b, i]), i))[:3]
            wanted = [math.sqrt(squared(target[b, n], source[b, i])) for i in order]
            short = 3 - len(order)
            assert index[b, n].tolist() == order + [0] * short
            assert distance[b, n].tolist() == pytest.approx(wanted + [math.inf] * short)


@SMALL
@given(**SIZES)
def test_gathering_and_grouping_with_gradients(seed: int, count: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    features = torch.randn(2, 3, count, generator=draw, requires_grad=True)
    index = torch.randint(0, count, (2, 5, 4), generator=draw, dtype=torch.int32)
    weights = torch.randn(2, 3, 5, 4, generator=draw)
    grouped, gathered = (
        ops.grouping_operation(features, index),
        ops.gather_points(features, index[:, :, 0].contiguous()),
    )
    for b in range(2):
        for m in range(5):
            for k in range(4):
                assert torch.equal(grouped[b, :, m, k], features[b, :, int(index[b, m, k])])
            assert torch.equal(gathered[b, :, m], features[b, :, int(index[b, m, 0])])
    ((grouped * weights).sum() + (gathered * weights[..., 1]).sum()).backward()
    wanted = torch.zeros_like(features)
    for b in range(2):
        for m in range(5):
            for k in range(4):
                wanted[b, :, int(index[b, m, k])] += weights[b, :, m, k]
            wanted[b, :, int(index[b, m, 0])] += weights[b, :, m, 1]
    torch.testing.assert_close(features.grad, wanted)


@SMALL
@given(**SIZES)
def test_interpolation_with_gradients(seed: int, count: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    features = torch.randn(2, 3, count, generator=draw, requires_grad=True)
    index = torch.randint(0, count, (2, 6, 3), generator=draw, dtype=torch.int32)
    shares, weights = torch.rand(2, 6, 3, generator=draw), torch.randn(2, 3, 6, generator=draw)
    found = ops.three_interpolate(features, index, shares)
    (found * weights).sum().backward()
    wanted = torch.zeros_like(features)
    for b in range(2):
        for n in range(6):
            places = [int(i) for i in index[b, n]]
            torch.testing.assert_close(
                found[b, :, n], sum(features[b, :, i] * s for i, s in zip(places, shares[b, n], strict=True))
            )
            for i, s in zip(places, shares[b, n], strict=True):
                wanted[b, :, i] += weights[b, :, n] * s
    torch.testing.assert_close(features.grad, wanted)


def test_indices_carry_no_gradient() -> None:
    xyz = torch.randn(1, 8, 3, requires_grad=True)
    distance, index = ops.three_nn(xyz, xyz)
    found = [ops.furthest_point_sample(xyz, 3), ops.ball_query(0, 1.0, 2, xyz, xyz), index, distance]
    assert not any(tensor.requires_grad for tensor in found)


def test_stacked_clouds_are_refused() -> None:
    counts = torch.tensor([4], dtype=torch.int32)
    with pytest.raises(ValueError, match="ball_query on stacked clouds needs CUDA"):
        ops.ball_query(0, 1.0, 2, torch.zeros(4, 3), torch.zeros(4, 3), counts, counts)


@SMALL
@given(seed=st.integers(0, 10_000), boxes=st.integers(1, 5))
def test_points_in_boxes(seed: int, boxes: int) -> None:
    from mmdet3d.structures import DepthInstance3DBoxes

    draw = torch.Generator().manual_seed(seed)
    places = 4 * torch.rand(40, 3, generator=draw) - 2
    given_boxes = torch.cat(
        [2 * torch.rand(boxes, 3, generator=draw) - 1, 0.5 + torch.rand(boxes, 3, generator=draw),
         7 * torch.rand(boxes, 1, generator=draw)], dim=1,
    )  # fmt: skip
    found = DepthInstance3DBoxes(given_boxes).points_in_boxes_all(places)
    for p, point in enumerate(places.tolist()):
        for t, (x, y, z, length, width, height, yaw) in enumerate(given_boxes.tolist()):
            dx, dy = point[0] - x, point[1] - y
            along = dx * math.cos(yaw) + dy * math.sin(yaw)
            across = -dx * math.sin(yaw) + dy * math.cos(yaw)
            margins = (length / 2 - abs(along), width / 2 - abs(across), point[2] - z, z + height - point[2])
            if all(abs(m) > 1e-4 for m in margins):  # on the very face, rounding decides
                assert int(found[p, t]) == int(all(m > 0 for m in margins))


def polygon(box: np.ndarray) -> Any:
    """A rectangle of KITTI's metric: turned clockwise in its plane, as mmdet3d's CUDA kernel turns it."""
    geometry = pytest.importorskip("shapely.geometry")
    x, y, length, width, angle = box.tolist()
    cos, sin = math.cos(angle), math.sin(angle)
    signs = ((-1, -1), (-1, 1), (1, 1), (1, -1))
    local = [(a * length / 2, b * width / 2) for a, b in signs]
    return geometry.Polygon([(x + cos * u + sin * v, y - sin * u + cos * v) for u, v in local])


@SMALL
@given(seed=st.integers(0, 10_000), rows=st.integers(0, 4), columns=st.integers(0, 4))
@pytest.mark.parametrize("criterion", [-1, 0, 1, 2])
def test_rotated_overlap(criterion: int, seed: int, rows: int, columns: int) -> None:
    from mmdet3d.evaluation.functional.kitti_utils.rotate_iou import rotate_iou_gpu_eval

    draw = np.random.default_rng(seed)

    def rectangles(count: int) -> np.ndarray:
        return np.column_stack(
            [draw.uniform(-2, 2, (count, 2)), draw.uniform(0.5, 4, (count, 2)), draw.uniform(-4, 4, count)]
        )

    boxes, queries = rectangles(rows), rectangles(columns)
    found = rotate_iou_gpu_eval(boxes, queries, criterion)
    assert found.shape == (rows, columns)
    assert found.dtype == np.float32
    for n, box in enumerate(map(polygon, boxes)):
        for k, query in enumerate(map(polygon, queries)):
            common = box.intersection(query).area
            over = {-1: box.area + query.area - common, 0: query.area, 1: box.area, 2: 1.0}[criterion]
            assert found[n, k] == pytest.approx(common / over, abs=2e-4)


def test_mmdet3d_s_three_dimensional_overlap_uses_it() -> None:
    """Two cars side by side in KITTI's camera frame (x, y, z of the bottom, length, height, width, turn)."""
    from mmdet3d.evaluation.functional.kitti_utils.eval import d3_box_overlap

    car = np.array([[0, 0, 10, 4.0, 1.5, 2.0, 0.3]])
    higher = car + np.array([[0, -0.75, 0, 0, 0, 0, 0]])
    assert d3_box_overlap(car, car.copy())[0, 0] == pytest.approx(1.0, abs=1e-4)
    assert d3_box_overlap(car, higher)[0, 0] == pytest.approx(1 / 3, abs=1e-4)
