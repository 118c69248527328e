"""Toy scenes: a few coloured shapes on a grid, as data and as pixels."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

COLORS = {"red": (214, 39, 40), "green": (44, 160, 44), "blue": (31, 99, 200), "yellow": (240, 200, 20)}
SHAPES = ("circle", "square", "triangle")
GRID = 3
SIZE = 48
CELL = SIZE // GRID
ROWS = ("top", "middle", "bottom")
COLUMNS = ("left", "center", "right")


@dataclass(frozen=True, order=True)
class Thing:
    """One object: its cell in the grid, counted from the top left, its colour and shape."""

    row: int
    column: int
    color: str
    shape: str

    @property
    def name(self) -> str:
        """Colour and shape: ``"red circle"``."""
        return f"{self.color} {self.shape}"


Scene = tuple[Thing, ...]
"""Objects in reading order, no two in one cell."""


def random_scene(generator: np.random.Generator, most: int = 5) -> Scene:
    """Two to ``most`` objects in different cells, colours and shapes independent of each other."""
    cells = generator.permutation(GRID * GRID)[: generator.integers(2, most + 1)]
    return tuple(
        sorted(
            Thing(
                row=int(cell) // GRID,
                column=int(cell) % GRID,
                color=list(COLORS)[generator.integers(len(COLORS))],
                shape=SHAPES[generator.integers(len(SHAPES))],
            )
            for cell in cells
        )
    )


def draw(scene: Scene, generator: np.random.Generator) -> Image.Image:
    """An RGB image of ``SIZE`` x ``SIZE`` pixels: every object jitters by a pixel, the background has some noise."""
    noise = generator.integers(225, 255, (SIZE, SIZE, 3), dtype=np.uint8)
    image = Image.fromarray(noise)
    canvas = ImageDraw.Draw(image)
    for thing in scene:
        x = thing.column * CELL + CELL // 2 + int(generator.integers(-1, 2))
        y = thing.row * CELL + CELL // 2 + int(generator.integers(-1, 2))
        r = CELL // 2 - 2
        fill = COLORS[thing.color]
        if thing.shape == "circle":
            canvas.ellipse((x - r, y - r, x + r, y + r), fill=fill)
        elif thing.shape == "square":
            canvas.rectangle((x - r, y - r, x + r, y + r), fill=fill)
        else:
            canvas.polygon(((x, y - r), (x - r, y + r), (x + r, y + r)), fill=fill)
    return image
