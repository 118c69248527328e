"""Scans of ScanNet v2, read from the four files that are needed, and turned into the arrays of SQA3D's code.

A scan is a folder ``<id>`` with ``<id>_vh_clean_2.ply`` (the mesh), ``<id>_vh_clean_2.0.010000.segs.json`` (the segment
of every vertex), ``<id>.aggregation.json`` (objects as sets of segments, with a label each) and ``<id>.txt``
(``axisAlignment``). Labels are ScanNet's raw categories; ``scannetv2-labels.combined.tsv``, which ScanNet ships beside
the scans, gives their NYU40 id (columns ``raw_category`` and ``nyu40id``).
"""

from __future__ import annotations

import csv
import json
import os
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from frozenllm.vqa.scenes.classes import class_of
from frozenllm.vqa.scenes.extra import require

MAX_POINTS = 50_000  # of a prepared scene (SQA3D)
FILES = ("{}_vh_clean_2.ply", "{}_vh_clean_2.0.010000.segs.json", "{}.aggregation.json", "{}.txt")
LABELS = "scannetv2-labels.combined.tsv"
_COLUMNS = ("x", "y", "z", "red", "green", "blue")


_FAR = 1e4  # metres: no indoor scan reaches as far


class BrokenScan(ValueError):
    """A scan cannot be used; the message is one sentence that names the file and what is wrong with it."""


def read_labels(path: str | os.PathLike[str]) -> dict[str, int]:
    """ScanNet's raw categories -> NYU40 ids.

    Raises:
        ValueError: The file is missing or is another one.
    """
    try:
        with open(path, newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file, delimiter="\t"))
        labels = {row["raw_category"]: int(row["nyu40id"]) for row in rows}
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror}): name ScanNet's {LABELS} with --labels.") from error
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is not ScanNet's {LABELS}: it lacks raw_category or nyu40id ({error!r}).") from error
    if not labels:
        raise ValueError(f"{path} holds no categories.")
    return labels


def scan_arrays(folder: str | os.PathLike[str], labels: Mapping[str, int]) -> dict[str, NDArray[Any]]:
    """The six arrays of a scan (`frozenllm.vqa.scenes.arrays.ARRAYS`).

    Unlike SQA3D's code, the choice of `MAX_POINTS` vertices is the same each time and keeps the outermost ones, so that
    the middle that poses are counted from stays where it was; and normals are turned with the vertices.

    Args:
        folder: The scan's.
        labels: See `read_labels`.

    Raises:
        BrokenScan: A file is missing or damaged, the mesh is empty, or the files do not belong together.
    """
    folder = Path(folder)
    scan = folder.name
    paths = [folder / name.format(scan) for name in FILES]
    missing = [path.name for path in paths if not path.is_file()]
    if missing:
        raise BrokenScan(f"{folder} lacks {', '.join(missing)}.")
    ply, segs, aggregation, meta = paths
    vertices = read_mesh(ply)
    align = read_alignment(meta)
    semantic, instance = _annotation(segs, aggregation, labels, len(vertices))
    aligned = vertices.copy()
    aligned[:, :3] = vertices[:, :3].astype(np.float64) @ align[:3, :3].T + align[:3, 3]
    aligned[:, 6:] = vertices[:, 6:] @ align[:3, :3].T
    arrays = {
        "vert": vertices,
        "aligned_vert": aligned,
        "sem_label": semantic,
        "ins_label": instance,
        "bbox": _boxes(vertices, semantic, instance),
        "aligned_bbox": _boxes(aligned, semantic, instance),
    }
    if len(vertices) > MAX_POINTS:
        chosen = _choice(vertices[:, :3], zlib.crc32(scan.encode()))
        arrays |= {name: arrays[name][chosen] for name in ("vert", "aligned_vert", "sem_label", "ins_label")}
    return arrays


def read_mesh(path: Path) -> NDArray[np.float32]:
    """The vertices (N, 9) of a mesh: x, y, z, colours 0-255, normals (zero where no face is).

    Raises:
        BrokenScan: The file is not a coloured mesh, or an empty one.
    """
    plyfile = require("plyfile")
    try:
        try:  # without a known length, every face is read by itself: seconds a scan
            ply = plyfile.PlyData.read(str(path), known_list_len={"face": {"vertex_indices": 3}})
        except (plyfile.PlyParseError, KeyError, ValueError):
            ply = plyfile.PlyData.read(str(path))
        vertices = np.zeros((ply["vertex"].count, 9), dtype=np.float32)
        for column, name in enumerate(_COLUMNS):
            vertices[:, column] = ply["vertex"][name]
        faces = _faces(ply, path, len(vertices))
    except (plyfile.PlyParseError, KeyError, ValueError, OSError, EOFError) as error:
        if isinstance(error, BrokenScan):
            raise
        raise BrokenScan(f"{path} cannot be read as a mesh with colours ({error}).") from error
    if not len(vertices):
        raise BrokenScan(f"{path} is empty: it has no vertices.")
    if not (np.abs(vertices[:, :3]) < _FAR).all():  # NaN is not below anything
        raise BrokenScan(f"{path} has vertices that are not finite, or kilometres away.")
    vertices[:, 6:] = _normals(vertices[:, :3].astype(np.float64), faces)
    return vertices


