"""Toy rooms with somebody in them, as SQA3D's questions and ScanNet's scans.

**The room.** Always the same four walls, in the frame that ScanNet's alignment leads to: red at +x, green at +y, blue
at -x, yellow at -y, 2.6 m from the middle; and a grey floor. Before the middle of each wall stands one of eight pieces
(the detector's classes 0 to 7), which differ in colour, size and shape; in every third room one of them stands there
twice, opposite itself. Scans are stored unaligned, each turned and shifted in another way.

**The person** stands in the middle of the room, or 0.8 m from it, close to a wall, and looks straight at a wall. The
situation says both by the walls' colours, in three wordings (the main one and two alternatives).

**The questions** ask about what is ahead, behind, to the left and to the right, what is nearest, which way to go, and
how many pieces stand at both sides. Every wording has equally many of each of its answers; it takes the situation *and*
the room to answer: a question alone gives the prior (`frozenllm.vqa.toy.questions.prior`), question and room without
situation little more, situation and question without room nothing.

"What is in front of me?" is asked most (`SHARES`): the one wall that most situations name answers it, and a model that
has learned to look there has made the largest step. With equal shares nothing at all is learned in some minutes.
"""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from frozenllm.core.toy_folder import write_once
from frozenllm.vqa.scenes.classes import CLASSES
from frozenllm.vqa.toy.questions import draw_evenly

WALLS = ("red", "green", "blue", "yellow")
"""At angles of 0, 90, 180 and 270 degrees."""
PIECES = CLASSES[:8]
SLOT = 1.7  # metres from the middle of the room to a piece of furniture
STEP = 0.8  # metres from the middle of the room to somebody who stands close to a wall
_PLACES = {"in front of me": 0, "on my left": 1, "behind me": 2, "on my right": 3}  # quarter turns from ahead
_WAYS = ("forward", "left", "backward", "right")
SHARES = {
    "What is in front": 0.7,
    "What is nearest": 0.08,
    "What is": 0.06,
    "Which": 0.03,
    "Is there": 0.04,
    "How many": 0.03,
    "Can I": 0.03,
    "Am I": 0.03,
}
"""Of all questions, by how they begin; the first that fits counts."""


@dataclass(frozen=True)
class Room:
    """What stands before the walls, in the order of `WALLS`; ``seed`` gives all that has no meaning."""

    pieces: tuple[str, ...]
    seed: int


@dataclass(frozen=True)
class Situation:
    """Somebody who looks at a wall, in the middle of the room (``near`` None) or close to a wall; walls by number."""

    facing: int
    near: int | None = None

    def texts(self) -> tuple[str, ...]:
        """The situation in words: SQA3D's main one, and two alternatives."""
        wall = f"the {WALLS[self.facing]} wall"
        if self.near is None:
            return f"Facing {wall}.", f"I look at {wall}.", f"I am in the middle of the room and face {wall}."
        close = f"the {WALLS[self.near]} wall"
        return (
            f"Facing {wall}, close to {close}.",
            f"I am close to {close} and look at {wall}.",
            f"I am standing close to {close} and face {wall}.",
        )


SITUATIONS = tuple(Situation(facing, near) for facing in range(4) for near in (*[None] * 12, 0, 1, 2, 3))
"""In the middle three times as often as close to a wall."""


def random_room(rng: np.random.Generator) -> Room:
    """Four pieces, or three of which one stands twice, opposite itself."""
    pieces = [PIECES[i] for i in rng.permutation(len(PIECES))[:4]]
    if rng.random() < 1 / 3:
        wall = int(rng.integers(4))
        pieces[(wall + 2) % 4] = pieces[wall]
    return Room(tuple(pieces), int(rng.integers(2**31)))


