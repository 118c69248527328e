"""Plots of a table of runs: the metric against what was varied, weights, operations and time; and losses."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from matplotlib.ticker import EngFormatter, MaxNLocator, NullFormatter

from frozenllm.core.style import COLOURS, HOST_COLOUR, TEXT_COLOUR, new_figure, styled
from frozenllm.core.training.journal import HISTORY, by_epoch
from frozenllm.core.training.rows import HOST, Row

_VALIDATION_LOSS = "cross_entropy/mean"


def plot_table(rows: Sequence[Row], path: Path) -> Path:
    """Draw the metric four ways: against what was varied, trained weights, operations, and the time of a step.

    Args:
        rows: From `frozenllm.core.training.tables.collect`.
        path: The PNG file.
    """
    shown = [row for row in rows if row.values]
    arms = [row for row in shown if not row.is_host] or shown
    groups = list(dict.fromkeys(row.group for row in arms))
    colours = {group: COLOURS[i % len(COLOURS)] for i, group in enumerate(groups)}
    key = _axis(arms)
    with styled():
        height = 6.4 if key else max(6.4, 3.6 + 0.3 * len(shown))
        figure = new_figure(11, height)
        ratio = [1, 1] if key else [max(1.0, 0.1 * len(shown)), 1]
        axes = figure.subplots(2, 2, height_ratios=ratio)
        if key:
            _against_setting(axes[0, 0], shown, arms, groups, colours, key)
        else:
            _by_name(axes[0, 0], shown, colours)
        _scatter(axes[0, 1], shown, colours, lambda row: row.trainable, "trained weights", key)
        _scatter(axes[1, 0], shown, colours, lambda row: row.flops, "FLOPs of one prediction", key)
        relative = any(row.relative_step for row in shown)
        label = "training step, relative to the host alone" if relative else "training step, seconds"
        step: Callable[[Row], float | None] = lambda row: row.relative_step if relative else row.step_seconds  # noqa: E731
        _scatter(axes[1, 1], shown, colours, step, label, key)
        if len(groups) > 1 and not key:
            for group in groups:
                axes[0, 1].plot([], [], "o", color=colours[group], label=_short(group))
            axes[0, 1].legend(fontsize=8)
        figure.savefig(path, dpi=150)
    return path


def plot_losses(rows: Sequence[Row], path: Path) -> Path | None:
    """Draw training and validation loss by epoch, every row in a colour of its own (paper, Figure F).

    Args:
        rows: From `frozenllm.core.training.tables.collect`.
        path: The PNG file.

    Returns:
        The file, or None where no run kept a validation loss (the metric ``CrossEntropy``).
    """
    curves = {id(row): [by_epoch(Path(run) / HISTORY, _VALIDATION_LOSS) for run in row.runs] for row in rows}
    shown = [row for row in rows if any(validation for _, validation in curves[id(row)])]
    if not shown:
        return None
    with styled():
        figure = new_figure(11, 4.2)
        axes = figure.subplots(1, 2)
        for place, row in enumerate(shown):
            colour = HOST_COLOUR if row.is_host else COLOURS[place % len(COLOURS)]
            for part, ax in enumerate(axes):
                drawn = [run[part] for run in curves[id(row)] if run[part]]
                for number, curve in enumerate(drawn):
                    label = _text(row.name) if number == 0 else None
                    ax.plot(list(curve), list(curve.values()), color=colour, lw=1.6, alpha=0.85, label=label)
        axes[0].set(xlabel="epoch", ylabel="training loss (of augmented data)")
        axes[1].set(xlabel="epoch", ylabel="validation loss, nats")
        for ax in axes:
            ax.xaxis.get_major_locator().set_params(integer=True)
        axes[1].legend(fontsize=8)
        figure.savefig(path, dpi=150)
    return path


def _axis(rows: Sequence[Row]) -> str | None:
    """The one setting that differs within every group, if it is a number everywhere; else None."""
    keys = {key for row in rows for key in row.settings}
    if len(keys) != 1:
        return None
    key = keys.pop()
    values = [_as_number(row.settings.get(key)) for row in rows]
    return key if None not in values and len(set(values)) > 1 else None


def _as_number(value: Any) -> float | None:
    if isinstance(value, str):  # lists are JSON
        try:
            value = json.loads(value)
        except ValueError:
            return None
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None


def _against_setting(
    ax: Any, shown: Sequence[Row], arms: Sequence[Row], groups: Sequence[str], colours: dict[str, str], key: str
) -> None:
    for group in groups:
        points = sorted((_as_number(row.settings[key]), row) for row in arms if row.group == group)  # type: ignore
        ax.plot(
            [x for x, _ in points], [row.mean for _, row in points], color=colours[group], lw=2, label=_short(group)
        )
        for x, row in points:
            ax.plot([x] * len(row.values), row.values, "o", color=colours[group], ms=6, alpha=0.6, mec="white")
    for host in (row for row in shown if row.is_host and row not in arms):
        ax.axhline(host.mean, color=HOST_COLOUR, lw=2, ls="--", label=HOST)
    ax.set_xlabel({"llm.layers": "layer of the language model (0: next to its input)"}.get(key, key))
    ax.set_ylabel(shown[0].metric)
    if all(float(_as_number(row.settings[key]) or 0).is_integer() for row in arms):
        ax.xaxis.get_major_locator().set_params(integer=True)
    ax.margins(y=0.15)
    ax.legend(fontsize=8)


def _by_name(ax: Any, shown: Sequence[Row], colours: dict[str, str]) -> None:
    for place, row in enumerate(shown):
        colour = HOST_COLOUR if row.is_host else colours[row.group]
        ax.plot([row.mean] * 2, [place - 0.3, place + 0.3], color=colour, lw=3, solid_capstyle="round")
        ax.plot(row.values, [place] * len(row.values), "o", color=colour, ms=7, alpha=0.65, mec="white")
    ax.set_yticks(range(len(shown)), [_wrapped(row.name) for row in shown], fontsize=8)
    ax.set_ylim(len(shown) - 0.4, -0.6)
    ax.grid(visible=False, axis="y")
    ax.margins(x=0.1)
    ax.set_xlabel(shown[0].metric)


def _scatter(
    ax: Any,
    shown: Sequence[Row],
    colours: dict[str, str],
    x: Callable[[Row], float | None],
    label: str,
    key: str | None,
) -> None:
    """Points, each with the part of its name that tells it from the others."""
    points = [(value, row) for row in shown if (value := x(row)) is not None]
    common = _common([row.name for _, row in points if not row.is_host])
    ax.margins(x=0.15, y=0.12)
    ax.set(xlabel=label, ylabel=shown[0].metric)
    if not points:
        ax.text(0.5, 0.5, "not measured", ha="center", va="center", transform=ax.transAxes, color=HOST_COLOUR)
        return
    for value, row in points:
        ax.plot(
            value,
            row.mean,
            "o",
            color=HOST_COLOUR if row.is_host else colours[row.group],
            ms=7,
            alpha=0.75,
            mec="white",
        )
    values = [value for value, _ in points]
    if max(values) > 8 * min(values) > 0:
        ax.set_xscale("log")
    else:
        ax.xaxis.set_major_locator(MaxNLocator(5))
    if max(values) > 1000:
        ax.xaxis.set_major_formatter(EngFormatter(sep=" "))
        ax.xaxis.set_minor_formatter(NullFormatter())
    names = []
    for value, row in points:
        number = _as_number(row.settings.get(key)) if key else None
        own = f"{number:g}" if number is not None and not row.is_host else row.name.removeprefix(common)
        names.append((value, row.mean or 0.0, HOST if row.is_host else _wrapped(own)))
    _annotate(ax, names)


def _annotate(ax: Any, names: Sequence[tuple[float, float, str]]) -> None:
    """Names beside their points, moved up where they would lie on each other."""
    ax.figure.canvas.draw()  # settles scales and sizes, which positions in points depend on
    to_points = 72 / ax.figure.dpi
    left, right = (edge * to_points for edge in (ax.bbox.x0, ax.bbox.x1))
    placed: list[tuple[float, float, bool]] = []
    for value, mean, name in sorted(names, key=lambda entry: entry[1]):
        at_x, at_y = (coordinate * to_points for coordinate in ax.transData.transform((value, mean)))
        to_left = at_x > (left + right) / 2
        height = at_y
        for x, y, side in placed:
            if side == to_left and abs(x - at_x) < 6 * len(name) and height < y + 8:
                height = y + 8
        placed.append((at_x, height, to_left))
        ax.annotate(
            name,
            (value, mean),
            xytext=(-7 if to_left else 7, height - at_y),
            textcoords="offset points",
            ha="right" if to_left else "left",
            va="center",
            fontsize=7,
            color=TEXT_COLOUR,
        )


def _common(names: Sequence[str]) -> str:
    """What all names begin with, up to a separator: ``llm.layers=`` of a sweep over layers."""
    if len(names) < 2:
        return ""
    first, last = min(names), max(names)
    length = next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), min(len(first), len(last)))
    cut = max(first.rfind(mark, 0, length) for mark in ",=/ ")
    return first[: cut + 1]


def _short(group: str) -> str:
    return _text(Path(group).name)


def _wrapped(name: str, width: int = 34) -> str:
    lines = name.split(", ") if len(name) > width else [name]
    return _text(",\n".join(line if len(line) <= width else f"...{line[-width:]}" for line in lines))


def _text(name: str) -> str:
    """A name that matplotlib takes as it is: between two dollars it would read a formula, as log axes need it to."""
    return name.replace("$", r"\$")
