"""The look of every plot: one set of colours that colour-blind readers can tell apart, light grids, no display.

Needs matplotlib, which the extra ``[train]`` brings::

    with styled():
        figure = new_figure(6.4, 3.4)
        axes = figure.subplots()
        ...
        figure.savefig(path, dpi=150)
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

try:
    import matplotlib
    from cycler import cycler  # comes with matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from PIL import Image  # as well
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        f"Plots need {error.name}, which is not installed: pip install 'frozenllm-core[train]'.", name=error.name
    ) from error

COLOURS = ("#1d4ed8", "#c2650a", "#15803d", "#a21caf", "#0e7490", "#b91c1c", "#854d0e", "#475569")
HOST_COLOUR = "#64748b"
"""Of the host alone, in every plot."""
TEXT_COLOUR = "#475569"
"""Of remarks inside a plot."""
_STYLE: Any = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#94a3b8",
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.prop_cycle": cycler(color=COLOURS),
    "grid.color": "#e2e8f0",
    "legend.frameon": False,
}


@contextmanager
def styled() -> Iterator[None]:
    """Figures that are drawn inside have the project's look; everything else keeps its own."""
    with matplotlib.rc_context(_STYLE):
        yield


def new_figure(width: float, height: float, *, margins: tuple[float, float, float, float] | None = None) -> Figure:
    """An empty figure that is only ever written to a file.

    Args:
        width: In inches.
        height: In inches.
        margins: Left, right, bottom and top edge of the axes, as shares of the figure. None: as the labels need it,
            which takes twice as long to draw.
    """
    figure = Figure(figsize=(width, height), layout=None if margins else "constrained")
    FigureCanvasAgg(figure)  # named, so that no display is ever asked for
    if margins:
        left, right, bottom, top = margins
        figure.subplots_adjust(left=left, right=right, bottom=bottom, top=top)
    return figure


def as_image(figure: Figure, dpi: int = 100) -> Image.Image:
    """The drawn figure as a picture in RGB, for reports and studies."""
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=dpi, format="png")
    return Image.open(buffer).convert("RGB")
