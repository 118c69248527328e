"""Figures of the information-filtering study; colours, grids and fonts are those of every plot of the project."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from PIL import Image

from frozenllm.core.analysis.analyse import TAPS
from frozenllm.core.analysis.study import Finding
from frozenllm.core.style import COLOURS, TEXT_COLOUR, as_image, new_figure, styled

LABELS = {
    "host": "host",
    "adapter_in": "adapter in",
    "attention": "attention",
    "attention_residual": "attention, residual",
    "attention_weights": "attention weights",
    "ffn": "FFN",
    "ffn_residual": "FFN, residual",
    "adapter_out": "adapter out",
}
"""Taps as figures write them."""
Series = Mapping[str, Sequence[Finding]]


def dots(panels: Mapping[str, Series], label: str, colours: Mapping[str, str] | None = None) -> Image.Image:
    """Values with their intervals by tap, and a grey tick where chance would be; one panel beside the other.

    Args:
        panels: Title -> name of a series -> its findings, one a tap.
        label: Of the horizontal axis.
        colours: Of the series by name.
    """
    names = list(dict.fromkeys(name for series in panels.values() for name in series))
    taps = _ordered({f.tap for series in panels.values() for found in series.values() for f in found if f.tap})
    chosen = {name: (colours or {}).get(name, COLOURS[place % len(COLOURS)]) for place, name in enumerate(names)}
    with styled():
        width = 2.6 + 3.2 * len(panels)
        figure = new_figure(width, 1.3 + 0.18 * len(taps) * (len(names) + 1))
        axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
        for ax, (title, series) in zip(axes, panels.items(), strict=True):
            for place, name in enumerate(names):
                offset = (place - (len(names) - 1) / 2) * 0.8 / max(len(names), 2)
                for number, finding in enumerate(series.get(name, ())):
                    row = taps.index(finding.tap or "") + offset
                    if finding.low is not None and finding.high is not None:
                        ax.plot([finding.low, finding.high], [row, row], color=chosen[name], lw=2, alpha=0.6)
                    tag = name if ax is axes[0] and number == 0 else None
                    ax.plot(finding.value, row, "o", color=chosen[name], ms=5, label=tag)
                    if finding.chance is not None:
                        ax.plot(finding.chance, row, "|", color=TEXT_COLOUR, ms=8, mew=1.5)
            ax.set_title(title, fontsize=10)
            ax.set_yticks(range(len(taps)), [LABELS.get(tap, tap) for tap in taps])
            ax.set_ylim(len(taps) - 0.4, -0.6)
            ax.set_xlabel(label)
        axes[0].plot([], [], "|", color=TEXT_COLOUR, ms=8, mew=1.5, label="chance")
        figure.legend(loc="outside upper center", ncols=min(len(names) + 1, 4), fontsize=9)
        return as_image(figure, dpi=150)


def depth_lines(
    panels: Mapping[str, Series], colours: Mapping[str, str] | None = None, baseline: Mapping[str, float] | None = None
) -> Image.Image:
    """Values along the depth of the network with their intervals as bands; one panel below the other.

    Args:
        panels: Label of the vertical axis -> name of a series -> findings in the order of the computation.
        colours: Of the series by name.
        baseline: Label of a panel -> a dashed line.
    """
    names = list(dict.fromkeys(name for series in panels.values() for name in series))
    chosen = {name: (colours or {}).get(name, COLOURS[place % len(COLOURS)]) for place, name in enumerate(names)}
    longest = max((found for series in panels.values() for found in series.values()), key=len)
    depths = _merged([found for series in panels.values() for found in series.values()], longest)
    with styled():
        figure = new_figure(6.4, 2.4 * len(panels) + 0.8)
        axes = figure.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0]
        for ax, (label, series) in zip(axes, panels.items(), strict=True):
            for name, found in series.items():
                places = [depths.index(f.tap or "") for f in found]
                ax.plot(places, [f.value for f in found], "-o", color=chosen[name], ms=4, lw=2, label=name)
                low = [f.value if f.low is None else f.low for f in found]
                high = [f.value if f.high is None else f.high for f in found]
                ax.fill_between(places, low, high, color=chosen[name], alpha=0.15, lw=0)
            if baseline and label in baseline:
                ax.axhline(baseline[label], color=TEXT_COLOUR, ls="--", lw=1)
            ax.set_ylabel(label)
        axes[-1].set_xticks(range(len(depths)), [LABELS.get(d, d) for d in depths], rotation=35, ha="right")
        if len(names) > 1:
            axes[0].legend(fontsize=9)
        return as_image(figure, dpi=150)


def _ordered(taps: Iterable[str]) -> list[str]:
    order = ["pixels", *TAPS[:2], "attention_weights", *TAPS[2:]]
    return sorted(taps, key=lambda tap: order.index(tap) if tap in order else len(order))


def _merged(all_found: Sequence[Sequence[Finding]], longest: Sequence[Finding]) -> list[str]:
    """Depths of all series in the order of the longest one."""
    depths = [f.tap or "" for f in longest]
    for found in all_found:
        depths += [f.tap or "" for f in found if (f.tap or "") not in depths]
    return depths
