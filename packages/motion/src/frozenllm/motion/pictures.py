"""Pictures of predictions over the map, with what the frozen layer does to every polyline."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.collections import LineCollection
from matplotlib.lines import Line2D
from torch import Tensor

from frozenllm.core.analysis import ACTIVATIONS as OF_TOKENS
from frozenllm.core.analysis import class_attention, tapped
from frozenllm.core.film import write_film
from frozenllm.core.style import new_figure, styled
from frozenllm.motion.models import MotionHost
from frozenllm.motion.models.host import TARGET, Inputs

ACTIVATIONS = (*OF_TOKENS, "attention")
MODE_COLOUR, TRUTH_COLOUR, TARGET_COLOUR, OTHER_COLOUR = "#c2410c", "#15803d", "#1d4ed8", "#475569"
WARM, COLD = 0.5, 1.0  # seconds that a film rests before and after


def activations(model: MotionHost, inputs: Mapping[str, Tensor], kind: str = "magnitude") -> Tensor:
    """How active the polylines' tokens are (paper, A.3), between 0 and 1 within each sample.

    Tokens are those that leave the frozen layer; of a host without one, those where it would stand.

    Args:
        model: In eval mode.
        inputs: A batch on the model's device.
        kind: ``"magnitude"`` or ``"frequency"`` of a token's difference from the mean token, or ``"attention"`` that
            the target's token pays to it inside the block.

    Returns:
        (B, A + L) float32, agents first; 0 for padding.

    Raises:
        ValueError: The kind is unknown, or there is no attention to look at.
    """
    if kind not in ACTIVATIONS:
        raise ValueError(f"The activation must be one of {', '.join(ACTIVATIONS)}, not {kind!r}.")
    batch = Inputs(**inputs)
    mask = model.token_mask(batch)
    with torch.no_grad():
        if model.llm is None and kind == "attention":
            raise ValueError("A host without a frozen layer has no attention to look at: use magnitude or frequency.")
        if model.llm is None:
            values = OF_TOKENS[kind](model.tokens(**inputs), mask)
        else:
            with tapped(model, attention_weights=kind == "attention") as taps:
                model(**inputs)
            if kind == "attention":
                values = class_attention(taps["attention_weights"], mask, query=TARGET)
            else:
                values = OF_TOKENS[kind](taps["adapter_out"], mask)
    return model.per_polyline(values, inputs["agents"].shape[1])


class ScenePicture:
    """One sample in its agent's frame (metres): map, what was observed, what is predicted, what happened.

    Args:
        inputs: The sample's inputs, without a batch dimension.
        prediction: What the task's ``predict`` gives for it.
        activation: (A + L,) between 0 and 1, colours the polylines; None for none.
        title: Above the picture.
        label: Of the colour bar.
        radius: Metres around the middle of what is predicted; None for what there is.
        pixels: Width.
    """

    def __init__(
        self,
        inputs: Mapping[str, Tensor],
        prediction: Mapping[str, Any],
        activation: Tensor | None = None,
        *,
        title: str = "",
        label: str = "activation",
        radius: float | None = None,
        pixels: int = 640,
    ) -> None:
        self.agents = _array(inputs["agents"])
        self.agents_valid = _array(inputs["agents_valid"])
        self.trajectories = _array(prediction["trajectories"])
        self.probabilities = _array(prediction["probabilities"])
        valid = _array(prediction["valid"])
        self.future = np.where(valid[:, None], _array(prediction["future"]), np.nan)
        self.figure = new_figure(pixels / 100, pixels / 100 * 0.88)
        self.figure.set_dpi(100)
        self.canvas: Any = self.figure.canvas
        with styled():
            self.axes = self.figure.add_subplot()
        self._draw_map(inputs, None if activation is None else _array(activation), label)
        self._frame(radius)
        self.axes.set_title(title, fontsize=9)
        parts = {
            "target, observed": TARGET_COLOUR,
            "predicted": MODE_COLOUR,
            "what happened": TRUTH_COLOUR,
        }
        lines = [Line2D([], [], color=colour, label=label) for label, colour in parts.items()]
        self.axes.legend(handles=lines, fontsize=7, loc="upper left")
        self.canvas.draw()
        self.figure.set_layout_engine("none")  # one layout for all pictures
        self._moving: list[Any] = []

    @property
    def history(self) -> int:
        """Observed steps."""
        return self.agents.shape[1]

    @property
    def horizon(self) -> int:
        """Predicted steps."""
        return self.trajectories.shape[1]

    def _draw_map(self, inputs: Mapping[str, Tensor], activation: np.ndarray | None, label: str) -> None:
        lanes, valid = _array(inputs["lanes"]), _array(inputs["lanes_valid"])
        lines, rows = [], []
        for row, (vectors, known) in enumerate(zip(lanes, valid, strict=True)):
            vectors = vectors[known]
            if len(vectors):
                lines.append(np.concatenate([vectors[:, :2], vectors[-1:, :2] + vectors[-1:, 2:4]]))
                rows.append(row)
        self.target_face: Any = TARGET_COLOUR
        self.agent_colours: list[Any] = [TARGET_COLOUR] + [OTHER_COLOUR] * (len(self.agents) - 1)
        if activation is None:
            self.axes.add_collection(LineCollection(lines, colors="#cbd5e1", linewidths=1.5, zorder=1))
            return
        of_lanes = activation[len(self.agents) :][rows]
        lanes_drawn = LineCollection(lines, array=of_lanes, cmap="viridis_r", linewidths=1 + 2.5 * of_lanes, zorder=1)
        lanes_drawn.set_clim(0, 1)
        self.axes.add_collection(lanes_drawn)
        bar = self.figure.colorbar(lanes_drawn, ax=self.axes, shrink=0.7)
        bar.set_label(label, fontsize=8)
        bar.ax.tick_params(labelsize=7)
        self.agent_colours[1:] = [lanes_drawn.cmap(value) for value in activation[1 : len(self.agents)]]
        self.target_face = lanes_drawn.cmap(activation[TARGET])

    def _frame(self, radius: float | None) -> None:
        seen = [self.agents[TARGET][self.agents_valid[TARGET]][:, :2], self.trajectories.reshape(-1, 2), self.future]
        points = np.concatenate(seen)
        points = points[np.isfinite(points).all(axis=1)]
        low, high = points.min(axis=0), points.max(axis=0)
        middle = (low + high) / 2
        reach = radius or max(15.0, 0.65 * float((high - low).max()))
        self.axes.set_xlim(middle[0] - reach, middle[0] + reach)
        self.axes.set_ylim(middle[1] - reach, middle[1] + reach)
        self.axes.set_aspect("equal")
        self.axes.tick_params(labelsize=7)
        self.axes.set_xlabel("metres ahead of the target's last observed position", fontsize=8)

    def draw(self, step: int | None = None) -> None:
        """Draw what is known at a step.

        Args:
            step: Counted from the first observed one; None for everything.
        """
        self._clear()
        last = self.history + self.horizon if step is None else step + 1
        for row, (track, valid) in enumerate(zip(self.agents, self.agents_valid, strict=True)):
            known = np.where(valid[:last, None], track[:last, :2], np.nan)
            if not np.isfinite(known).any():
                continue
            colour, target = self.agent_colours[row], row == TARGET
            (line,) = self.axes.plot(*known.T, color=colour, lw=2.5 if target else 1.2, zorder=4 if target else 2)
            head = known[np.isfinite(known).all(axis=1)][-1:]
            face, edge = (self.target_face, TARGET_COLOUR) if target else (colour, "none")
            (dot,) = self.axes.plot(*head.T, marker="o", ms=8 if target else 4, mfc=face, mec=edge, mew=2, zorder=5)
            self._moving += [line, dot]
        done = min(last - self.history, self.horizon)
        if done <= 0:
            return
        start = np.zeros((1, 2))
        best = self.probabilities.max()
        for mode, probability in zip(self.trajectories, self.probabilities, strict=True):
            alpha = 0.25 + 0.75 * float(probability / best)
            (line,) = self.axes.plot(*np.concatenate([start, mode]).T, color=MODE_COLOUR, alpha=alpha, lw=1.8, zorder=6)
            note = self.axes.annotate(
                f"{probability:.2f}", mode[-1], fontsize=7, color=MODE_COLOUR, alpha=alpha, zorder=8, clip_on=True
            )
            (dot,) = self.axes.plot(*mode[done - 1], marker="o", ms=5, color=MODE_COLOUR, alpha=alpha, zorder=7)
            self._moving += [line, note, dot]
        truth = np.concatenate([start, self.future[:done]])
        self._moving += self.axes.plot(*truth.T, color=TRUTH_COLOUR, lw=2, ls=(0, (3, 1.5)), zorder=7)

    def _clear(self) -> None:
        for artist in self._moving:
            artist.remove()
        self._moving = []

    def save(self, path: Path) -> None:
        """Draw everything and write a PNG."""
        self.draw()
        self.figure.savefig(path)

    def frames(self, fps: int) -> Iterator[np.ndarray]:
        """The scene step by step; it rests where the prediction is made, and at the end."""
        self._clear()
        self.canvas.draw()
        still = self.canvas.copy_from_bbox(self.figure.bbox)  # the map is drawn once
        for step in range(self.history + self.horizon):
            self.draw(step)
            self.canvas.restore_region(still)
            for artist in sorted(self._moving, key=lambda artist: artist.get_zorder()):
                self.axes.draw_artist(artist)
            picture = np.asarray(self.canvas.buffer_rgba())[..., :3].copy()
            yield picture
            rest = {self.history: WARM, self.history + self.horizon - 1: COLD}.get(step, 0.0)
            yield from [picture] * round(rest * fps)

    def save_film(self, path: Path, fps: int = 10) -> int:
        """Write the scene as an mp4, ten steps a second being real time; returns the number of pictures."""
        return write_film(self.frames(fps), path, fps)


def _array(tensor: Tensor) -> np.ndarray:
    return tensor.detach().cpu().numpy()
