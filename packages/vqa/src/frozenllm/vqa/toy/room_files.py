"""The toy rooms on disk: meshes, segments, objects and alignment as ScanNet's, situations and questions as SQA3D's."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from frozenllm.vqa.scenes.extra import require
from frozenllm.vqa.scenes.pose import FORWARD, from_aligned
from frozenllm.vqa.toy.rooms import SLOT, STEP, WALLS, Asked, Room, Situation

_WALL, _HEIGHT = 2.6, 1.6  # metres from the middle of the room to a wall, and a wall's height
_COLORS = {
    "red": (210, 40, 40), "green": (40, 170, 60), "blue": (40, 70, 210), "yellow": (235, 205, 40),
    "floor": (128, 128, 128), "cabinet": (105, 60, 20), "bed": (240, 240, 240), "chair": (160, 40, 170),
    "sofa": (30, 165, 165), "table": (245, 140, 30), "door": (250, 160, 200), "window": (150, 205, 245),
    "bookshelf": (25, 25, 25),
}  # fmt: skip
_PIECES = {  # beside those of the detectors' toy rooms, in the same way: boxes of centre and size in metres
    "table": [(0, 0, 0.72, 1.4, 0.8, 0.06)] + [(x, y, 0.35, 0.08, 0.08, 0.7) for x in (-0.6, 0.6) for y in (-0.3, 0.3)],
    "door": [(0, 0, 1.0, 0.9, 0.12, 2.0)],
    "window": [(0, 0, 1.4, 1.2, 0.12, 0.9)],
    "bookshelf": [(0, 0, z, 1.0, 0.35, 0.05) for z in (0.1, 0.6, 1.1, 1.6)]
    + [(x, 0, 0.85, 0.05, 0.35, 1.6) for x in (-0.5, 0.5)],
}
_LABELS = {  # raw categories -> NYU40 ids; the sofa's raw category is another word, as ScanNet's often are
    "wall": 1, "floor": 2, "cabinet": 3, "bed": 4, "chair": 5, "couch": 6, "table": 7, "door": 8, "window": 9,
    "bookshelf": 10,
}  # fmt: skip
_RAW = {"sofa": "couch"}
_FIRST_QUESTION = 220602000000  # as SQA3D counts them
_SPACING = 0.22  # metres between vertices, about


@dataclass(frozen=True)
class Scan:
    """What poses are written with: the name, the middle of the unaligned vertices (3,), and the alignment (4, 4)."""

    name: str
    centre: NDArray[np.float64]
    align: NDArray[np.float64]


def write_scan(scans: Path, number: int, room: Room) -> Scan:
    """A room as a scan of ScanNet: four files in a folder of its own."""
    rng = np.random.default_rng(room.seed)
    name = f"scene{number:04d}_00"
    folder = scans / name
    folder.mkdir(parents=True)
    align = _alignment(rng)
    vertices, colors, faces, segments, groups = _mesh(room, rng)
    raw = ((vertices - align[:3, 3]) @ align[:3, :3]).astype(np.float32)
    _write_ply(folder / f"{name}_vh_clean_2.ply", raw, colors, faces)
    _dump(
        folder / f"{name}_vh_clean_2.0.010000.segs.json",
        {"params": {"kThresh": "0.0001", "segMinVerts": "20"}, "sceneId": name, "segIndices": segments},
    )
    _dump(
        folder / f"{name}.aggregation.json",
        {"sceneId": f"scannet.{name}", "appId": "Aggregator.v2", "segGroups": groups, "segmentsFile": "toy"},
    )
    numbers = " ".join(f"{value:.6f}" for value in align.ravel())
    (folder / f"{name}.txt").write_text(f"axisAlignment = {numbers} \ncolorHeight = 968\nsceneType = Toy\n")
    return Scan(name, (raw.max(0).astype(np.float64) + raw.min(0)) / 2, align)


def _alignment(rng: np.random.Generator) -> NDArray[np.float64]:
    """A turn about the vertical axis and a shift, with as many digits as ScanNet writes."""
    angle = rng.uniform(-math.pi, math.pi)
    align = np.eye(4)
    align[:2, :2] = [[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]]
    align[:3, 3] = rng.uniform(-3, 3, 3)
    return np.round(align, 6)


def _mesh(room: Room, rng: np.random.Generator) -> tuple[Any, ...]:
    """Aligned vertices (N, 3), colours (N, 3) uint8, faces (F, 3), segments of vertices, ScanNet's ``segGroups``."""
    furniture = require("frozenllm.pointcloud.detection.toy_scannet").FURNITURE | _PIECES
    parts: list[tuple[str, str, list[tuple[Any, Any]]]] = []  # label, colour, patches of vertices and faces
    half = np.array([_WALL, _WALL])
    floor = _patch(np.array([-half[0], -half[1], 0.0]), np.array([2 * _WALL, 0, 0]), np.array([0, 2 * _WALL, 0]), 0.5)
    parts.append(("floor", "floor", [floor]))
    for wall, color in enumerate(WALLS):
        turn = _quarter(wall)
        corner = turn @ np.array([_WALL, -_WALL, 0.0])
        parts.append(
            ("wall", color, [_patch(corner, turn @ np.array([0, 2 * _WALL, 0.0]), np.array([0, 0, _HEIGHT]), 0.45)])
        )
        piece = room.pieces[wall]
        scale = rng.uniform(0.95, 1.05, 3)
        place = turn @ np.array([SLOT, 0, 0]) + np.append(rng.uniform(-0.15, 0.15, 2), 0.0)
        facing = _quarter(wall - 1)  # the piece's back, at +y, to the wall
        boxes = [np.array(box) for box in furniture[piece]]
        patches = [patch for box in boxes for patch in _box(box[:3] * scale, box[3:] * scale)]
        parts.append((_RAW.get(piece, piece), piece, [(points @ facing.T + place, faces) for points, faces in patches]))
    vertices, colors, faces, segments, groups = [], [], [], [], []
    count = segment = 0
    for number, (label, color, patches) in enumerate(parts):
        first = segment
        shade = np.array(_COLORS[color]) + rng.normal(0, 8, 3)
        for points, triangles in patches:
            vertices.append(points + rng.normal(0, 0.005, points.shape))
            colors.append(np.clip(shade + rng.normal(0, 8, points.shape), 0, 255).astype(np.uint8))
            faces.append(triangles + count)
            segments += [segment] * len(points)
            count += len(points)
            segment += 1
        groups.append({"id": number, "objectId": number, "segments": list(range(first, segment)), "label": label})
    return np.concatenate(vertices), np.concatenate(colors), np.concatenate(faces), segments, groups


