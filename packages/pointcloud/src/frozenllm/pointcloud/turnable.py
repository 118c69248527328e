"""Pages with scenes in three dimensions that turn under the mouse, through plotly (extra ``[html]``)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Scene:
    """One of the scenes of a page.

    Attributes:
        title: Above it; ``<br>`` breaks lines.
        traces: Arguments of plotly's ``Scatter3d``, one mapping for each thing that is drawn.
    """

    title: str
    traces: Sequence[Mapping[str, Any]]


def write_turnable(
    path: Path, rows: Sequence[Sequence[Scene]], height: int, camera: Mapping[str, Any] | None = None
) -> None:
    """Write a page that needs no network.

    Args:
        path: The file.
        rows: Scenes in rows of the same length.
        height: Pixels of a row.
        camera: Where the eye is at first, as plotly's ``layout.scene.camera``; None for plotly's own choice.

    Raises:
        ImportError: plotly is not installed.
    """
    try:
        from plotly.graph_objects import Scatter3d
        from plotly.subplots import make_subplots
    except ModuleNotFoundError as error:
        raise ImportError(
            "Interactive pictures need plotly, which is not installed: pip install 'frozenllm-pointcloud[html]'."
        ) from error

    figure = make_subplots(
        rows=len(rows),
        cols=len(rows[0]),
        specs=[[{"type": "scene"}] * len(rows[0])] * len(rows),
        subplot_titles=[scene.title for row in rows for scene in row],
        horizontal_spacing=0.01,
        vertical_spacing=0.08,
    )
    for r, row in enumerate(rows, start=1):
        for c, scene in enumerate(row, start=1):
            for trace in scene.traces:
                figure.add_trace(Scatter3d(**trace, showlegend=False), row=r, col=c)
    hidden = {"visible": False}
    figure.update_scenes(xaxis=hidden, yaxis=hidden, zaxis=hidden, aspectmode="data", camera=camera)
    margin = {"l": 10, "r": 10, "t": 60, "b": 10}
    figure.update_layout(height=height * len(rows), margin=margin, template="plotly_white")
    figure.write_html(path, include_plotlyjs=True)
