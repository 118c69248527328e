"""The toy rooms: what stands where the text says, what can be known blind; and the words of the texts."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
import torch

from frozenllm.vqa.scenes.arrays import read_scene
from frozenllm.vqa.scenes.files import question_type, sqa3d_questions
from frozenllm.vqa.scenes.pose import heading, own_frame, to_aligned
from frozenllm.vqa.scenes.words import Vocabulary, glove, split_words, words_of
from frozenllm.vqa.toy import write_rooms
from frozenllm.vqa.toy.questions import prior
from frozenllm.vqa.toy.rooms import SITUATIONS, WALLS, Asked, Room, Situation, ask, questions_about, random_room


def test_rooms_are_those_of_the_text(rooms_root: Path) -> None:
    """The wall that the situation names is ahead, in its colour; who stands close to a wall, does."""
    for question in sqa3d_questions(str(rooms_root), "val")[:40]:
        scene = read_scene(rooms_root / "scannet_data", question.scene_id)
        pose = to_aligned(np.array(question.pose), scene.centre, scene.align)
        named = [wall for wall in WALLS if f"facing the {wall} wall" in question.situation.lower()]
        angle = WALLS.index(named[0]) * np.pi / 2
        np.testing.assert_allclose(heading(pose), [np.cos(angle), np.sin(angle), 0], atol=1e-3)
        floor = scene.semantic == -1
        ahead = own_frame(scene.points[floor, :3], pose)
        wall = scene.points[floor][(ahead[:, 0] > 1.5) & (abs(ahead[:, 1]) < 1) & (scene.points[floor, 2] > 0.3)]
        red, green, blue = wall[:, 3:].mean(0)
        assert {"red": red > green + 99, "green": green > red + 80, "blue": blue > red + 99,
                "yellow": min(red, green) > blue + 99}[named[0]]  # fmt: skip
        if "close to" in question.situation:
            close = question.situation.split("close to the ")[1].split()[0]
            angle = WALLS.index(close) * np.pi / 2
            np.testing.assert_allclose(pose[:2], [0.8 * np.cos(angle), 0.8 * np.sin(angle)], atol=1e-3)
        else:
            np.testing.assert_allclose(pose[:2], [0, 0], atol=1e-3)


def test_questions_of_a_room_by_hand() -> None:
    room = Room(("bed", "sofa", "bed", "chair"), 0)  # red, green, blue, yellow
    answers = dict(questions_about(room, Situation(facing=1, near=3)))  # facing green, the back to yellow
    assert answers["What is in front of me?"] == "sofa"
    assert answers["What is behind me?"] == answers["What is nearest to me?"] == "chair"
    assert answers["What is on my left?"] == answers["What is on my right?"] == "bed"
    assert answers["How many beds are beside me, left and right?"] == "2"
    assert answers["Which way do I go to reach the chair?"] == "backward"
    assert answers["Can I go straight ahead to a sofa?"] == answers["Is there a chair behind me?"] == "yes"
    assert "Which way do I go to reach the bed?" not in answers
    assert dict(questions_about(room, Situation(facing=0)))["What is on my left?"] == "sofa"


def test_blind_answers_stay_near_their_prior() -> None:
    """Neither the question, nor question and room, nor question and situation give the answer away."""
    rng = np.random.default_rng(0)
    rooms = [random_room(rng) for _ in range(120)]
    asked = ask(rooms, 24, rng)
    assert {question_type(q.text) for q in asked} == {"what", "is", "how", "can", "which", "others"}
    assert prior(asked) < 27
    assert all(dict(questions_about(rooms[q.room], q.situation))[q.text] == q.answer for q in asked[::20])
    # Room and question: the best answer over all situations that might be meant, weighted as they are drawn.
    drawn: dict[tuple[str, str], int] = defaultdict(int)
    there: dict[tuple[str, str], int] = defaultdict(int)
    for q in asked:
        drawn[q.text, q.answer] += 1
    pairs = [(room, pair) for room in rooms for s in SITUATIONS for pair in questions_about(room, s)]
    for _, pair in pairs:
        there[pair] += 1
    weights: dict[tuple[Room, str], dict[str, float]] = defaultdict(lambda: defaultdict(float))
    for room, pair in pairs:
        weights[room, pair[0]][pair[1]] += drawn[pair] / there[pair]
    best = sum(max(answers.values()) for answers in weights.values())
    assert best / len(asked) < 0.5
    # Situation and question without the room: as many answers as there are pieces.
    blind = prior(
        [Asked(0, q.situation, f"{q.situation} {q.text}", q.answer) for q in asked if q.text.startswith("What")]
    )
    assert blind < 30


def test_rooms_are_written_once_and_alike(rooms_root: Path, tmp_path: Path) -> None:
    again = write_rooms(tmp_path / "again", train=8, val=4, test=2, per_room=24)
    names = sorted(path.relative_to(again) for path in again.rglob("*") if path.is_file())
    assert names == sorted(path.relative_to(rooms_root) for path in rooms_root.rglob("*") if path.is_file())
    for name in names:
        assert (again / name).read_bytes() == (rooms_root / name).read_bytes(), name
    with pytest.raises(ValueError, match="other settings"):
        write_rooms(again, train=9)


def test_words(rooms_root: Path) -> None:
    assert split_words("I'm at the SOFA, facing 2 doors.") == [
        "i'm",
        "at",
        "the",
        "sofa",
        ",",
        "facing",
        "2",
        "doors",
        ".",
    ]
    vocabulary = Vocabulary(["bed", "the", "?"], max_length=3)
    ids, mask = vocabulary.batch(["The bed?", "where", "", "the the the the"])
    assert ids.tolist() == [[3, 2, 4], [1, 0, 0], [1, 0, 0], [3, 3, 3]]
    assert mask.tolist() == [[True] * 3, [True, False, False], [True, False, False], [True] * 3]
    assert len(vocabulary) == 5
    words = words_of(str(rooms_root))
    assert list(words) == sorted(set(words))
    assert {"red", "wall", ".", "?", "look", "nearest"} <= set(words)  # "look" is in an alternative situation alone
    for bad in ([], ["a", "a"]):
        with pytest.raises(ValueError, match="at least one word"):
            Vocabulary(bad)


def test_glove(tmp_path: Path) -> None:
    vocabulary = Vocabulary(["bed", "sofa", "xyzzy"])
    path = tmp_path / "glove.6B.3d.txt"
    path.write_text("the 9 9 9\nsofa 1 2 3\nunk 4 5 6\nbed -1 0.5 1e-1\n")
    expected = [[0, 0, 0], [4, 5, 6], [-1, 0.5, 0.1], [1, 2, 3], [4, 5, 6]]
    torch.testing.assert_close(glove(path, vocabulary, 3), torch.tensor(expected))
    path.write_text("sofa 1 2 3\nbed 3 2 1\n")
    assert glove(path, vocabulary, 3)[[1, 4]].tolist() == [[2, 2, 2]] * 2  # without unk, the mean
    for text, message in [
        ("sofa 1 2\n", "line 1: a word vector has 2"),
        ("sofa a b c\n", "no word vector"),
        ("x 1", "none"),
    ]:
        path.write_text(text)
        with pytest.raises(ValueError, match=message):
            glove(path, vocabulary, 3)
    with pytest.raises(ValueError, match=r"is a pickle.*give the text file glove\.6B\.300d\.txt"):
        glove(tmp_path / "glove.p", vocabulary)
    with pytest.raises(ValueError, match="cannot be read"):
        glove(tmp_path / "no.txt", vocabulary)
