"""Token activations on the cloud, host against frozen layer: ``python -m frozenllm.pointcloud.look RUN [RUN ...]``.

A run is a folder that `frozenllm.pointcloud.train` left. Clouds of its test data are drawn with the activation of the
tokens that their points went into (paper A.3): as they leave the host and, where there is one, the frozen layer. Writes
``look.png`` and, with the extra ``[html]``, ``look.html``, which turns under the mouse.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import torch
from omegaconf import DictConfig
from torch import Tensor

from frozenllm.core.analysis import ACTIVATIONS, activation_named, tapped
from frozenllm.core.training import DATASETS, errors_in_a_sentence, folder_of_run, read_run
from frozenllm.pointcloud.model import Groups, PointBERT
from frozenllm.pointcloud.transforms import thin
from frozenllm.pointcloud.turnable import Scene, write_turnable

__all__ = ["activation_maps", "save_html", "save_png", "spread"]

HOST, LAYER = "host", "frozen layer"


def activation_maps(model: PointBERT, points: Tensor, activation: str = "magnitude") -> dict[str, Tensor]:
    """Activation of every point, from 0 to 1 in a cloud.

    Args:
        model: In eval mode.
        points: ``(B, N, 3)``.
        activation: ``"magnitude"`` or ``"frequency"``, see `frozenllm.core.analysis`.

    Returns:
        ``"host"``, and ``"frozen layer"`` where the model has one: ``(B, N)``. The class token takes no part.

    Raises:
        ValueError: The activation is unknown.
    """
    measure = activation_named(activation)
    groups = model.group(points)
    with torch.no_grad():
        if model.llm is None:
            tokens = {HOST: model.tokens(points, groups)}
        else:
            with tapped(model) as taps:
                model(points)
            tokens = {HOST: taps["host"], LAYER: taps["adapter_out"]}
    return {name: spread(measure(x[:, 1:]), groups, points) for name, x in tokens.items()}


def spread(values: Tensor, groups: Groups, points: Tensor) -> Tensor:
    """Values of groups on their points: the mean over the groups that a point is in; else that of the nearest centre.

    Args:
        values: ``(B, G)``.
        groups: Of the same clouds.
        points: ``(B, N, 3)``.

    Returns:
        ``(B, N)``.
    """
    index = groups.index.flatten(1)
    each = values.unsqueeze(-1).expand(groups.index.shape).flatten(1)
    total = torch.zeros(points.shape[:2], dtype=each.dtype, device=each.device).scatter_add_(1, index, each)
    count = torch.zeros_like(total).scatter_add_(1, index, torch.ones_like(each))
    nearest = values.gather(1, torch.cdist(points, groups.centers).argmin(dim=2))
    return torch.where(count > 0, total / count.clamp_min(1), nearest)


def save_png(path: Path | BinaryIO, clouds: Tensor, rows: Mapping[str, Tensor], titles: Sequence[str]) -> None:
    """A picture: a row for each map, a column for each cloud ``(C, N, 3)``, y upright."""
    from frozenllm.core.style import new_figure, styled  # matplotlib takes a second to import

    with styled():
        figure = new_figure(2.6 * len(clouds), 2.7 * len(rows))
        for r, (name, values) in enumerate(rows.items()):
            for c, cloud in enumerate(clouds):
                axes = figure.add_subplot(len(rows), len(clouds), r * len(clouds) + c + 1, projection="3d")
                x, y, z = cloud.T.tolist()
                dots = axes.scatter(x, z, y, c=values[c].tolist(), cmap="viridis", vmin=0, vmax=1, s=5)
                axes.set_box_aspect(None, zoom=1.3)
                axes.set_aspect("equal", adjustable="datalim")
                axes.set_axis_off()
                axes.set_title(f"{titles[c]}\n{name}" if r == 0 else name, fontsize=9)
        figure.colorbar(dots, ax=figure.axes, shrink=0.6, label="activation")
        figure.savefig(path, dpi=120)


def save_html(path: Path, clouds: Tensor, rows: Mapping[str, Tensor], titles: Sequence[str]) -> None:
    """The same as a page of its own, to be turned with the mouse.

    Raises:
        ImportError: plotly is not installed.
    """
    grid = []
    for name, values in rows.items():
        cells = []
        for c, cloud in enumerate(clouds):
            x, y, z = cloud.T.tolist()
            marker = {"size": 3, "color": values[c].tolist(), "colorscale": "Viridis", "cmin": 0, "cmax": 1}
            marker["showscale"] = not grid and not cells
            dots = {"x": x, "y": z, "z": y, "mode": "markers", "marker": marker, "hoverinfo": "skip"}
            cells.append(Scene(f"{titles[c]}<br>{name}", [dots]))
        grid.append(cells)
    write_turnable(path, grid, height=380)


def load_run(run: Path) -> tuple[PointBERT, DictConfig]:
    """The model of a run folder, last checkpoint, in eval mode on the CPU, and the run's config.

    Raises:
        ValueError: There is no checkpoint, or it is damaged or of another model.
    """
    saved = read_run(run).expect("a point cloud classifier", "point_bert")
    model = saved.build()
    assert isinstance(model, PointBERT)
    return model, saved.cfg


def look(run: Path, count: int, activation: str) -> tuple[Tensor, dict[str, Tensor], list[str]]:
    """Clouds, their maps and their titles for a run: the first test clouds of different classes.

    Raises:
        ValueError: The folder is not that of a run, or its data is missing.
    """
    model, cfg = load_run(run)
    data: Any = DATASETS.build(dict(cfg.data.test))
    first = {int(label): place for place, label in reversed(list(enumerate(data.targets.tolist())))}
    chosen = [first[label] for label in sorted(first)][:count]
    clouds = thin(torch.stack([data.read(place)["inputs"] for place in chosen]), cfg.data.num_points)
    with torch.no_grad():
        guesses = model(clouds).argmax(dim=1).tolist()
    titles = [f"class {data.targets[p]}, predicted {guess}" for p, guess in zip(chosen, guesses, strict=True)]
    return clouds, activation_maps(model, clouds, activation), titles


def main(argv: Sequence[str] | None = None) -> None:
    """The command line.

    Args:
        argv: Arguments; None for the process's.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, help="run folders, or checkpoints in them, on the same data")
    parser.add_argument("--count", type=int, default=5, help="clouds, of different classes (%(default)s)")
    parser.add_argument("--activation", default="magnitude", choices=list(ACTIVATIONS), help="of the tokens")
    parser.add_argument("--out", type=Path, help="folder for the pictures; by default that of the first run")
    args = parser.parse_args(argv)
    with errors_in_a_sentence():
        if args.count < 1:
            raise ValueError(f"--count must be 1 or more, not {args.count}.")
        rows: dict[str, Tensor] = {}
        shown: Tensor | None = None
        for run in args.runs:
            clouds, maps, titles = look(run, args.count, args.activation)
            if shown is not None and not torch.equal(shown, clouds):
                raise ValueError(f"{run} was tested on other clouds than {args.runs[0]}: look at it by itself.")
            shown = clouds
            label = f"{run.resolve().parent.name}/{run.resolve().name}: " if len(args.runs) > 1 else ""
            titles = [title.partition(",")[0] for title in titles] if len(args.runs) > 1 else titles
            rows |= {label + name: values for name, values in maps.items()}
        out = args.out or folder_of_run(args.runs[0])
        out.mkdir(parents=True, exist_ok=True)
        save_png(out / "look.png", clouds, rows, titles)
        print(f"wrote {out / 'look.png'}")
        try:
            save_html(out / "look.html", clouds, rows, titles)
            print(f"wrote {out / 'look.html'}")
        except ImportError as error:  # of the extra
            print(f"no look.html: {error}")


if __name__ == "__main__":
    main()
