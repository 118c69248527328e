"""Sampling, augmentation and votes."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from frozenllm.pointcloud.ops import farthest_point_sample, gather
from frozenllm.pointcloud.task import PointCloudTask
from frozenllm.pointcloud.transforms import PointAugment, default_pool, thin, vote_views

TARGETS = torch.zeros(3, dtype=torch.long)
STILL: dict[str, Any] = {"scale": (1.0, 1.0), "translate": 0.0}


@pytest.fixture
def clouds() -> Tensor:
    return torch.randn(3, 50, 3, generator=torch.Generator().manual_seed(0))


def rows(cloud: Tensor) -> set[tuple[float, ...]]:
    return {tuple(row) for row in cloud.tolist()}


def test_official_pools() -> None:
    assert [default_pool(n) for n in (1024, 4096, 8192)] == [1200, 4800, 8192]
    assert default_pool(128) == 144


def test_training_draws_from_what_farthest_point_sampling_keeps(clouds: Tensor) -> None:
    torch.manual_seed(0)
    drawn, targets = PointAugment(12, pool=20, **STILL)(clouds, TARGETS)
    assert targets is TARGETS
    assert drawn.shape == (3, 12, 3)
    for cloud, points in zip(clouds, drawn, strict=True):
        assert len(rows(points)) == 12
        starts = torch.arange(50)  # one of the possible starts explains the points
        pools = gather(cloud.expand(50, -1, -1), farthest_point_sample(cloud.expand(50, -1, -1), 20, start=starts))
        assert any(rows(points) <= rows(pool) for pool in pools)
    again, _ = PointAugment(12, pool=20, **STILL)(clouds, TARGETS)
    assert not torch.equal(again, drawn)
    assert torch.equal(PointAugment(None, **STILL)(clouds, TARGETS)[0], clouds)
    with pytest.raises(ValueError, match="Clouds of 50 points have no 64 to draw"):
        PointAugment(64)(clouds, TARGETS)


def test_scale_and_shift_are_each_clouds_own_and_in_range(clouds: Tensor) -> None:
    torch.manual_seed(1)
    many = clouds[:1].expand(400, -1, -1)
    moved, _ = PointAugment(None)(many, TARGETS)
    step = many[:, 1] - many[:, 0]
    factor = (moved[:, 1] - moved[:, 0]) / step
    shift = (moved - many * factor.unsqueeze(1))[:, 0]
    assert factor.min() > 2 / 3 - 1e-4
    assert factor.max() < 1.5 + 1e-4
    assert factor.min(0).values.max() < 0.75
    assert factor.max(0).values.min() > 1.4
    assert 0.15 < shift.abs().max() < 0.2 + 1e-4
    assert (factor[:, 0] - factor[:, 1]).abs().max() > 0.3  # each axis its own


def test_rotation_keeps_the_upright_axis_and_lengths(clouds: Tensor) -> None:
    turned, _ = PointAugment(None, rotate=180.0, **STILL)(clouds, TARGETS)
    torch.testing.assert_close(turned[..., 1], clouds[..., 1])
    torch.testing.assert_close(turned.norm(dim=2), clouds.norm(dim=2))
    assert (turned - clouds).abs().max() > 0.1
    small, _ = PointAugment(None, rotate=5.0, **STILL)(clouds, TARGETS)
    flat, other = clouds[..., [0, 2]], small[..., [0, 2]]
    assert (flat * other).sum(-1).div(flat.norm(dim=-1) * other.norm(dim=-1)).min() > math.cos(math.radians(5.01))


def test_flip_and_jitter(clouds: Tensor) -> None:
    mirrored, _ = PointAugment(None, flip=1.0, **STILL)(clouds, TARGETS)
    torch.testing.assert_close(mirrored, clouds * torch.tensor([-1.0, 1.0, 1.0]))
    noisy, _ = PointAugment(None, jitter=0.1, jitter_clip=0.05, **STILL)(clouds, TARGETS)
    difference = (noisy - clouds).abs()
    assert difference.max() <= 0.0501
    assert difference.mean() > 0.02


@pytest.mark.parametrize(("options", "words"), [
    ({"num_points": 0}, "num_points must be a positive whole number, not 0"),
    ({"num_points": "all"}, "must be a positive whole number, not 'all'"),
    ({"scale": 2}, "range of positive factors, not 2"),
    ({"num_points": 9, "pool": 8}, "A pool of 8 points has no 9"),
    ({"scale": (0.0, 1.0)}, "range of positive factors"),
    ({"up": 3}, "up must be 0, 1 or 2"),
    ({"flip": 1.5}, "flip a probability"),
])  # fmt: skip
def test_wrong_options_give_one_sentence(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        PointAugment(**options)


def test_views_depend_on_the_sample_alone(clouds: Tensor) -> None:
    index = torch.tensor([4, 7, 9])
    views = vote_views(clouds, index, 5, 20)
    assert views.shape == (3, 5, 20, 3)
    assert torch.equal(vote_views(clouds[1:2], index[1:2], 5, 20)[0], views[1])
    torch.manual_seed(99)
    assert torch.equal(vote_views(clouds, index, 5, 20), views)
    assert not torch.equal(vote_views(clouds, index, 5, 20, seed=1), views)
    assert not torch.equal(views[0, 0], views[0, 1])
    pool = thin(clouds, default_pool(20))
    for axis in range(3):  # order along an axis survives scaling and moving: the view's points are the pool's
        steps = views[0, 0, :, axis].sort().values.diff()
        ratios = steps.sum() / (pool[0, :, axis].max() - pool[0, :, axis].min())
        assert 0.3 < ratios < 1.5 + 1e-4


class _Scores(nn.Module):
    """Scores that tell how many points came and where they are."""

    def forward(self, points: Tensor) -> Tensor:
        return torch.stack(
            [points.mean((1, 2)), points[:, 0, 0], torch.full((len(points),), float(points.shape[1]))], 1
        )


def test_evaluation_thins_and_votes(clouds: Tensor) -> None:
    index, targets = torch.tensor([2, 0, 1]), torch.tensor([0, 1, 2])
    task = PointCloudTask(_Scores(), num_points=20)
    single = task(clouds, targets, "predict", index=index)
    torch.testing.assert_close(torch.stack([s["scores"] for s in single]), _Scores()(thin(clouds, 20)))
    assert [s["target"] for s in single] == [0, 1, 2]
    views = vote_views(clouds, index, 4, 20)
    scores = torch.stack([_Scores()(view) for view in views])
    voted = PointCloudTask(_Scores(), num_points=20, votes=4)(clouds, targets, "predict", index=index)
    torch.testing.assert_close(torch.stack([s["scores"] for s in voted]), scores.mean(1))
    softmax = PointCloudTask(_Scores(), num_points=20, votes=4, vote_average="softmax")
    wanted = scores.softmax(-1).mean(1).log()
    found = softmax(clouds, targets, "predict", index=index)
    torch.testing.assert_close(torch.stack([s["scores"] for s in found]), wanted)
    with pytest.raises(ValueError, match="votes=1, or a data set that gives it"):
        softmax(clouds, targets, "predict")
    with pytest.raises(ValueError, match="logits or softmax"):
        PointCloudTask(_Scores(), vote_average="median")
    with pytest.raises(ValueError, match="votes must be a positive whole number, not 0"):
        PointCloudTask(_Scores(), votes=0)


def test_training_sees_what_the_batch_transform_makes(clouds: Tensor) -> None:
    seen = []
    model = _Scores()
    model.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    task = PointCloudTask(model, PointAugment(12, **STILL), num_points=20)
    loss = task.train()(clouds, TARGETS, "loss", index=torch.arange(3))["loss"]
    assert loss.isfinite()
    assert seen[0].shape == (3, 12, 3)