def _quarter(turns: int) -> NDArray[np.float64]:
    """So many quarter turns about the vertical axis."""
    cos, sin = [(1, 0), (0, 1), (-1, 0), (0, -1)][turns % 4]
    return np.array([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1]], dtype=np.float64)


def _box(centre: NDArray[np.float64], size: NDArray[np.float64]) -> list[tuple[Any, Any]]:
    """The six sides of a box."""
    low, edges = centre - size / 2, np.diag(size)
    sides = []
    for axis in range(3):
        one, other = edges[(axis + 1) % 3], edges[(axis + 2) % 3]
        sides += [_patch(low, other, one, _SPACING), _patch(low + edges[axis], one, other, _SPACING)]
    return sides


def _patch(
    corner: NDArray[np.float64], one: NDArray[np.float64], other: NDArray[np.float64], spacing: float
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """A rectangle from a corner along two edges: vertices, and triangles that look along ``one`` x ``other``."""
    steps = [max(round(float(np.linalg.norm(edge)) / spacing), 1) + 1 for edge in (one, other)]
    u, v = (np.linspace(0, 1, number) for number in steps)
    points = corner + u[:, None, None] * one + v[None, :, None] * other
    index = np.arange(steps[0] * steps[1]).reshape(steps)
    a, b, c, d = index[:-1, :-1].ravel(), index[1:, :-1].ravel(), index[1:, 1:].ravel(), index[:-1, 1:].ravel()
    return points.reshape(-1, 3), np.concatenate([np.stack([a, b, c], 1), np.stack([a, c, d], 1)])


def _write_ply(path: Path, xyz: NDArray[np.float32], colors: NDArray[np.uint8], faces: NDArray[np.int64]) -> None:
    """Binary, with the properties of ScanNet's files."""
    plyfile = require("plyfile")
    kinds = [("x", "f4"), ("y", "f4"), ("z", "f4"), ("red", "u1"), ("green", "u1"), ("blue", "u1"), ("alpha", "u1")]
    vertex = np.zeros(len(xyz), dtype=kinds)
    for axis, name in enumerate("xyz"):
        vertex[name] = xyz[:, axis]
    for channel, name in enumerate(("red", "green", "blue")):
        vertex[name] = colors[:, channel]
    vertex["alpha"] = 255
    face = np.zeros(len(faces), dtype=[("vertex_indices", "i4", (3,))])
    face["vertex_indices"] = faces
    elements = [plyfile.PlyElement.describe(vertex, "vertex"), plyfile.PlyElement.describe(face, "face")]
    plyfile.PlyData(elements, byte_order="<").write(str(path))


def aligned_pose(situation: Situation) -> NDArray[np.float64]:
    """Where somebody stands in the aligned room (7,): position and quaternion x, y, z, w."""
    place = np.zeros(3)
    if situation.near is not None:
        place = _quarter(situation.near) @ np.array([STEP, 0.0, 0.0])
    yaw = situation.facing * math.pi / 2 - math.atan2(FORWARD[1], FORWARD[0])  # an unturned person looks along FORWARD
    return np.array([*place, 0.0, 0.0, math.sin(yaw / 2), math.cos(yaw / 2)])


def write_questions(folder: Path, split: str, asked: Sequence[Asked], scans: Sequence[Scan]) -> None:
    """SQA3D's two files of a split."""
    folder.mkdir(parents=True, exist_ok=True)
    first = _FIRST_QUESTION + {"train": 0, "val": 100_000, "test": 200_000}[split]
    questions, annotations = [], []
    for number, question in enumerate(asked, start=first):
        scan = scans[question.room]
        pose = from_aligned(aligned_pose(question.situation), scan.centre, scan.align)
        main, *others = question.situation.texts()
        head = {"scene_id": scan.name, "question_id": number}
        questions.append({**head, "situation": main, "alternative_situation": others, "question": question.text})
        annotations.append(
            {
                **head,
                "question_type": "N/A",
                "answer_type": "other",
                "answers": [{"answer": question.answer, "answer_confidence": "yes", "answer_id": 1}],
                "rotation": dict(zip(("_x", "_y", "_z", "_w"), pose[3:].tolist(), strict=True)),
                "position": {"x": pose[0], "y": pose[1], "z": 0},  # SQA3D's is always 0: half the height of the scan
            }
        )
    info = {"info": {"description": "toy rooms", "version": "1.0"}, "data_type": "scannet", "data_subtype": "v2"}
    _dump(folder / f"v1_balanced_questions_{split}_scannetv2.json", {**info, "questions": questions})
    _dump(folder / f"v1_balanced_sqa_annotations_{split}_scannetv2.json", {**info, "annotations": annotations})


def write_answers(folder: Path, answers: Sequence[str]) -> None:
    """``answer_dict.json``: answer -> number, and back."""
    numbers = {answer: number for number, answer in enumerate(answers)}
    _dump(folder / "answer_dict.json", [numbers, {str(number): answer for answer, number in numbers.items()}])


def write_labels(folder: Path) -> None:
    """ScanNet's table of labels, with the columns that are read and their neighbours."""
    rows = ["id\traw_category\tcategory\tcount\tnyu40id\teigen13id\tnyuClass\tnyu40class"]
    for number, (raw, nyu40) in enumerate(_LABELS.items(), start=1):
        name = next((piece for piece, other in _RAW.items() if other == raw), raw)  # NYU40's
        rows.append(f"{number}\t{raw}\t{raw}\t1\t{nyu40}\t0\t{name}\t{name}")
    (folder / "scannetv2-labels.combined.tsv").write_text("\n".join(rows) + "\n")


def _dump(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content) + "\n")
