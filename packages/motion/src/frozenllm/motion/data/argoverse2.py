"""Argoverse 2 motion forecasting: scenarios read by column, maps through av2's map API."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from frozenllm.core.training import BrokenSample
from frozenllm.motion.data.centring import Window
from frozenllm.motion.data.dataset import Scenes
from frozenllm.motion.scene import AGENT_TYPES, LANE_ATTRIBUTES, MapPolylines, Scene, on_earth

HISTORY, HORIZON = 50, 60
"""Steps of the benchmark: 5 s are observed, 6 s are predicted."""

SPLITS = ("train", "val", "test")

_COLUMNS = (
    "track_id",
    "object_type",
    "timestep",
    "position_x",
    "position_y",
    "heading",
    "scenario_id",
    "focal_track_id",
    "city",
)
_STEPS = HISTORY + HORIZON
_LOOKED_AT = 20  # folders, of which one at least must hold a scenario
_LANE_TYPES = {"VEHICLE": "vehicle", "BIKE": "bike", "BUS": "bus"}


class Argoverse2(Scenes):
    """Focal tracks of ``<root>/<split>/<id>/{scenario_<id>.parquet,log_map_archive_<id>.json}``.

    Args:
        root: The folder.
        split: One of `SPLITS`; ``test`` has no future.
        window: What a sample holds.
        train: See `frozenllm.core.training.TolerantDataset`.
        on_error: See there.

    Raises:
        ValueError: The folder is missing or has no scenarios, or the split is unknown.
    """

    def __init__(
        self,
        root: str | os.PathLike[str] | None,
        split: str,
        window: Window,
        *,
        train: bool = False,
        on_error: str = "raise",
    ) -> None:
        if split not in SPLITS:
            raise ValueError(f"Argoverse 2 has the splits {', '.join(SPLITS)}, not {split!r}.")
        window.check("Argoverse 2", HISTORY, HORIZON)
        if root is None:
            raise ValueError("Argoverse 2 needs its folder: data.root=/path/to/argoverse2 with train, val, test in it.")
        self.folder = Path(root) / split
        if not self.folder.is_dir():
            raise ValueError(f"{self.folder} is missing: name the folder that holds Argoverse 2's {split}.")
        with os.scandir(self.folder) as entries:
            names = sorted(entry.name for entry in entries if entry.is_dir())
        if not names:
            raise ValueError(f"{self.folder} has no scenarios: it should hold one folder per scenario.")
        if not any((self.folder / name / f"scenario_{name}.parquet").is_file() for name in names[:_LOOKED_AT]):
            raise ValueError(
                f"{self.folder} holds folders, but {names[0]} has no scenario_{names[0]}.parquet: name the folder of "
                "Argoverse 2's motion forecasting."
            )
        super().__init__(names, window, train=train, on_error=on_error)

    def scene(self, index: int) -> Scene:
        """The whole scenario in the city frame.

        Raises:
            BrokenSample: A file is missing or damaged.
        """
        name = self.names[index]
        folder = self.folder / name
        polylines = (
            read_map(folder / f"log_map_archive_{name}.json")
            if self.window.use_map
            else MapPolylines.from_lists([], [])
        )
        return read_scenario(folder / f"scenario_{name}.parquet", polylines)


def read_scenario(path: Path, polylines: MapPolylines) -> Scene:
    """A scenario's tracks, by column.

    Args:
        path: ``scenario_<id>.parquet``.
        polylines: Its map.

    Raises:
        BrokenSample: The file is missing, damaged, or not a scenario.
    """
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.read_table(path, columns=list(_COLUMNS), use_threads=False)
        columns = {name: table[name].to_numpy() for name in _COLUMNS}
    except (OSError, pyarrow.ArrowException, KeyError) as error:
        reason = "it is missing" if not path.exists() else str(error).splitlines()[0].removesuffix(".")
        raise BrokenSample(f"{path} cannot be read as a scenario ({reason}).") from error
    if not len(table):
        raise BrokenSample(f"{path} has no states.")
    try:
        step = columns["timestep"].astype(np.int64)
        names = ("position_x", "position_y", "heading")
        states = np.stack([columns[name].astype(np.float64) for name in names], axis=-1)
    except (ValueError, TypeError) as error:  # what the parquet file calls text, or leaves out
        raise BrokenSample(f"{path} cannot be read as a scenario ({error}).") from error
    ids, rows = np.unique(columns["track_id"].astype(str), return_inverse=True)
    if step.min() < 0 or step.max() >= _STEPS:
        wrong = step.min() if step.min() < 0 else step.max()
        raise BrokenSample(f"{path} has a state at step {wrong}, but scenarios have the steps 0 to {_STEPS - 1}.")
    focal = np.flatnonzero(ids == str(columns["focal_track_id"][0]))
    if not len(focal):
        raise BrokenSample(f"{path} has no states of its focal track {columns['focal_track_id'][0]}.")
    positions = np.zeros((len(ids), _STEPS, 2))
    headings, valid = np.full((len(ids), _STEPS), np.nan), np.zeros((len(ids), _STEPS), dtype=bool)
    positions[rows, step] = states[:, :2]
    headings[rows, step] = states[:, 2]
    valid[rows, step] = True
    kinds = np.zeros(len(ids), dtype=np.int64)
    kinds[rows] = [_TYPES.get(kind, _TYPES["unknown"]) for kind in columns["object_type"].tolist()]
    return Scene(
        str(columns["scenario_id"][0]),
        str(columns["city"][0]),
        tuple(ids.tolist()),
        kinds,
        positions,
        headings,
        valid,
        int(focal[0]),
        HISTORY,
        polylines,
    )


_TYPES = {name: index for index, name in enumerate(AGENT_TYPES)}


def read_map(path: Path) -> MapPolylines:
    """Centrelines of all lanes (10 points each, as av2 makes them) and outlines of pedestrian crossings.

    Lanes that a lane names as successors need not be in the file, and are not looked for.

    Args:
        path: ``log_map_archive_<id>.json``.

    Raises:
        BrokenSample: The file is missing or damaged.
    """
    from av2.map.map_api import ArgoverseStaticMap

    if not path.exists():
        raise BrokenSample(f"{path} is missing: every scenario needs its map, unless use_map is false.")
    try:
        static = ArgoverseStaticMap.from_json(path)
        lines, attributes = [], []
        for lane in static.get_scenario_lane_segments():
            lines.append(static.get_lane_segment_centerline(lane.id)[:, :2])
            kind = _LANE_TYPES.get(str(lane.lane_type.value), "vehicle")
            attributes.append(_attributes(kind, *(("is_intersection",) if lane.is_intersection else ())))
        for crossing in static.get_scenario_ped_crossings():
            lines.append(_outline(crossing.edge1.xyz[:, :2], crossing.edge2.xyz[:, :2]))
            attributes.append(_attributes("crossing"))
        polylines = MapPolylines.from_lists(lines, attributes)
    except (OSError, KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        raise BrokenSample(f"{path} cannot be read as a map ({type(error).__name__}: {error}).") from error
    if not on_earth(polylines.points).all():
        raise BrokenSample(f"{path} has points that are not numbers, or not on this planet.")
    return polylines


def _outline(edge1: np.ndarray, edge2: np.ndarray) -> np.ndarray:
    """The closed outline of a crossing, whichever way its edges run."""
    if np.linalg.norm(edge1[-1] - edge2[-1]) < np.linalg.norm(edge1[-1] - edge2[0]):
        edge2 = edge2[::-1]
    return np.concatenate([edge1, edge2, edge1[:1]])


def _attributes(*names: str) -> np.ndarray:
    return np.isin(LANE_ATTRIBUTES, names).astype(np.float32)
