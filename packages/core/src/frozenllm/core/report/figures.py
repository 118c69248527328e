"""The figures of a report, as SVG inside the page."""

from __future__ import annotations

import base64
import io
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib

from frozenllm.core.report.arms import Section
from frozenllm.core.style import new_figure, styled
from frozenllm.core.training.journal import HISTORY, by_epoch

_WIDTH, _HEIGHT = 4.3, 2.95  # narrow, so that labels can still be read on a phone
_LINES = ("-", "--", "-.", ":")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
_DRAWING: Any = {
    "svg.hashsalt": "frozenllm",  # else every drawing has other ids
    "text.parse_math": False,  # names may hold dollars
}


@dataclass(frozen=True)
class Figure:
    """A figure of the page.

    Attributes:
        title: A few words.
        uri: The picture as a data URI.
        alt: What it shows, for those who do not see it.
        caption: How to read it.
    """

    title: str
    uri: str
    alt: str
    caption: str = ""


def figures(section: Section) -> list[Figure]:
    """All figures of a section that its runs have the numbers for."""
    curves = {id(arm): [by_epoch(run.folder / HISTORY, section.metric) for run in arm.runs] for arm in section.arms}
    drawn = [
        _ends(section),
        _curves(section, {key: [v for _, v in pairs] for key, pairs in curves.items()}, section.metric, "validation"),
        _curves(section, {key: [t for t, _ in pairs] for key, pairs in curves.items()}, "loss", "training"),
        _layers(section),
    ]
    return [figure for figure in drawn if figure is not None]


def decimals(values: Sequence[float]) -> int:
    """Of a metric: two for per cents, three for metres and the like."""
    return 2 if values and abs(statistics.mean(values)) >= 10 else 3


def number(value: float, like: float | None = None) -> str:
    """A metric's value, or one as exact as another."""
    return f"{value:.{decimals([value if like is None else like])}f}"


def _ends(section: Section) -> Figure | None:
    """Every run's last validation."""
    arms = [arm for arm in section.arms if arm.row.values]
    if sum(len(arm.row.values) for arm in arms) < 2:
        return None

    def draw(axes: Any) -> None:
        for row, arm in enumerate(arms):
            axes.plot([arm.row.mean] * 2, [row - 0.28, row + 0.28], color=arm.colour, lw=3, solid_capstyle="round")
            axes.plot(arm.row.values, [row] * len(arm.row.values), "o", color=arm.colour, ms=8, alpha=0.65, mec="white")
        axes.set_yticks(range(len(arms)), [_wrapped(arm.name) for arm in arms])
        axes.set_ylim(len(arms) - 0.5, -0.5)
        axes.grid(visible=False, axis="y")
        axes.margins(x=0.12)
        axes.set_xlabel(section.metric)

    shown = "; ".join(f"{arm.name}: {', '.join(map(number, arm.row.values))}" for arm in arms)
    caption = "Dots: single runs. Bars: means."
    height = max(_HEIGHT * 0.7, 0.9 + 0.42 * len(arms))
    return Figure("At the end of training", _draw(draw, height), f"{section.metric} of every run. {shown}.", caption)


