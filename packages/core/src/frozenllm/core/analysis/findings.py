"""`Finding`s of the measures, worded and rounded alike in every domain."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from frozenllm.core.analysis.amplification import inside_outside
from frozenllm.core.analysis.analyse import Analysis
from frozenllm.core.analysis.bootstrap import Interval, Statistic, bootstrap, geometric_mean, mean
from frozenllm.core.analysis.relevance import auroc
from frozenllm.core.analysis.study import Finding
from frozenllm.core.analysis.thresholds import Overlap, overlap


def interval_finding(
    name: str,
    interval: Interval,
    tap: str | None = None,
    kind: str | None = None,
    *,
    chance: float | None = None,
    unit: str = "",
) -> Finding:
    """A finding with the interval's ends; per cent where the unit says so (values are shares then).

    Args:
        name: See `Finding`.
        interval: From `bootstrap`.
        tap: See `Finding`.
        kind: See `Finding`.
        chance: See `Finding`, on the interval's scale.
        unit: ``"%"`` multiplies by 100.
    """
    scale = 100.0 if unit == "%" else 1.0
    return Finding(
        name,
        scale * interval.value,
        tap,
        kind,
        low=scale * interval.low,
        high=scale * interval.high,
        chance=None if chance is None else scale * chance,
        unit=unit,
        samples=interval.samples,
    )


def mean_finding(
    name: str,
    values: Tensor,
    tap: str | None = None,
    kind: str | None = None,
    *,
    chance: float | None = None,
    unit: str = "",
    statistic: Statistic = mean,
) -> Finding | None:
    """The mean of one value a sample, with its bootstrap interval; None where no sample has a value.

    Args:
        name: See `Finding`.
        values: (B,), NaN = none.
        tap: See `Finding`.
        kind: See `Finding`.
        chance: See `interval_finding`.
        unit: See `interval_finding`.
        statistic: Another mean.
    """
    if values.isnan().all():
        return None
    return interval_finding(name, bootstrap(values, statistic=statistic), tap, kind, chance=chance, unit=unit)


def overlap_findings(what: str, result: Overlap, tap: str, kind: str) -> list[Finding]:
    """Both IoUs of one activation, in per cent: the honest one first.

    Args:
        what: With what the pseudo-masks are compared, such as ``"the object"``.
        result: From `overlap`.
        tap: See `Finding`.
        kind: See `Finding`.
    """
    both = (
        (f"IoU with {what}, honest threshold", result.honest, result.chance_honest),
        (f"IoU with {what}, each sample's best threshold (upper bound)", result.oracle, result.chance_oracle),
    )
    found = [mean_finding(name, values, tap, kind, chance=chance, unit="%") for name, values, chance in both]
    return [finding for finding in found if finding is not None]


def ratio_finding(name: str, ratios: Tensor, tap: str | None = None, kind: str | None = None) -> Finding | None:
    """The geometric mean of `inside_outside`; chance is 1."""
    return mean_finding(name, ratios, tap, kind, chance=1.0, unit="x", statistic=geometric_mean)


def of_analysis(
    analysis: Analysis,
    relevant: Tensor | None,
    counted: Tensor | None = None,
    ids: Sequence[str] | None = None,
    *,
    what: str = "the object",
) -> list[Finding]:
    """The measures of an `Analysis`: IoU and AUROC of every activation, amplification and effective rank by depth.

    Args:
        analysis: Of S samples with N tokens.
        relevant: (S, N) bool; None where nobody knows, which leaves the ranks.
        counted: (S, N) bool, False = the true mask says nothing there; the analysis' own padding never counts.
        ids: Names of the samples, by which halves are chosen; None for their numbers.
        what: What the relevant tokens are.

    Raises:
        ValueError: A shape does not fit, or fewer than two samples have relevant tokens.
    """
    found: list[Finding | None] = []
    if relevant is not None:
        counted = _both(counted, analysis.mask)
        names = ids if ids is not None else [str(number) for number in range(len(analysis))]
        covered = [
            overlap_findings(what, overlap(values, relevant, names, counted), tap, kind)
            for (kind, tap), values in analysis.activations.items()
        ]
        found += [finding for same in zip(*covered, strict=True) for finding in same]  # one measure after the other
        for (kind, tap), values in analysis.activations.items():
            found.append(mean_finding(f"AUROC for {what}", auroc(values, relevant, counted), tap, kind, chance=0.5))
        for depth, values in analysis.strengths.items():
            found.append(
                ratio_finding(f"Activation on {what} over elsewhere", inside_outside(values, relevant, counted), depth)
            )
    for depth, values in analysis.ranks.items():
        found.append(mean_finding("Effective rank of the tokens", values, depth))
    return [finding for finding in found if finding is not None]


def findings_table(findings: Sequence[Finding]) -> str:
    """Findings as lines of text, one a number."""
    head = ("finding", "tap", "kind", "value", "95 % interval", "chance", "samples")
    rows = [head, *(_row(finding) for finding in findings)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(head))]
    lines = [
        "  ".join(
            cell.ljust(width) if column < 3 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])


def value_text(value: float | None, unit: str = "") -> str:
    """A finding's number as people read it.

    Args:
        value: The number; None for none.
        unit: See `Finding`.
    """
    if value is None:
        return "-"
    return f"{value:.1f} %" if unit == "%" else f"{value:.3f}{' ' + unit if unit else ''}"


def _row(finding: Finding) -> tuple[str, ...]:
    def figure(value: float | None) -> str:
        return value_text(value, finding.unit)

    interval = "-"
    if finding.low is not None and finding.high is not None:
        interval = f"{figure(finding.low)} to {figure(finding.high)}"
    count = "-" if finding.samples is None else str(finding.samples)
    chance = figure(finding.chance)
    return finding.name, finding.tap or "-", finding.kind or "-", figure(finding.value), interval, chance, count


def _both(first: Tensor | None, second: Tensor | None) -> Tensor | None:
    if first is None or second is None:
        return first if second is None else second
    return first & second
