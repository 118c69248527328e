"""Argoverse 1 motion forecasting: csv sequences and the cities' vector maps, which no library on the registry reads."""

from __future__ import annotations

import os
import re
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pandas as pd

from frozenllm.core.training import BrokenSample
from frozenllm.motion.data.centring import Window
from frozenllm.motion.data.dataset import Scenes
from frozenllm.motion.scene import AGENT_TYPES, LANE_ATTRIBUTES, MapPolylines, Scene, on_earth

HISTORY, HORIZON = 20, 30
"""Steps of the benchmark: 2 s are observed, 3 s are predicted."""

SPLITS = ("train", "val", "test_obs")

LEAST_MOVE = 0.5
"""Metres that a track must have moved for its direction to be taken from its positions. Argoverse 1 has no headings,
and the shaking of a standing vehicle has none."""

_COLUMNS = ("TIMESTAMP", "TRACK_ID", "OBJECT_TYPE", "X", "Y", "CITY_NAME")
_MAP_FILE = re.compile(r"pruned_argoverse_([A-Z]+)_\d+_vector_map\.xml")
_VEHICLE, _UNKNOWN = AGENT_TYPES.index("vehicle"), AGENT_TYPES.index("unknown")


class Argoverse1(Scenes):
    """Sequences ``<root>/<split>/data/<number>.csv`` and the maps of their cities.

    Args:
        root: The folder.
        split: One of `SPLITS`; ``test_obs`` has no future.
        window: What a sample holds.
        maps: Folder of the vector maps; None for ``<root>/map_files``.
        train: See `frozenllm.core.training.TolerantDataset`.
        on_error: See there.

    Raises:
        ValueError: A folder is missing or empty, or the split is unknown.
    """

    def __init__(
        self,
        root: str | os.PathLike[str] | None,
        split: str,
        window: Window,
        *,
        maps: str | os.PathLike[str] | None = None,
        train: bool = False,
        on_error: str = "raise",
    ) -> None:
        if split not in SPLITS:
            raise ValueError(f"Argoverse 1 has the splits {', '.join(SPLITS)}, not {split!r}.")
        window.check("Argoverse 1", HISTORY, HORIZON)
        if root is None:
            raise ValueError(
                "Argoverse 1 needs its folder: data.root=/path/to/argoverse1 with train, val, test_obs and map_files "
                "in it."
            )
        self.split = split
        self.folder = Path(root) / split / "data"
        if not self.folder.is_dir():
            raise ValueError(f"{self.folder} is missing: name the folder that holds Argoverse 1's {split}.")
        with os.scandir(self.folder) as entries:
            numbers = sorted(int(entry.name[:-4]) for entry in entries if re.fullmatch(r"\d+\.csv", entry.name))
        if not numbers:
            raise ValueError(f"{self.folder} has no sequences: it should hold <number>.csv files.")
        self.maps = find_maps(Path(maps) if maps is not None else Path(root) / "map_files") if window.use_map else {}
        super().__init__([str(number) for number in numbers], window, train=train, on_error=on_error)

    def scene(self, index: int) -> Scene:
        """The whole sequence in the city frame; the polylines are those near the target.

        Raises:
            BrokenSample: The file is damaged, or its city has no map.
        """
        path = self.folder / f"{self.names[index]}.csv"
        scene = read_sequence(path)
        frames, expected = scene.valid.shape[1], HISTORY + (0 if self.split == "test_obs" else HORIZON)
        if frames < expected:
            raise BrokenSample(f"{path} has {frames} of {expected} frames.")
        if not self.window.use_map:
            return scene
        if scene.city not in self.maps:
            raise BrokenSample(f"{path} lies in the city {scene.city}, but there are maps of {', '.join(self.maps)}.")
        return replace(scene, polylines=read_vector_map(self.maps[scene.city]))


def find_maps(folder: Path) -> dict[str, Path]:
    """The vector maps in a folder, by city.

    Raises:
        ValueError: The folder is missing or has none.
    """
    found = {}
    for path in sorted(folder.glob("*.xml")) if folder.is_dir() else ():
        if match := _MAP_FILE.fullmatch(path.name):
            found[match[1]] = path
    if not found:
        raise ValueError(
            f"{folder} has no vector maps (pruned_argoverse_MIA_10316_vector_map.xml, ...): unpack Argoverse 1's "
            "hd_maps.tar.gz there, name another folder in data.maps, or set use_map to false."
        )
    return found