def _curves(
    section: Section, curves: Mapping[int, Sequence[Mapping[int, float]]], name: str, part: str
) -> Figure | None:
    """A quantity by epoch: mean over seeds, with a band from the lowest to the highest."""
    shown = [(arm, [curve for curve in curves[id(arm)] if curve]) for arm in section.arms]
    shown = [(arm, drawn) for arm, drawn in shown if drawn]
    if not shown or max(len(curve) for _, drawn in shown for curve in drawn) < 2:
        return None
    ends = []

    def draw(axes: Any) -> None:
        for place, (arm, drawn) in enumerate(shown):
            epochs = sorted(set.intersection(*(set(curve) for curve in drawn)))
            columns = [[curve[epoch] for curve in drawn] for epoch in epochs]
            means = [statistics.mean(column) for column in columns]
            look = {"ls": _LINES[place % len(_LINES)], "marker": _MARKERS[place % len(_MARKERS)], "ms": 3.5}
            look["markevery"] = max(1, len(epochs) // 12)
            axes.plot(epochs, means, color=arm.colour, lw=1.8, label=arm.name, **look)
            if len(drawn) > 1:
                low, high = [min(column) for column in columns], [max(column) for column in columns]
                axes.fill_between(epochs, low, high, color=arm.colour, alpha=0.15, lw=0)
            if means:
                ends.append(f"{arm.name} ends at {number(means[-1])}")
        axes.set_xlabel("epoch")
        axes.set_ylabel(f"{part} {name}" if name == "loss" else name)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.legend(fontsize=8)

    uri = _draw(draw)
    several = any(len(drawn) > 1 for _, drawn in shown)
    caption = "Lines: means over the seeds. Bands: from the lowest run to the highest." if several else ""
    return Figure(f"{part.capitalize()}: {name}", uri, f"{name} by epoch. {'; '.join(ends)}.", caption)


def _layers(section: Section) -> Figure | None:
    """The metric against the layer that the frozen block comes from."""
    if not section.sweep:
        return None
    sweep = section.sweep
    colour = sweep[0].colour
    others = [arm for arm in section.arms if arm not in sweep and arm.row.values]

    def draw(axes: Any) -> None:
        for arm in sweep:
            axes.plot([arm.layer] * len(arm.row.values), arm.row.values, "o", color=colour, ms=6, alpha=0.45, mec="w")
        axes.plot([arm.layer for arm in sweep], [arm.row.mean for arm in sweep], color=colour, lw=2, label="by layer")
        for place, arm in enumerate(others[: len(_LINES) - 1]):
            line = _LINES[1 + place % (len(_LINES) - 1)]
            axes.axhline(arm.row.mean, color=arm.colour, lw=2, ls=line, label=arm.name)
        axes.set_xlabel("layer of the language model (0: next to its input)")
        axes.set_ylabel(section.metric)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.margins(y=0.12)
        axes.legend(fontsize=8)

    means = [(arm.row.mean or 0.0, arm.layer) for arm in sweep]
    best, worst = max(means), min(means)
    if section.lower_is_better:
        best, worst = worst, best
    within = max(max(arm.row.values) - min(arm.row.values) for arm in sweep)
    text = (
        f"Layer {best[1]} does best ({number(best[0])}), layer {worst[1]} worst ({number(worst[0])}). "
        f"The means lie within {number(abs(best[0] - worst[0]), best[0])}"
        + (f", runs of one layer up to {number(within, best[0])} apart." if within else ".")
    )
    if (host := next((arm for arm in others if arm.row.is_host), None)) and host.row.mean is not None:
        sign = -1 if section.lower_is_better else 1
        above = sum(sign * mean > sign * host.row.mean for mean, _ in means)
        text += f" {above} of {len(sweep)} layers are better than {host.name} on average."
    listed = ", ".join(f"layer {arm.layer}: {number(arm.row.mean or 0.0)}" for arm in sweep)
    return Figure("Which layer of the language model", _draw(draw), f"{section.metric} by layer. {listed}.", text)


def _draw(draw: Callable[[Any], None], height: float = _HEIGHT) -> str:
    with styled(), matplotlib.rc_context(_DRAWING):
        figure = new_figure(_WIDTH, height)
        draw(figure.subplots())
        out = io.BytesIO()
        figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None})
    return "data:image/svg+xml;base64," + base64.b64encode(out.getvalue()).decode()


def _wrapped(name: str, width: int = 18) -> str:
    """A long name over several lines, broken where its parts end."""
    lines = [""]
    for part in name.replace("-", "-\0").replace("/", "/\0").replace(" ", " \0").replace(",", ",\0").split("\0"):
        if lines[-1] and len(lines[-1] + part) > width:
            lines.append("")
        lines[-1] += part
    return "\n".join(lines)
