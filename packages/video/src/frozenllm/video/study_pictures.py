"""Figures of the study of a video model: a clip above thresholds, and how many tokens survive along it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image
from torch import Tensor

from frozenllm.core.analysis.study import Sample

_SMALLEST = 224  # pixels: what is smaller is enlarged
_TILE = 112
_HIDDEN, _GREY = 0.15, 190  # what is left of a hidden token, and the grey it goes into: frames may be black


def shown(frame: Tensor) -> Tensor:
    """A frame (3, S, S), enlarged by a whole factor if it is small."""
    factor = -(-_SMALLEST // min(frame.shape[-2:]))
    return frame.repeat_interleave(factor, dim=-2).repeat_interleave(factor, dim=-1)


def sheet(sample: Sample, activation: str, grid: tuple[int, int, int], thresholds: Sequence[float]) -> Image.Image:
    """The sample's frames in a row, and below them what is above each threshold, the rest grey.

    Args:
        sample: With one frame for each time of the grid.
        activation: Name of the one to threshold.
        grid: Tokens along time, height and width.
        thresholds: From 0 to 1, a row each.
    """
    values = np.array(sample.activations[activation], dtype=np.float64).reshape(grid)
    tiles = [np.asarray(frame.picture.resize((_TILE, _TILE), Image.Resampling.NEAREST)) for frame in sample.frames]
    rows = [_row(tiles, [np.ones((1, 1), dtype=bool)] * len(tiles))]
    rows += [_row(tiles, list(values > threshold)) for threshold in thresholds]
    pictures = np.concatenate(rows, axis=0)
    from frozenllm.core.style import TEXT_COLOUR, as_image, new_figure

    height, width = pictures.shape[0] / 100, pictures.shape[1] / 100
    figure = new_figure(width + 1.0, height + 0.35, margins=(0.98 / (width + 1.0), 1.0, 0.0, height / (height + 0.35)))
    axes = figure.subplots()
    axes.imshow(pictures, interpolation="nearest")
    axes.set_axis_off()
    for row, label in enumerate(["frames", *(f"above {threshold}" for threshold in thresholds)]):
        axes.text(-8, (row + 0.5) * pictures.shape[0] / len(rows), label, ha="right", va="center", fontsize=9)
    for column, frame in enumerate(sample.frames):
        at = (column + 0.5) * pictures.shape[1] / len(tiles)
        caption = frame.caption.replace("frames ", "").replace(" to ", "-")
        axes.text(at, -8, caption, ha="center", va="bottom", fontsize=8, color=TEXT_COLOUR)
    return as_image(figure)


def chart(activations: Sequence[tuple[str, Tensor]], thresholds: Sequence[float]) -> Image.Image:
    """Share of tokens above each threshold along the clip.

    Args:
        activations: Tap and (B, T', H', W') of each.
        thresholds: From 0 to 1, a line each for every tap.
    """
    from frozenllm.core.style import COLOURS, HOST_COLOUR, as_image, new_figure, styled

    with styled():
        figure = new_figure(6.4, 3.2)
        axes = figure.subplots()
        for (tap, values), colour in zip(activations, (HOST_COLOUR, *COLOURS), strict=False):
            for threshold, style in zip(thresholds, ("-", "--", ":"), strict=False):
                share = 100 * (values > threshold).flatten(2).float().mean(dim=(0, 2))
                axes.plot(range(len(share)), share.tolist(), style, color=colour, label=f"{tap}, above {threshold}")
        axes.set_xlabel("tubelet, in the order of time")
        axes.set_ylabel("tokens above, %")
        axes.set_ylim(0, 100)
        axes.legend(fontsize=8)
        return as_image(figure)


def _row(tiles: Sequence[np.ndarray], masks: Sequence[np.ndarray]) -> np.ndarray:
    """Tiles beside each other, each grey where its mask (rows, columns) is False."""
    kept = []
    for tile, mask in zip(tiles, masks, strict=True):
        large = Image.fromarray(mask.astype(np.uint8)).resize(tile.shape[1::-1], Image.Resampling.NEAREST)
        mixed = np.where(np.asarray(large)[..., None] > 0, tile, _HIDDEN * tile + (1 - _HIDDEN) * _GREY)
        kept.append(np.pad(mixed.astype(np.uint8), ((2, 2), (2, 2), (0, 0)), constant_values=255))
    return np.concatenate(kept, axis=1)
