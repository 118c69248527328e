"""Scenes as SQA3D's code prepares them: six numpy files a scene, read with checks and kept in a small cache."""

from __future__ import annotations

import os
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from frozenllm.core.training import BrokenSample
from frozenllm.vqa.scenes.classes import class_of

ARRAYS = ("vert", "aligned_vert", "sem_label", "ins_label", "bbox", "aligned_bbox")
"""``<id>_vert.npy`` ...: vertices (N, 9) with colours 0-255 and normals, before and after alignment; NYU40 ids (N,);
object numbers (N,) from 1, 0 for none; boxes (K, 8): centre, size, NYU40 id, object number from 0."""
_TOLERANCE = 1e-2  # metres that an aligned vertex may lie beside the rigid motion of the unaligned one
_FITTED = 512  # vertices that the alignment is found from


@dataclass(frozen=True)
class Scene:
    """A scene among its aligned axes; N vertices, K objects.

    Attributes:
        scene_id: ScanNet's.
        points: (N, 6) float32: x, y, z in metres, and red, green, blue from 0 to 255.
        semantic: (N,) int64: class, or `frozenllm.vqa.scenes.classes.IGNORED`.
        instance: (N,) int64: row of ``boxes``, or -1.
        boxes: (K, 6) float32: centre and size.
        classes: (K,) int64.
        centre: (3,) float64: middle of the bounding box of the vertices before alignment, where annotations count from.
        align: (4, 4) float64: ScanNet's alignment.
    """

    scene_id: str
    points: NDArray[np.float32]
    semantic: NDArray[np.int64]
    instance: NDArray[np.int64]
    boxes: NDArray[np.float32]
    classes: NDArray[np.int64]
    centre: NDArray[np.float64]
    align: NDArray[np.float64]


class SceneFolder:
    """A folder of prepared scenes.

    Args:
        path: The folder with ``<id>_vert.npy`` and the others of `ARRAYS`.
        kept: Scenes that stay in memory, the latest used ones (1 to 3 MB each); in every worker of a loader.

    Raises:
        ValueError: There is no such folder.
    """

    def __init__(self, path: str | os.PathLike[str], kept: int = 32) -> None:
        self.path = Path(path).expanduser()
        if not self.path.is_dir():
            raise ValueError(
                f"The folder of scenes {self.path} does not exist: "
                "make it with python -m frozenllm.vqa.scenes.prepare, or give data.scenes=..."
            )
        if isinstance(kept, bool) or not isinstance(kept, int) or kept < 1:
            raise ValueError(f"data.kept must be a whole number of scenes from 1, not {kept!r}.")
        self.kept = kept
        self._cache: OrderedDict[str, Scene] = OrderedDict()

    def missing(self, scene_id: str) -> list[str]:
        """Names of the scene's files that are not there."""
        return [f"{scene_id}_{name}.npy" for name in ARRAYS if not (self.path / f"{scene_id}_{name}.npy").is_file()]

    def read(self, scene_id: str) -> Scene:
        """The scene; its arrays must not be written to.

        Raises:
            BrokenSample: A file is missing or damaged, or the files do not belong together.
        """
        if scene_id in self._cache:
            self._cache.move_to_end(scene_id)
            return self._cache[scene_id]
        scene = read_scene(self.path, scene_id)
        self._cache[scene_id] = scene
        while len(self._cache) > self.kept:
            self._cache.popitem(last=False)
        return scene


def read_scene(folder: Path, scene_id: str) -> Scene:
    """A prepared scene.

    Raises:
        BrokenSample: See `SceneFolder.read`.
    """
    arrays = {name: _load(folder / f"{scene_id}_{name}.npy") for name in ARRAYS if name != "bbox"}
    raw, aligned, boxes = arrays["vert"], arrays["aligned_vert"], arrays["aligned_bbox"]
    where = f"{folder}/{scene_id}_*.npy"
    count = len(raw)
    if raw.ndim != 2 or raw.shape[1] < 6 or aligned.shape != raw.shape or count == 0:
        raise BrokenSample(f"{where}: vertices must be two equal tables of x, y, z, red, green, blue, with a row.")
    if any(arrays[name].shape != (count,) for name in ("sem_label", "ins_label")):
        raise BrokenSample(f"{where}: there must be one semantic and one instance label for each of {count} vertices.")
    if boxes.ndim != 2 or boxes.shape[1] != 8:
        raise BrokenSample(f"{folder}/{scene_id}_aligned_bbox.npy: boxes have 8 columns, not shape {boxes.shape}.")
    if not (np.isfinite(raw[:, :6]).all() and np.isfinite(aligned[:, :6]).all() and np.isfinite(boxes).all()):
        raise BrokenSample(f"{where}: some numbers are not finite.")
    classes = class_of(boxes[:, 6])
    boxes, classes = boxes[classes >= 0], classes[classes >= 0]  # a placeholder of scans without annotation has class 0
    return Scene(
        scene_id=scene_id,
        points=np.ascontiguousarray(aligned[:, :6], dtype=np.float32),
        semantic=class_of(arrays["sem_label"]),
        instance=_rows(arrays["ins_label"], boxes[:, 7]),
        boxes=boxes[:, :6].astype(np.float32),
        classes=classes,
        centre=(raw[:, :3].max(0).astype(np.float64) + raw[:, :3].min(0)) / 2,
        align=_alignment(raw[:, :3], aligned[:, :3], where),
    )


def _load(path: Path) -> NDArray[np.generic]:
    try:
        return np.load(path, allow_pickle=False)
    except FileNotFoundError as error:
        raise BrokenSample(
            f"{path} does not exist: prepare the scan with python -m frozenllm.vqa.scenes.prepare."
        ) from error
    except Exception as error:  # damaged headers end in errors of every kind
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise BrokenSample(f"{path} cannot be read as an array ({reason}).") from error


def _rows(numbers: NDArray[np.integer], objects: NDArray[np.floating]) -> NDArray[np.int64]:
    """Of every vertex, the row of its object's box; objects are counted from 0 there, from 1 among the vertices."""
    numbers = numbers.astype(np.int64)
    table = np.full(max(int(numbers.max(initial=0)), int(objects.max(initial=-1)) + 1) + 1, -1)
    table[objects.astype(np.int64) + 1] = np.arange(len(objects))
    table[0] = -1
    return table[numbers]


def _alignment(raw: NDArray[np.floating], aligned: NDArray[np.floating], where: str) -> NDArray[np.float64]:
    """The rigid motion (4, 4) between the two tables of vertices: ScanNet's axisAlignment, which has no file here."""
    step = max(len(raw) // _FITTED, 1)
    source, target = raw[::step].astype(np.float64), aligned[::step].astype(np.float64)
    origin, goal = source.mean(0), target.mean(0)
    u, _, vt = np.linalg.svd((target - goal).T @ (source - origin))
    turn = u @ np.diag([1.0, 1.0, np.sign(np.linalg.det(u @ vt))]) @ vt
    align = np.eye(4)
    align[:3, :3], align[:3, 3] = turn, goal - turn @ origin
    if np.abs(source @ turn.T + align[:3, 3] - target).max() > _TOLERANCE:
        raise BrokenSample(f"{where}: aligned and unaligned vertices do not belong together.")
    return align