def _faces(ply: Any, path: Path, vertices: int) -> NDArray[np.int64]:
    """Triangles (F, 3); there may be none."""
    if "face" not in ply or not ply["face"].count:
        return np.zeros((0, 3), dtype=np.int64)
    faces = ply["face"].data["vertex_indices"]
    if faces.dtype == object:  # faces of different lengths, or of a length that was not known
        faces = np.stack(list(faces))
    faces = np.asarray(faces, dtype=np.int64)
    if faces.ndim != 2 or faces.shape[1] != 3:
        raise BrokenScan(f"{path} has faces that are no triangles.")
    if faces.min() < 0 or faces.max() >= vertices:
        raise BrokenScan(f"{path} has faces with vertices that do not exist.")
    return faces


def _normals(xyz: NDArray[np.float64], faces: NDArray[np.int64]) -> NDArray[np.float64]:
    """Unit normals of vertices: the mean direction of their faces."""
    corners = xyz[faces]
    faced = _unit(np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]))
    sums = [np.bincount(faces.ravel(), weights=np.repeat(faced[:, axis], 3), minlength=len(xyz)) for axis in range(3)]
    return _unit(np.stack(sums, axis=1))


def _unit(vectors: NDArray[np.float64]) -> NDArray[np.float64]:
    return vectors / (np.linalg.norm(vectors, axis=-1, keepdims=True) + 1e-8)


def read_alignment(path: Path) -> NDArray[np.float64]:
    """``axisAlignment`` (4, 4) of a scan's ``.txt``; the identity where it has none, as in SQA3D's code.

    Raises:
        BrokenScan: It is not a rigid motion.
    """
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        name, _, numbers = line.partition("=")
        if name.strip() != "axisAlignment":
            continue
        try:
            align = np.array([float(number) for number in numbers.split()]).reshape(4, 4)
        except ValueError as error:
            raise BrokenScan(f"{path}: axisAlignment is not 16 numbers.") from error
        turn = align[:3, :3]
        if not np.isfinite(align).all() or not np.allclose(turn @ turn.T, np.eye(3), atol=1e-3):
            raise BrokenScan(f"{path}: axisAlignment is not a turn and a shift.")
        return align
    return np.eye(4)


def _json(path: Path, key: str) -> list[Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BrokenScan(f"{path} is not JSON ({error}): it may be truncated.") from error
    entries = content.get(key) if isinstance(content, dict) else None
    if not isinstance(entries, list):
        raise BrokenScan(f"{path} has no list {key!r}.")
    return entries


def _annotation(
    segs: Path, aggregation: Path, labels: Mapping[str, int], count: int
) -> tuple[NDArray[np.uint32], NDArray[np.uint32]]:
    """NYU40 ids and object numbers (from 1) of all vertices; 0 where nothing is annotated."""
    entries = _json(segs, "segIndices")
    if len(entries) != count:
        raise BrokenScan(f"{segs} is of another mesh: it has {len(entries)} entries for {count} vertices.")
    try:
        ids, segment = np.unique(np.array(entries, dtype=np.int64), return_inverse=True)
        place = {int(number): row for row, number in enumerate(ids)}
        semantic, instance = (np.zeros(len(ids), dtype=np.uint32) for _ in range(2))
        for group in _json(aggregation, "segGroups"):
            rows = [place[int(number)] for number in group["segments"]]
            if group["label"] not in labels:
                raise BrokenScan(f"{aggregation} has the label {group['label']!r}, which the table of labels lacks.")
            semantic[rows], instance[rows] = labels[group["label"]], int(group["objectId"]) + 1
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        if isinstance(error, BrokenScan):
            raise
        raise BrokenScan(f"{aggregation} and {segs.name} do not belong together ({error!r}).") from error
    return semantic[segment], instance[segment]


def _boxes(
    vertices: NDArray[np.float32], semantic: NDArray[np.uint32], instance: NDArray[np.uint32]
) -> NDArray[np.float64]:
    """Boxes (K, 8) of the objects that the detector knows: centre, size, NYU40 id, object number from 0."""
    boxes = []
    order = np.argsort(instance, kind="stable")
    numbers, starts = np.unique(instance[order], return_index=True)
    for number, rows in zip(numbers, np.split(order, starts[1:]), strict=True):
        label = semantic[rows[0]]
        if number and class_of(label) >= 0:
            low, high = vertices[rows, :3].min(0).astype(np.float64), vertices[rows, :3].max(0).astype(np.float64)
            boxes.append([*(low + high) / 2, *(high - low), label, number - 1])
    return np.array(boxes, dtype=np.float64).reshape(-1, 8)


def _choice(xyz: NDArray[np.float32], seed: int) -> NDArray[np.int64]:
    """`MAX_POINTS` rows, those that span the bounding box among them."""
    corners = np.unique(np.concatenate([xyz.argmin(0), xyz.argmax(0)]))
    rest = np.setdiff1d(np.arange(len(xyz)), corners)
    drawn = np.random.default_rng(seed).choice(rest, MAX_POINTS - len(corners), replace=False)
    return np.sort(np.concatenate([corners, drawn]))
