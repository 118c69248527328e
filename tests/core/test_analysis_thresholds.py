"""Pseudo-masks against hand-made masks; a threshold that is chosen on samples other than those it scores."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import hypergeom

from frozenllm.core.analysis import THRESHOLDS, halves, honest, iou_table, oracle, overlap
from frozenllm.core.analysis.thresholds import permuted

NAMES = [f"image{i}" for i in range(8)]


def test_iou_of_hand_made_masks():
    active = torch.tensor([[0.95, 0.55, 0.15, 0.0], [1.0, 0.1, 0.1, 0.0]])
    relevant = torch.tensor([[True, True, False, False], [False, False, True, True]])
    table = iou_table(active, relevant)
    # above 0.1: tokens 0-2, two of three right; from 0.2 on 0 and 1, all right; from 0.6 on 0 alone, one missing
    expected = [2 / 3, 1, 1, 1, 1, 0.5, 0.5, 0.5, 0.5]
    assert table[0].tolist() == pytest.approx(expected)
    assert table[1].tolist() == [0.0] * 9  # 0.1 is not above 0.1
    assert oracle(table).tolist() == [1.0, 0.0]


def test_ignored_tokens_are_neither_hits_nor_misses():
    active = torch.tensor([[1.0, 0.9, 0.8, 0.05]])
    relevant = torch.tensor([[True, False, True, True]])
    counted = torch.tensor([[True, False, True, False]])
    assert iou_table(active, relevant, counted)[0, 0] == 1.0
    assert iou_table(active, relevant)[0, 0] == 0.5


def test_samples_without_a_relevant_token_are_left_out():
    active = torch.rand(3, 5)
    relevant = torch.tensor([[True] + [False] * 4, [False] * 5, [True] * 5])
    counted = torch.tensor([[False] + [True] * 4, [True] * 5, [True] * 5])
    table = iou_table(active, relevant, counted)
    assert table.isnan().all(dim=1).tolist() == [True, True, False]
    with pytest.raises(ValueError, match=r"two samples or more with relevant tokens.*there is 1 of 3"):
        overlap(active, relevant, ["a", "b", "c"], counted)


@settings(max_examples=40, deadline=None)
@given(batch=st.integers(1, 4), tokens=st.integers(1, 9), seed=st.integers(0, 999))
def test_iou_equals_counting(batch, tokens, seed):
    generator = torch.Generator().manual_seed(seed)
    active = torch.rand(batch, tokens, generator=generator)
    relevant, counted = (torch.rand(batch, tokens, generator=generator) > 0.4 for _ in range(2))
    table = iou_table(active, relevant, counted)
    for i in range(batch):
        truth = {j for j in range(tokens) if relevant[i, j] and counted[i, j]}
        for place, threshold in enumerate(THRESHOLDS):
            marked = {j for j in range(tokens) if active[i, j] > np.float32(threshold) and counted[i, j]}
            if truth:
                assert table[i, place].item() == pytest.approx(len(truth & marked) / len(truth | marked))
            else:
                assert math.isnan(table[i, place])


def test_halves_follow_the_names_alone():
    first = halves(NAMES)
    assert first.sum() == 4
    assert halves(NAMES[::-1]).flip(0).equal(first)
    assert any(not halves(NAMES, seed).equal(first) for seed in range(1, 5))
    assert halves(NAMES[:5]).sum() == 2
    with pytest.raises(ValueError, match="different names"):
        halves(["a", "a"])


def _scene(samples: int = 8, tokens: int = 40) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    relevant = torch.rand(samples, tokens, generator=generator) < 0.3
    noise = torch.rand(samples, tokens, generator=generator)
    return (0.5 * noise + 0.35 * relevant).clamp(0, 1), relevant


def test_the_honest_threshold_never_sees_what_it_scores():
    active, relevant = _scene()
    first = halves(NAMES)
    fair = honest(iou_table(active, relevant), first)
    swapped = relevant.clone()
    swapped[~first] = ~relevant[~first]  # other labels in the half that the first threshold scores
    other = honest(iou_table(active, swapped), first)
    assert other.thresholds[0] == fair.thresholds[0]
    assert other.thresholds[1] != fair.thresholds[1]
    assert not torch.equal(other.values[~first], fair.values[~first])
    swapped = relevant.clone()
    swapped[first] = ~relevant[first]
    assert honest(iou_table(active, swapped), first).thresholds[1] == fair.thresholds[1]


def test_each_half_is_scored_at_the_other_halfs_best_threshold():
    table = torch.tensor([[0.9, 0.1, 0.0], [0.8, 0.2, 0.0], [0.1, 0.3, 0.7], [0.2, 0.4, 0.6]])
    first = torch.tensor([True, True, False, False])
    fair = honest(table, first, (0.2, 0.5, 0.8))
    assert fair.thresholds == pytest.approx((0.2, 0.8))
    assert torch.equal(fair.values, torch.tensor([0.0, 0.0, 0.1, 0.2]))


def test_activations_that_know_the_mask_beat_chance():
    active, relevant = _scene()
    result = overlap(active, relevant, NAMES)
    assert (result.oracle >= result.honest).all()
    assert result.honest.mean() > result.chance_honest + 0.2
    assert result.oracle.mean() > result.chance_oracle + 0.2
    again = overlap(active.flip(0), relevant.flip(0), NAMES[::-1])
    assert torch.equal(again.honest.flip(0), result.honest)
    blind = overlap(torch.rand(8, 40, generator=torch.Generator().manual_seed(5)), relevant, NAMES)
    assert blind.honest.mean().item() == pytest.approx(blind.chance_honest, abs=0.06)


def test_chance_is_that_of_random_tokens():
    active, relevant = _scene(1, 20)
    counted = torch.ones_like(relevant)
    counted[:, :4] = False
    moved = list(permuted(active, counted, repeats=4000, seed=3))
    assert all(torch.equal(m[:, :4], active[:, :4]) for m in moved)
    assert all(torch.equal(m.sort().values, active.sort().values) for m in moved[:50])
    drawn = torch.stack([iou_table(m, relevant, counted, (0.3,)) for m in moved]).mean().item()
    marked = int((active[:, 4:] > 0.3).sum())
    truth = int(relevant[:, 4:].sum())
    hits = np.arange(max(0, marked + truth - 16), min(marked, truth) + 1)
    exact = (hypergeom(16, truth, marked).pmf(hits) * hits / (marked + truth - hits)).sum()
    assert drawn == pytest.approx(exact, abs=0.01)


def test_what_does_not_fit_is_said():
    with pytest.raises(ValueError, match="relevant must be bool of shape \\(2, 3\\)"):
        iou_table(torch.rand(2, 3), torch.ones(2, 4, dtype=torch.bool))
    with pytest.raises(ValueError, match="2 names for 3 samples"):
        overlap(torch.rand(3, 4), torch.ones(3, 4, dtype=torch.bool), ["a", "b"])