def questions_about(room: Room, situation: Situation) -> Iterator[tuple[str, str]]:
    """All (question, answer) for somebody in a room."""
    around = [room.pieces[(situation.facing + turn) % 4] for turn in range(4)]  # ahead, left, behind, right
    count = Counter(room.pieces)
    for place, turn in _PLACES.items():
        yield f"What is {place}?", around[turn]
    if situation.near is not None:
        yield "What is nearest to me?", room.pieces[situation.near]
    for piece in sorted(count):
        for place, turn in _PLACES.items():
            yield f"Is there a {piece} {place}?", "yes" if around[turn] == piece else "no"
        yield f"How many {piece}s are beside me, left and right?", str((around[1] == piece) + (around[3] == piece))
        yield f"Can I go straight ahead to a {piece}?", "yes" if around[0] == piece else "no"
        yield f"Am I looking at a {piece}?", "yes" if around[0] == piece else "no"
        if count[piece] == 1:
            yield f"Which way do I go to reach the {piece}?", _WAYS[around.index(piece)]


@dataclass(frozen=True)
class Asked:
    """A question that somebody asks in a room; both by number."""

    room: int
    situation: Situation
    text: str
    answer: str


def ask(rooms: list[Room], per_room: int, rng: np.random.Generator) -> list[Asked]:
    """Questions about rooms, as many of each kind as `SHARES` says, every wording equally often with each answer."""
    pools: dict[str, dict[str, dict[str, list[int]]]] = {kind: {} for kind in SHARES}
    places = [(room, situation) for room in range(len(rooms)) for situation in SITUATIONS]
    for place, (room, situation) in enumerate(places):
        for text, answer in questions_about(rooms[room], situation):
            pool = pools[next(kind for kind in SHARES if text.startswith(kind))]
            pool.setdefault(text, defaultdict(list))[answer].append(place)
    drawn = [
        found
        for kind, pool in pools.items()
        if pool
        for found in draw_evenly(pool, round(SHARES[kind] * per_room * len(rooms)), rng)
    ]
    return sorted((Asked(*places[place], text, answer) for place, text, answer in drawn), key=lambda asked: asked.room)


def write_rooms(
    root: str | os.PathLike[str] | None = None,
    *,
    train: int = 150,
    val: int = 40,
    test: int = 20,
    per_room: int = 32,
    seed: int = 0,
) -> Path:
    """Toy rooms in SQA3D's and ScanNet's files, and prepared.

    Args:
        root: The folder; None for one in the user's cache.
        train: Training rooms.
        val: Validation rooms.
        test: Test rooms.
        per_room: Questions a room, on average.
        seed: Of everything random.

    Returns:
        The folder: ``sqa_task`` (questions), ``scans`` and ``scannetv2-labels.combined.tsv`` (as ScanNet ships them),
        and ``scannet_data``, which `frozenllm.vqa.scenes.prepare` makes of the scans.

    Raises:
        ValueError: The folder holds something else.
        ImportError: The extra ``[scenes]`` is not installed.
    """
    manifest: dict[str, Any] = {"data": "toy sqa3d", "format": 9, "train": train, "val": val, "test": test}
    manifest |= {"per_room": per_room, "seed": seed}
    return write_once(root, "sqa3d", manifest, lambda folder: _write(folder, manifest))


def _write(folder: Path, manifest: dict[str, Any]) -> None:
    from frozenllm.vqa.scenes.prepare import prepare
    from frozenllm.vqa.toy.room_files import write_answers, write_labels, write_questions, write_scan

    rng = np.random.default_rng(manifest["seed"])
    write_labels(folder)
    answers: set[str] = set()
    first = 0
    for split in ("train", "val", "test"):
        rooms = [random_room(rng) for _ in range(manifest[split])]
        scans = [write_scan(folder / "scans", first + i, room) for i, room in enumerate(rooms)]
        first += len(rooms)
        asked = ask(rooms, manifest["per_room"], rng)
        write_questions(folder / "sqa_task" / "balanced", split, asked, scans)
        answers |= {question.answer for question in asked}
    write_answers(folder / "sqa_task", sorted(answers))
    prepare(folder / "scans", folder / "scannet_data", on_error="raise", progress=False)
