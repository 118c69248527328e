"""Accuracy over videos with several views."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from frozenllm.core.training import UNREADABLE
from frozenllm.video.metrics import VideoAccuracy


def fill(metric: VideoAccuracy, scores: torch.Tensor, targets: list[int], videos: list[int] | None) -> VideoAccuracy:
    for start in range(0, len(targets), 4):  # batches of four
        part = slice(start, start + 4)
        batch = {} if videos is None else {"video": torch.tensor(videos[part])}
        metric.process(batch, [{"scores": s, "target": t} for s, t in zip(scores[part], targets[part], strict=True)])
    return metric


@settings(deadline=None, max_examples=50)
@given(st.integers(1, 8), st.integers(1, 6), st.integers(2, 7), st.integers(0, 999))
def test_probabilities_are_averaged_over_views(videos: int, views: int, classes: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randn(videos, views, classes, generator=generator) * 4
    targets = torch.randint(classes, (videos,), generator=generator)
    order = torch.randperm(videos * views, generator=generator)
    metric = fill(
        VideoAccuracy(topk=(1, 2)),
        scores.flatten(0, 1)[order],
        targets.repeat_interleave(views)[order].tolist(),
        torch.arange(videos).repeat_interleave(views)[order].tolist(),
    )
    best = scores.softmax(-1).mean(1).topk(2).indices
    expected = {
        f"accuracy/top{k}": 100 * (best[:, :k] == targets[:, None]).any(1).double().mean().item() for k in (1, 2)
    }
    assert metric.evaluate(videos * views) == pytest.approx(expected)


def test_averaging_logits_or_votes_would_be_wrong() -> None:
    # Two views are barely for class 1, one is all for class 0: by probabilities 0 wins, by votes 1.
    scores = torch.tensor([[0.0, 0.1], [0.0, 0.1], [30.0, 0.0]])
    assert fill(VideoAccuracy(), scores, [0, 0, 0], [5, 5, 5]).evaluate(3) == {"accuracy/top1": 100.0}
    # One view is sure of class 1 beyond measure, two are rather for 0: by logits 1 wins, by probabilities 0.
    scores = torch.tensor([[3.0, 0.0], [3.0, 0.0], [0.0, 900.0]])
    assert fill(VideoAccuracy(), scores, [0, 0, 0], [5, 5, 5]).evaluate(3) == {"accuracy/top1": 100.0}


def test_unreadable_videos_are_left_out_and_counted() -> None:
    scores = torch.eye(3)[[0, 0, 1, 1, 2, 2]]
    targets, videos = [0, 0, UNREADABLE, UNREADABLE, 0, 0], [0, 0, 1, 1, 2, 2]
    found = fill(VideoAccuracy(), scores, targets, videos).evaluate(6)
    assert found == {"accuracy/top1": 50.0, "accuracy/unreadable": 1.0}
    with pytest.raises(ValueError, match="Not one sample"):
        fill(VideoAccuracy(), scores[:2], [UNREADABLE] * 2, [0, 0]).evaluate(2)


def test_without_videos_every_sample_is_one() -> None:
    scores = torch.eye(2)[[0, 1, 1, 0]]
    assert fill(VideoAccuracy(topk=(1, 5)), scores, [0, 0, 1, 0], None).evaluate(4) == {
        "accuracy/top1": 75.0,
        "accuracy/top5": 100.0,
    }


def test_what_a_sampler_adds_at_the_end_does_not_count() -> None:
    scores = torch.eye(2)[[0, 1, 1]]
    # Two samples, and a third that only fills the last batch of several processes.
    assert fill(VideoAccuracy(), scores, [0, 0, 1], [0, 1, 2]).evaluate(2) == {"accuracy/top1": 50.0}


def test_results_travel_between_processes() -> None:
    metric = fill(VideoAccuracy(), torch.randn(4, 3), [0, 1, 2, 0], [0, 0, 1, 1])
    assert all(isinstance(scores, np.ndarray) and scores.dtype == np.float32 for _, _, scores in metric.results)
