"""How sure a mean over samples is: percentile bootstrap intervals, also of the difference between two runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

Statistic = Callable[[Tensor], Tensor]
_CHUNK = 2**22  # values drawn at a time


@dataclass(frozen=True)
class Interval:
    """A statistic of samples, and the range in which it falls when the samples are drawn anew.

    Attributes:
        value: Of the samples as they are.
        low: Lower end.
        high: Upper end.
        samples: How many there are.
    """

    value: float
    low: float
    high: float
    samples: int

    def excludes(self, value: float = 0.0) -> bool:
        """Whether a value lies outside."""
        return not self.low <= value <= self.high


def mean(values: Tensor) -> Tensor:
    """Arithmetic mean over the last axis."""
    return values.mean(dim=-1)


def geometric_mean(values: Tensor) -> Tensor:
    """Geometric mean over the last axis, the one for ratios: as much above 1 as below gives 1."""
    return values.log().mean(dim=-1).exp()


def bootstrap(
    values: Tensor | Sequence[float],
    *,
    statistic: Statistic = mean,
    level: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> Interval:
    """Percentile bootstrap over samples.

    Args:
        values: (B,), one value a sample; NaN = a sample that has none, left out.
        statistic: (..., B) -> (...).
        level: Share of the resampled statistics that the interval holds.
        resamples: How many times the samples are drawn with replacement.
        seed: Of the draws.

    Raises:
        ValueError: There is no value, or a setting is out of range.
    """
    if not 0 < level < 1 or resamples < 1:
        raise ValueError(f"level must lie between 0 and 1 and resamples be positive, not {level} and {resamples}.")
    known = torch.as_tensor(values).detach().double().cpu().flatten()
    known = known[~known.isnan()]
    count = len(known)
    if not count:
        raise ValueError("There is no sample to take a mean of.")
    generator = torch.Generator().manual_seed(seed)
    rows = max(1, _CHUNK // count)
    drawn = torch.cat(
        [
            statistic(known[torch.randint(count, (min(rows, resamples - start), count), generator=generator)])
            for start in range(0, resamples, rows)
        ]
    )
    low, high = drawn.quantile(torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=torch.float64)).tolist()
    return Interval(float(statistic(known)), low, high, count)


def paired_difference(
    first: Tensor | Sequence[float], second: Tensor | Sequence[float], **options: float | int
) -> Interval:
    """Mean of ``first - second`` over the same samples in the same order, with its interval.

    Samples vary far more than models do, so that two overlapping intervals may hide a sure difference: this one shows
    it. It speaks of other samples, not of other training seeds.

    Args:
        first: (B,); NaN = none, and the pair is left out.
        second: (B,).
        **options: ``level``, ``resamples``, ``seed`` of `bootstrap`.

    Raises:
        ValueError: The lengths differ, or there is no pair.
    """
    a, b = (torch.as_tensor(values).detach().double().cpu().flatten() for values in (first, second))
    if len(a) != len(b):
        raise ValueError(f"Pairs need equally many samples, not {len(a)} and {len(b)}.")
    return bootstrap(a - b, **options)  # type: ignore[arg-type]
