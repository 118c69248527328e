"""Bootstrap intervals against scipy's; measures without a threshold against scikit-learn and counting."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from frozenllm.core.analysis import (
    auroc,
    bootstrap,
    geometric_mean,
    paired_difference,
    pointing,
    relevant_share,
    share_inside,
)


def _values(count: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(count, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) ** 3


def test_intervals_are_those_of_scipy():
    values = _values(80)
    ours = bootstrap(values, resamples=20000)
    theirs = stats.bootstrap(
        (values.numpy(),), lambda x, axis: x.mean(axis), method="percentile", n_resamples=20000, random_state=0
    ).confidence_interval
    assert ours.value == pytest.approx(values.mean().item())
    assert ours.low == pytest.approx(theirs.low, abs=2e-3)
    assert ours.high == pytest.approx(theirs.high, abs=2e-3)
    assert ours.samples == 80


def test_seed_level_and_missing_values():
    values = _values(30)
    assert bootstrap(values) == bootstrap(values)
    assert bootstrap(values) != bootstrap(values, seed=1)
    narrow, wide = bootstrap(values, level=0.5), bootstrap(values, level=0.99)
    assert wide.low < narrow.low < narrow.high < wide.high
    assert bootstrap(torch.cat([values, torch.tensor([math.nan])])) == bootstrap(values)
    assert bootstrap([2.0]) == bootstrap([2.0, math.nan])
    with pytest.raises(ValueError, match="no sample"):
        bootstrap([math.nan])
    with pytest.raises(ValueError, match="level"):
        bootstrap(values, level=95)


def test_intervals_hold_the_true_mean_as_often_as_they_say():
    inside = [
        not bootstrap(_values(60, seed=seed), resamples=300, seed=seed).excludes(0.25)  # E[u^3] = 1/4
        for seed in range(300)
    ]
    assert 0.89 <= sum(inside) / len(inside) <= 0.98


def test_pairs_show_what_overlapping_intervals_hide():
    first = _values(40)
    second = first + 0.02 + 0.005 * (_values(40, 1) - 0.25)
    a, b = bootstrap(first), bootstrap(second)
    assert a.high > b.low
    difference = paired_difference(second, first)
    assert difference.excludes(0.0)
    assert difference.value == pytest.approx((second - first).mean().item())
    second[3] = math.nan
    assert paired_difference(second, first).samples == 39
    with pytest.raises(ValueError, match="equally many"):
        paired_difference(first, second[1:])


def test_ratios_have_their_own_mean():
    assert bootstrap([4.0, 0.25], statistic=geometric_mean).value == pytest.approx(1.0)


@settings(max_examples=60, deadline=None)
@given(tokens=st.integers(2, 14), levels=st.integers(1, 6), seed=st.integers(0, 999))
def test_measures_without_threshold(tokens, levels, seed):
    oracle = pytest.importorskip("sklearn.metrics", reason="scikit-learn is the oracle")
    generator = torch.Generator().manual_seed(seed)
    active = torch.randint(levels, (3, tokens), generator=generator).float()  # many equal values
    relevant, counted = (torch.rand(3, tokens, generator=generator) > 0.4 for _ in range(2))
    found = {of.__name__: of(active, relevant, counted) for of in (auroc, pointing, share_inside)}
    share = relevant_share(relevant, counted)
    for i in range(3):
        truth, values = relevant[i][counted[i]].numpy(), active[i][counted[i]].numpy()
        if not truth.any():
            assert all(math.isnan(measured[i]) for measured in found.values())
            continue
        assert share[i].item() == pytest.approx(truth.mean())
        top = values == values.max()
        assert found["pointing"][i].item() == pytest.approx(truth[top].mean())
        if values.sum():
            assert found["share_inside"][i].item() == pytest.approx(values[truth].sum() / values.sum())
        else:
            assert math.isnan(found["share_inside"][i])
        if truth.all():
            assert math.isnan(found["auroc"][i])
        else:
            assert found["auroc"][i].item() == pytest.approx(oracle.roc_auc_score(truth, values))
