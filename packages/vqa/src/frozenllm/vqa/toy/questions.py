"""Questions with answers, and captions, about toy scenes.

Every wording of a question is asked equally often with each of its answers, so that a model without eyes cannot do
better than one over their number.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from frozenllm.vqa.toy.scenes import COLORS, COLUMNS, ROWS, SHAPES, Scene, Thing

CORNERS = {"top left": (0, 0), "top right": (0, 2), "bottom left": (2, 0), "bottom right": (2, 2), "center": (1, 1)}
MAX_COUNT = 3
ANSWER_TYPES = {"is": "yes/no", "how": "number", "what": "other"}


class Asked(Protocol):
    """A question with its answer."""

    @property
    def text(self) -> str: ...

    @property
    def answer(self) -> str: ...


@dataclass(frozen=True)
class Question:
    """A question about one scene."""

    scene: int
    text: str
    answer: str

    @property
    def answer_type(self) -> str:
        """VQAv2's: ``yes/no``, ``number`` or ``other``."""
        return ANSWER_TYPES[self.text.split()[0].lower()]

    @property
    def question_type(self) -> str:
        """VQAv2's: the first words."""
        return " ".join(self.text.lower().split()[:2])


def candidates(scene: Scene) -> Iterator[tuple[str, str]]:
    """All (question, answer) that can be asked about a scene without ambiguity."""
    by_shape = {shape: [t for t in scene if t.shape == shape] for shape in SHAPES}
    by_color = {color: [t for t in scene if t.color == color] for color in COLORS}
    names = {thing.name for thing in scene}
    for color in COLORS:
        if len(by_color[color]) == 1:
            yield f"What shape is the {color} thing?", by_color[color][0].shape
        if len(by_color[color]) <= MAX_COUNT:
            yield f"How many {color} things are there?", str(len(by_color[color]))
        for shape in SHAPES:
            yield f"Is there a {color} {shape}?", "yes" if f"{color} {shape}" in names else "no"
    for shape in SHAPES:
        if len(by_shape[shape]) == 1:
            yield f"What color is the {shape}?", by_shape[shape][0].color
        if len(by_shape[shape]) <= MAX_COUNT:
            yield f"How many {shape}s are there?", str(len(by_shape[shape]))
    at = {(thing.row, thing.column): thing for thing in scene}
    for place, cell in CORNERS.items():
        if cell in at:
            yield f"What color is the thing at the {place}?", at[cell].color
    singles = [things[0] for things in by_shape.values() if len(things) == 1]
    for a in singles:
        for b in singles:
            if a.shape != b.shape and a.column != b.column:
                yield f"Is the {a.shape} left of the {b.shape}?", "yes" if a.column < b.column else "no"
            if a.shape != b.shape and a.row != b.row:
                yield f"Is the {a.shape} above the {b.shape}?", "yes" if a.row < b.row else "no"


def balanced(scenes: Sequence[Scene], per_scene: int, generator: np.random.Generator) -> list[Question]:
    """Questions about the scenes, every wording equally often with each of its answers.

    Args:
        scenes: The scenes.
        per_scene: Questions a scene, on average; fewer where the scenes do not give as many.
        generator: Chooses among the candidates.

    Returns:
        The questions in the order of their scenes.
    """
    pools: dict[str, dict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
    for index, scene in enumerate(scenes):
        for text, answer in candidates(scene):
            pools[text][answer].append(index)
    chosen = [Question(*picked) for picked in draw_evenly(pools, per_scene * len(scenes), generator)]
    return sorted(chosen, key=lambda question: question.scene)


def draw_evenly(
    pools: Mapping[str, Mapping[str, Sequence[int]]], number: int, generator: np.random.Generator
) -> list[tuple[int, str, str]]:
    """Questions from a pool, every wording equally often with each of its answers.

    Args:
        pools: Wording -> answer -> places where that is the answer. Wordings with one answer are left out.
        number: Of questions; all wordings, the rare ones too, get the same share. Fewer where there are not as many.
        generator: Draws the places.

    Returns:
        (place, wording, answer).
    """
    share = number // len(pools)
    chosen = []
    for text, answers in sorted(pools.items()):
        if len(answers) == 1:
            continue
        each = min(max(share // len(answers), 1), *(len(found) for found in answers.values()))
        for answer, found in sorted(answers.items()):
            chosen += [(int(index), text, answer) for index in generator.permutation(found)[:each]]
    return chosen


def prior(questions: Sequence[Asked]) -> float:
    """Accuracy, in per cent, of the best answer to every wording without a look at the image or scene."""
    counts: dict[str, dict[str, int]] = defaultdict(lambda: defaultdict(int))
    for question in questions:
        counts[question.text][question.answer] += 1
    return 100.0 * sum(max(answers.values()) for answers in counts.values()) / len(questions)


def captions(scene: Scene, number: int, generator: np.random.Generator) -> list[str]:
    """Descriptions of a scene that name all of its objects; the wording differs."""
    return [_caption(scene, kind % 3, generator) for kind in range(number)]


def _caption(scene: Scene, kind: int, generator: np.random.Generator) -> str:
    things = [scene[i] for i in generator.permutation(len(scene))]
    if kind == 0:
        return "There is " + _joined([f"a {thing.name} at the {_place(thing)}" for thing in things]) + "."
    if kind == 1:
        return _joined([f"a {thing.name}" for thing in sorted(scene)]).capitalize() + "."
    parts = [f"the {_place(thing)} has a {thing.name}" for thing in things]
    return _joined(parts).capitalize() + "."


def _place(thing: Thing) -> str:
    return f"{ROWS[thing.row]} {COLUMNS[thing.column]}"


def _joined(parts: Sequence[str]) -> str:
    return parts[0] if len(parts) == 1 else ", ".join(parts[:-1]) + " and " + parts[-1]
