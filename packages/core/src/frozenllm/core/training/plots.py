"""Curves of a run as PNG files."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path

_TRAIN_LEFT_OUT = {"epoch", "iter", "kind", "data_seconds"}


def plot_history(history: Path, folder: Path) -> list[Path]:
    """Draw every quantity of a ``metrics.jsonl`` against the iteration, one picture each.

    Args:
        history: The file of JSON lines.
        folder: Where the pictures go; made if missing.

    Returns:
        The pictures' paths; empty if there is nothing to draw.
    """
    from frozenllm.core.style import new_figure, styled  # matplotlib takes a second to import

    series: dict[tuple[str, str], list[tuple[int, float]]] = defaultdict(list)
    for text in history.read_text().splitlines() if history.exists() else ():
        line = json.loads(text)
        if line["kind"] == "test":
            continue  # one point
        for name, value in line.items():
            if name not in _TRAIN_LEFT_OUT and isinstance(value, int | float):
                series[line["kind"], name].append((line["iter"], value))
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for (kind, name), points in series.items():
        with styled():
            figure = new_figure(6, 4, margins=(0.15, 0.97, 0.13, 0.91))
            axes = figure.subplots()
            axes.plot(*zip(*points, strict=True), marker="." if len(points) < 50 else None)
            axes.set(xlabel="iteration", ylabel=name, title=f"{kind}: {name}")
            paths.append(folder / f"{kind}_{name.replace('/', '_')}.png")
            figure.savefig(paths[-1], dpi=100)
    return paths