def read_sequence(path: Path) -> Scene:
    """A sequence's tracks; without a map.

    A step is the rank of its time among the file's. A track's heading at a step points from the latest position at
    least `LEAST_MOVE` metres away to the present one, and is unknown where there is none.

    Args:
        path: ``<number>.csv``.

    Raises:
        BrokenSample: The file is missing, damaged, or not a sequence.
    """
    try:
        table = pd.read_csv(path, dtype={"TRACK_ID": str, "OBJECT_TYPE": str, "CITY_NAME": str}, usecols=list(_COLUMNS))
        stamps, places = table["TIMESTAMP"].to_numpy(np.float64), table[["X", "Y"]].to_numpy(np.float64)
        ids, rows = np.unique(table["TRACK_ID"].to_numpy().astype(str), return_inverse=True)
        labels = table["OBJECT_TYPE"].to_numpy().astype(str)
        if table["TRACK_ID"].isna().any() or table["CITY_NAME"].isna().any():
            raise ValueError("a state has no track or no city")
    except (OSError, ValueError, TypeError) as error:  # pandas' parser errors are ValueErrors
        reason = str(error).splitlines()[0].removesuffix(".")
        raise BrokenSample(f"{path} cannot be read as a sequence ({reason}).") from error
    if not len(table) or not np.isfinite(stamps).all():
        raise BrokenSample(f"{path} has no states, or times that are not numbers.")
    agent = np.unique(rows[labels == "AGENT"])
    if len(agent) != 1:
        raise BrokenSample(f"{path} has {len(agent)} tracks called AGENT, but one is to be predicted.")
    times, step = np.unique(stamps, return_inverse=True)
    positions, valid = np.zeros((len(ids), len(times), 2)), np.zeros((len(ids), len(times)), dtype=bool)
    positions[rows, step] = places
    valid[rows, step] = True
    kinds = np.full(len(ids), _UNKNOWN, dtype=np.int64)
    kinds[rows[np.isin(labels, ("AGENT", "AV"))]] = _VEHICLE
    return Scene(
        path.stem,
        str(table["CITY_NAME"].iloc[0]),
        tuple(ids.tolist()),
        kinds,
        positions,
        headings_of(positions, valid),
        valid,
        int(agent[0]),
        HISTORY,
        MapPolylines.from_lists([], []),
    )


def headings_of(positions: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """Directions from positions; a step's direction does not depend on later steps.

    Args:
        positions: (A, T, 2) metres.
        valid: (A, T) bool.

    Returns:
        (A, T) radians; NaN where the track has not yet moved by `LEAST_MOVE`, or has no state.
    """
    headings = np.full(valid.shape, np.nan)
    for row in range(len(valid)):
        steps = np.flatnonzero(valid[row])
        track = positions[row, steps]
        difference = track[:, None] - track[None]  # from the second axis to the first
        far = np.tril(np.linalg.norm(difference, axis=-1) >= LEAST_MOVE)
        latest = len(steps) - 1 - far[:, ::-1].argmax(axis=1)
        moved = difference[np.arange(len(steps)), latest]
        angle = np.arctan2(moved[:, 1], moved[:, 0])
        headings[row, steps] = np.where(far.any(axis=1), angle, np.nan)
    return headings


@lru_cache(maxsize=8)
def read_vector_map(path: Path) -> MapPolylines:
    """Centrelines of a city's lanes; kept in memory, as many sequences lie in one city.

    Args:
        path: ``pruned_argoverse_<city>_<number>_vector_map.xml``.

    Raises:
        ValueError: The file is damaged; it serves all sequences of its city, so none is skipped for it.
    """
    try:
        nodes: dict[str, tuple[float, float]] = {}
        lines, attributes = [], []
        for element in ElementTree.parse(path).getroot():
            if element.tag == "node":
                nodes[element.attrib["id"]] = (float(element.attrib["x"]), float(element.attrib["y"]))
            elif element.tag == "way":
                tags = {tag.attrib["k"]: tag.attrib["v"] for tag in element.iter("tag")}
                lines.append(np.array([nodes[node.attrib["ref"]] for node in element.iter("nd")]))
                attributes.append(_attributes(tags))
        if min(map(len, lines), default=0) < 2:
            raise ValueError("a lane has fewer than two points" if lines else "it has no lanes")
        if not all(on_earth(line).all() for line in lines):
            raise ValueError("a lane has a point that is not a number, or not on this planet")
    except (OSError, ElementTree.ParseError, LookupError, ValueError) as error:
        raise ValueError(f"{path} cannot be read as a vector map ({error}): unpack it again.") from error
    return MapPolylines.from_lists(lines, attributes)


def _attributes(tags: dict[str, str]) -> np.ndarray:
    names = {
        "vehicle": True,
        "is_intersection": tags["is_intersection"] == "True",
        "traffic_control": tags["has_traffic_control"] == "True",
        "turn_left": tags["turn_direction"] == "LEFT",
        "turn_right": tags["turn_direction"] == "RIGHT",
    }
    return np.array([names.get(name, False) for name in LANE_ATTRIBUTES], dtype=np.float32)
