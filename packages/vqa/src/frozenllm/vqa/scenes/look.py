"""Scenes from above with the activation of object tokens: ``python -m frozenllm.vqa.scenes.look RUN``.

A run is a folder that `frozenllm.vqa.train` left. For questions of its validation data, or for one of your own, the
scene is drawn with the boxes of what the model takes for objects, coloured by the activation of their tokens (paper
A.3): as they enter the frozen layer and, where there is one, as they leave it. A black arrow is where the person stands
and looks, by the annotation; a dashed one where the model believes so. Writes ``look.png`` and, with plotly,
``look.html``, which turns under the mouse.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from frozenllm.core.analysis import ACTIVATIONS
from frozenllm.core.style import new_figure, styled
from frozenllm.core.training import errors_in_a_sentence, folder_of_run
from frozenllm.vqa.scenes.answerer import SceneAnswerer, View
from frozenllm.vqa.scenes.files import SituatedQuestion, sqa3d_questions
from frozenllm.vqa.scenes.pose import heading, to_aligned

_SHOWN = 20_000  # points of a scene in a picture
_ARROW = 0.7  # metres
_CORNERS = np.array([(x, y, z) for x in (-0.5, 0.5) for y in (-0.5, 0.5) for z in (-0.5, 0.5)])
_EDGES = [(i, j) for i in range(8) for j in range(i + 1, 8) if np.abs(_CORNERS[i] - _CORNERS[j]).sum() == 1]


@dataclass(frozen=True)
class Picture:
    """A question with what the model made of it; ``pose`` (7,) is the annotated one among the aligned axes, or None."""

    situation: str
    question: str
    view: View
    answer: str | None = None
    pose: NDArray[np.float64] | None = None

    @property
    def title(self) -> str:
        """The question, the model's answer and the right one."""
        right = "" if self.answer is None else f" (right: {self.answer})"
        return f"{self.view.scene.scene_id}: {self.question}\n{self.view.answers[0].text}{right}"


def pictures(
    answerer: SceneAnswerer, questions: Sequence[SituatedQuestion], activation: str = "magnitude"
) -> list[Picture]:
    """Ask the questions.

    Raises:
        ValueError: A scene is missing or damaged, or the model sees no scene.
    """
    return [
        _picture(answerer, q.scene_id, q.situation, q.question, activation, answer=q.answer, pose=np.array(q.pose))
        for q in questions
    ]


def _picture(
    answerer: SceneAnswerer, scene_id: str, situation: str, question: str, activation: str,
    answer: str | None = None, pose: NDArray[np.float64] | None = None,
) -> Picture:  # fmt: skip
    view = answerer.view(scene_id, situation, question, activation=activation)
    if not view.maps:
        raise ValueError("This run's model sees no scene (model.blind): there is nothing to look at.")
    scene = view.scene
    return Picture(
        situation, question, view, answer, None if pose is None else to_aligned(pose, scene.centre, scene.align)
    )


def save_png(path: Path, shown: Sequence[Picture]) -> None:
    """A row for each map, a column for each picture; x to the right and y up, in metres, as the scene is aligned."""
    from matplotlib import colormaps
    from matplotlib.patches import Rectangle

    names = list(shown[0].view.maps)
    with styled():
        figure = new_figure(4.0 * len(shown), 4.1 * len(names))
        grid = figure.subplots(len(names), len(shown), squeeze=False)
        for c, picture in enumerate(shown):
            xyz, colors = _points(picture.view)
            for r, name in enumerate(names):
                axes = grid[r][c]
                axes.scatter(xyz[:, 0], xyz[:, 1], c=colors / 255, s=3, alpha=0.35, linewidths=0)
                for box, value in zip(picture.view.boxes.numpy(), picture.view.maps[name].tolist(), strict=True):
                    corner = box[:2] - box[3:5] / 2
                    color = colormaps["viridis"](value)
                    axes.add_patch(Rectangle(corner, *box[3:5], fill=False, edgecolor=color, linewidth=1.5))
                    axes.scatter(*box[:2], color=[color], edgecolors="black", linewidths=0.5, s=45, zorder=3)
                for place, ahead, style in _arrows(picture):
                    axes.annotate(
                        "", xy=(place + ahead)[:2], xytext=place[:2],
                        arrowprops={"arrowstyle": "->", "linewidth": 2, "linestyle": style}, zorder=4,
                    )  # fmt: skip
                    axes.scatter(*place[:2], color="black", s=20, zorder=4)
                axes.set_aspect("equal")
                axes.set_title(f"{picture.title}\n{name}" if r == 0 else name, fontsize=8)
        scale = figure.colorbar(_scale(), ax=grid.ravel().tolist(), shrink=0.6)
        scale.set_label("activation of object tokens")
        figure.savefig(path, dpi=120)


def save_html(path: Path, shown: Sequence[Picture]) -> None:
    """The same in three dimensions, as a page of its own, to be turned with the mouse; it begins from above.

    Raises:
        ImportError: plotly is not installed.
    """
    from frozenllm.pointcloud.turnable import Scene, write_turnable

    rows = []
    for name in shown[0].view.maps:
        titles = [f"{picture.title}<br>{name}".replace("\n", "<br>") for picture in shown]
        traces = [_traces(picture, name, first=not rows and picture is shown[0]) for picture in shown]
        rows.append([Scene(*scene) for scene in zip(titles, traces, strict=True)])
    above = {"eye": {"x": 0, "y": -0.01, "z": 1.9}, "up": {"x": 0, "y": 1, "z": 0}}
    write_turnable(path, rows, height=480, camera=above)


