"""What the toy scenes know and VQAv2's files have no place for: where the objects are that a question is about."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from frozenllm.vqa.toy.questions import CORNERS
from frozenllm.vqa.toy.scenes import CELL, COLORS, SHAPES, Scene, Thing

TRUTH = "toy_truth.json"
"""File beside the official ones: question id -> ``asked`` and ``objects``, boxes in pixels (left, top, right, bottom)
of the objects that the question is about, and of all."""


def asked(scene: Scene, text: str) -> tuple[Thing, ...]:
    """The objects of a scene that a question's words fit; none where it asks for something that is not there."""
    words = text.lower().rstrip("?").split()
    colors = [color for color in COLORS if color in words]
    shapes = [shape for shape in SHAPES if shape in words or f"{shape}s" in words]
    cells = [cell for place, cell in CORNERS.items() if f"at the {place}" in text.lower()]
    return tuple(
        thing
        for thing in scene
        if (not colors or thing.color in colors)
        and (not shapes or thing.shape in shapes)
        and (not cells or (thing.row, thing.column) in cells)
    )


def box(thing: Thing) -> list[int]:
    """The cell that an object is drawn in, in pixels: left, top, right, bottom."""
    left, top = thing.column * CELL, thing.row * CELL
    return [left, top, left + CELL, top + CELL]


def truth(scene: Scene, text: str) -> dict[str, Any]:
    """The entry of a question."""
    return {"asked": [box(thing) for thing in asked(scene, text)], "objects": [box(thing) for thing in scene]}


def write_truth(folder: Path, entries: Sequence[tuple[int, Scene, str]]) -> None:
    """Write `TRUTH`: question id, scene and question of each."""
    (folder / TRUTH).write_text(json.dumps({str(number): truth(scene, text) for number, scene, text in entries}) + "\n")
