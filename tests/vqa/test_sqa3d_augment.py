"""Poses and augmentation: known poses against scipy, and what a person sees while a scene is moved."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from frozenllm.vqa.scenes.arrays import read_scene
from frozenllm.vqa.scenes.augment import Augmentation, Move
from frozenllm.vqa.scenes.files import sqa3d_questions
from frozenllm.vqa.scenes.pose import from_aligned, heading, own_frame, pose_of, quaternion_of, to_aligned
from frozenllm.vqa.toy.rooms import PIECES

HALF = math.sqrt(0.5)
numbers = st.floats(-5, 5)
points = st.tuples(numbers, numbers, numbers)
angles = st.tuples(*[st.floats(-180, 180)] * 3)


def seen(answer_frame: np.ndarray) -> str:
    """Which way something lies, from metres ahead and to the left."""
    ahead, left = answer_frame[:2]
    if abs(ahead) > abs(left):
        return "forward" if ahead > 0 else "backward"
    return "left" if left > 0 else "right"


def test_a_known_annotation() -> None:
    """SQA3D's own example: scene0380_00, which its viewer turns by 0.2 radian about z; read in scipy's order."""
    rotation = {"_w": 0.9950041652780182, "_x": 0, "_y": 0, "_z": 0.09983341664682724}
    pose = np.array([-0.9651, -1.2418, 0, *(rotation[axis] for axis in ("_x", "_y", "_z", "_w"))])
    np.testing.assert_allclose(Rotation.from_quat(pose[3:]).as_rotvec(), [0, 0, 0.2], atol=1e-9)
    # Its arrow points along -x before it is turned.
    np.testing.assert_allclose(heading(pose), [-math.cos(0.2), -math.sin(0.2), 0], atol=1e-9)


def test_alignment_of_a_known_pose() -> None:
    """Middle of the unaligned box first, then the alignment: a quarter turn and a shift."""
    align = np.eye(4)
    align[:3, :3], align[:3, 3] = Rotation.from_euler("z", 90, degrees=True).as_matrix(), (10, 20, 30)
    pose = to_aligned(np.array([1.0, 2.0, 0, 0, 0, 0, 1]), np.array([3.0, 4.0, 5.0]), align)
    np.testing.assert_allclose(pose, [10 - 6, 20 + 4, 30 + 5, 0, 0, HALF, HALF], atol=1e-12)
    np.testing.assert_allclose(heading(pose), [0, -1, 0], atol=1e-12)  # from -x to -y
    np.testing.assert_allclose(own_frame(np.array([4, 22, 35]), pose), [2, 0, 0], atol=1e-12)
    np.testing.assert_allclose(own_frame(np.array([5, 24, 36]), pose), [0, 1, 1], atol=1e-12)  # to the left is +x


def test_one_of_two_quaternions_is_taken() -> None:
    for z, expected in [(170, (0, 0, 0.99619, 0.08716)), (190, (0, 0, -0.99619, 0.08716)), (180, (0, 0, 1, 0))]:
        matrix = Rotation.from_euler("z", z, degrees=True).as_matrix()
        np.testing.assert_allclose(quaternion_of(matrix), expected, atol=1e-5)
    for z in (180 - 0.01, 180 + 0.01):  # rounding of a half turn does not flip its sign
        assert quaternion_of(Rotation.from_euler("z", z, degrees=True).as_matrix())[2] > 0.99


@settings(max_examples=40, deadline=None)
@given(points, angles, points, points, angles)
def test_alignment_and_back(position: tuple, turn: tuple, centre: tuple, shift: tuple, align_turn: tuple) -> None:
    align = np.eye(4)
    align[:3, :3] = Rotation.from_euler("xyz", align_turn, degrees=True).as_matrix()
    align[:3, 3] = shift
    matrix = Rotation.from_euler("xyz", turn, degrees=True).as_matrix()
    pose = pose_of(np.array(position), matrix)
    back = from_aligned(to_aligned(pose, np.array(centre), align), np.array(centre), align)
    np.testing.assert_allclose(back[:3], position, atol=1e-8)
    np.testing.assert_allclose(Rotation.from_quat(back[3:]).as_matrix(), matrix, atol=1e-8)


@settings(max_examples=60, deadline=None)
@given(points, angles, points, points, angles, st.tuples(st.booleans(), st.booleans()))
def test_what_a_person_sees_does_not_change(
    position: tuple, turn: tuple, thing: tuple, shift: tuple, degrees: tuple, flips: tuple
) -> None:
    """Turned and shifted with the person, everything keeps its place in the person's own frame. Flipped along one axis,
    left and right change places, and nothing else."""
    signs = np.array([-1.0 if flip else 1.0 for flip in flips] + [1.0])
    move = Move.of(signs, np.array(degrees), np.array(shift))
    pose = pose_of(np.array(position), Rotation.from_euler("xyz", turn, degrees=True).as_matrix())
    before = own_frame(np.array([thing]), pose)[0]
    after = own_frame(move.points(np.array([thing])), move.pose(pose))[0]
    expected = before * [1, -1, 1] if sum(flips) == 1 else before
    np.testing.assert_allclose(after, expected, atol=1e-7)


def test_turns_are_right_handed_and_in_the_order_x_y_z() -> None:
    degrees = np.array([30.0, -50.0, 110.0])
    expected = Rotation.from_euler("xyz", degrees, degrees=True).as_matrix()  # extrinsic: x first
    np.testing.assert_allclose(Move.of(np.ones(3), degrees, np.zeros(3)).matrix, expected, atol=1e-12)


def test_flips_of_a_heading_are_sqa3ds() -> None:
    """Its code takes a heading t to pi - t at a flip along x, and to -t at one along y."""
    for degrees in (0, 20, 100, -70):
        pose = pose_of(np.array([1.0, 2, 3]), Rotation.from_euler("z", degrees, degrees=True).as_matrix())
        for signs, expected in (((-1, 1, 1), 180 - degrees), ((1, -1, 1), -degrees), ((-1, -1, 1), 180 + degrees)):
            moved = Move.of(np.array(signs), np.zeros(3), np.zeros(3)).pose(pose)
            matrix = Rotation.from_euler("z", expected, degrees=True).as_matrix()
            np.testing.assert_allclose(Rotation.from_quat(moved[3:]).as_matrix(), matrix, atol=1e-9)
            np.testing.assert_allclose(moved[:3], np.array([1, 2, 3]) * signs)


@settings(max_examples=30, deadline=None)
@given(points, st.tuples(*[st.floats(0.1, 3)] * 3), angles, st.tuples(st.booleans(), st.booleans()))
def test_boxes_hold_their_moved_corners(centre: tuple, size: tuple, degrees: tuple, flips: tuple) -> None:
    signs = np.array([-1.0 if flip else 1.0 for flip in flips] + [1.0])
    move = Move.of(signs, np.array(degrees), np.array([1.0, 2.0, 3.0]))
    corners = np.array([[(i >> axis & 1) - 0.5 for axis in range(3)] for i in range(8)]) * size + centre
    moved = move.points(corners)
    box = move.boxes(np.array([[*centre, *size]]))[0]
    np.testing.assert_allclose(box[:3] - box[3:] / 2, moved.min(0), atol=1e-7)
    np.testing.assert_allclose(box[:3] + box[3:] / 2, moved.max(0), atol=1e-7)


def test_draws_stay_in_range_and_follow_the_seed() -> None:
    np.random.seed(0)
    moves = [Augmentation(degrees=5, metres=0.5).draw() for _ in range(200)]
    assert max(np.abs(move.shift).max() for move in moves) <= 0.5
    kinds = {tuple(np.sign(np.diag(move.matrix)).astype(int)) for move in moves}
    assert kinds == {(1, 1, 1), (-1, 1, 1), (1, -1, 1), (-1, -1, 1)}
    upright = min(move.matrix[2, 2] for move in moves)
    assert math.cos(math.radians(10)) < upright < math.cos(math.radians(3))
    np.random.seed(0)
    np.testing.assert_array_equal(Augmentation().draw().matrix, moves[0].matrix)
    still = Augmentation(flip=False, degrees=0, metres=0).draw()
    np.testing.assert_array_equal(still.points(np.ones((1, 3))), np.ones((1, 3)))
    with pytest.raises(ValueError, match=r"(degrees|metres) must be a number from 0"):
        Augmentation(degrees=-1)


def test_moving_rooms_changes_no_answer(rooms_root: Path) -> None:
    """ "Which way ...?" and "What is ...?" of the toy rooms, answered from boxes and poses alone, before and after."""
    places = {"in front of me": "forward", "on my left": "left", "behind me": "backward", "on my right": "right"}
    move = Move.of(np.ones(3), np.array([4.0, -3.0, 140.0]), np.array([0.3, -0.2, 0.4]))
    asked = 0
    for question in sqa3d_questions(str(rooms_root), "val"):
        scene = read_scene(rooms_root / "scannet_data", question.scene_id)
        pose = to_aligned(np.array(question.pose), scene.centre, scene.align)
        for boxes, place in ((scene.boxes, pose), (move.boxes(scene.boxes), move.pose(pose))):
            frame = own_frame(boxes[:, :3], place)
            ways = [seen(row) for row in frame]
            names = [PIECES[number] for number in scene.classes]
            if question.question.startswith("Which way"):
                piece = question.question.rstrip("?").split()[-1]
                assert ways[names.index(piece)] == question.answer
            elif question.question == "What is nearest to me?":
                assert names[int(np.linalg.norm(frame[:, :2], axis=1).argmin())] == question.answer
            elif question.question.startswith("What is"):
                wanted = places[question.question.removeprefix("What is ").rstrip("?")]
                assert names[ways.index(wanted)] == question.answer
            else:
                continue
            asked += 1
    assert asked > 50