def _traces(picture: Picture, name: str, first: bool) -> list[dict[str, Any]]:
    """Points, boxes, objects and arrows, as plotly's arguments."""
    xyz, colors = _points(picture.view)
    shades = [f"rgb({red:.0f},{green:.0f},{blue:.0f})" for red, green, blue in colors]
    cloud = {
        **_xyz(xyz),
        "mode": "markers",
        "marker": {"size": 2, "color": shades, "opacity": 0.5},
        "hoverinfo": "skip",
    }
    boxes, values = picture.view.boxes.numpy(), picture.view.maps[name].tolist()
    wires = [box[:3] + _CORNERS[corner] * box[3:] for box in boxes for edge in _EDGES for corner in edge]
    cut = np.full((len(wires) // 2, 3, 3), np.nan)  # a gap behind every edge
    cut[:, :2] = np.reshape(wires, (-1, 2, 3))
    lines = {**_xyz(cut.reshape(-1, 3)), "mode": "lines", "line": {"color": "#64748b"}, "hoverinfo": "skip"}
    marker = {"size": 9, "color": values, "colorscale": "Viridis", "cmin": 0, "cmax": 1, "showscale": first}
    texts = [f"activation {value:.2f}" for value in values]
    objects = {**_xyz(boxes[:, :3]), "mode": "markers", "marker": marker, "text": texts, "hoverinfo": "text"}
    arrows = [
        {**_xyz(np.stack([place, place + ahead])), "mode": "lines+markers",
         "line": {"color": "black", "width": 6, "dash": "solid" if style == "-" else "dash"},
         "marker": {"size": [6, 2], "color": "black"}, "hoverinfo": "text",
         "text": ["person" if style == "-" else "person, as predicted"] * 2}
        for place, ahead, style in _arrows(picture)
    ]  # fmt: skip
    return [cloud, lines, objects, *arrows]


def _xyz(points: NDArray[np.floating]) -> dict[str, list[float]]:
    return dict(zip("xyz", np.asarray(points, dtype=float).T.tolist(), strict=True))


def _points(view: View) -> tuple[NDArray[np.floating], NDArray[np.floating]]:
    """Coordinates and colours, without the ceiling: what is above two metres hides the room."""
    points = view.scene.points
    points = points[points[:, 2] < points[:, 2].min() + 2.0]
    points = points[:: max(len(points) // _SHOWN, 1)]
    return points[:, :3], points[:, 3:6]


def _arrows(picture: Picture) -> list[tuple[NDArray[np.floating], NDArray[np.floating], str]]:
    """Place, direction and line style of the annotated and of the predicted person."""
    poses = [(picture.pose, "-")]
    guess = None if picture.view.pose is None else picture.view.pose.numpy().astype(float)
    if guess is not None and np.linalg.norm(guess[3:]) > 1e-6:
        poses.append((guess, "--"))
    return [(pose[:3], _ARROW * heading(pose), style) for pose, style in poses if pose is not None]


def _scale() -> Any:
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    return ScalarMappable(Normalize(0, 1), "viridis")


def main(argv: Sequence[str] | None = None) -> None:
    """The command line; exits with status 1 and one sentence on a user's error."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="the run folder, or one of its checkpoints")
    parser.add_argument("--count", type=int, default=3, help="questions, of different scenes (%(default)s)")
    parser.add_argument("--split", default="val", help="of the data (%(default)s)")
    parser.add_argument("--scene", metavar="ID", help="a scene for a question of your own")
    parser.add_argument("--situation", help="for a question of your own")
    parser.add_argument("--question", help="of your own")
    parser.add_argument("--scenes", metavar="FOLDER", help="with prepared scenes; by default that of the run's data")
    parser.add_argument("--activation", default="magnitude", choices=list(ACTIVATIONS), help="of the object tokens")
    parser.add_argument("--out", type=Path, help="folder for the pictures; by default that of the run")
    args = parser.parse_args(argv)
    with errors_in_a_sentence():
        own = (args.scene, args.situation, args.question)
        if any(own) and not all(own):
            raise ValueError("A question of your own needs --scene, --situation and --question.")
        if args.count < 1:
            raise ValueError(f"--count must be 1 or more, not {args.count}.")
        answerer = SceneAnswerer(args.run, args.scenes)
        if all(own):
            shown = [_picture(answerer, *own, args.activation)]
        else:
            asked = sqa3d_questions(answerer.data.root, args.split, format=answerer.data.format)
            first = {question.scene_id: question for question in reversed(asked)}
            shown = pictures(answerer, [first[name] for name in sorted(first)][: args.count], args.activation)
        out = args.out or folder_of_run(args.run)
        out.mkdir(parents=True, exist_ok=True)
        save_png(out / "look.png", shown)
        print(f"wrote {out / 'look.png'}")
        try:
            save_html(out / "look.html", shown)
            print(f"wrote {out / 'look.html'}")
        except ImportError as error:  # of the extra
            print(f"no look.html: {error}")


if __name__ == "__main__":
    main()
