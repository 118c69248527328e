"""Toy scenarios in Argoverse 2's motion forecasting layout: parquet tracks and json maps."""

from __future__ import annotations

import json
import os
import uuid
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from frozenllm.core.toy_folder import write_once
from frozenllm.motion.toy.city import LANE_WIDTH, City, Lane, make_city, offset
from frozenllm.motion.toy.recording import Recording, record

HISTORY, HORIZON = 50, 60
CITIES = {"austin": (1510.0, 830.0), "pittsburgh": (-640.0, 2470.0)}
"""The toy cities, and where their middle is in metres; two of the names that Argoverse 2 knows."""

_FRAGMENT, _UNSCORED, _SCORED, _FOCAL = range(4)  # av2's TrackCategory
_HEIGHT = 12.5  # metres above sea level, everywhere
_REACH = 70.0  # metres around the target's last observed position for which a scenario has a map


def write_toy_argoverse2(
    root: str | os.PathLike[str] | None = None, *, train: int = 320, val: int = 96, test: int = 16, seed: int = 0
) -> Path:
    """Writes ``<root>/{train,val,test}/<id>/{scenario_<id>.parquet,log_map_archive_<id>.json}``, once.

    The folder appears whole or not at all; an existing one with the same settings is left as it is. Scenarios of
    ``test`` end with the history, as the official ones do. About one target in ten has a gap in its history.

    Args:
        root: The folder to write; None for one in the user's cache.
        train: Scenarios in ``train``.
        val: Scenarios in ``val``.
        test: Scenarios in ``test``.
        seed: Chooses cities and traffic.

    Returns:
        The folder.

    Raises:
        ValueError: The folder holds something else.
    """
    counts = {"train": train, "val": val, "test": test}
    manifest = {"data": "toy Argoverse 2", "format": 1, **counts, "seed": seed}

    def write(folder: Path) -> None:
        cities = {name: make_city(1000 * seed + i, centre) for i, (name, centre) in enumerate(CITIES.items())}
        for part, (split, count) in enumerate(counts.items()):
            (folder / split).mkdir()
            for index in range(count):
                rng = np.random.default_rng([seed, part, index])
                name = list(cities)[int(rng.integers(len(cities)))]
                _write_scenario(folder / split, cities[name], name, rng, with_future=split != "test")

    return write_once(root, "argoverse2", manifest, write)


def _write_scenario(folder: Path, city: City, name: str, rng: np.random.Generator, with_future: bool) -> None:
    scenario = str(uuid.UUID(bytes=rng.bytes(16), version=4))
    recording = record(city, rng, HISTORY, HISTORY + HORIZON, noise=0.05)
    where = folder / scenario
    where.mkdir()
    table = _states(recording, _track_ids(rng, recording), HISTORY + HORIZON if with_future else HISTORY)
    start = 315_970_000_000_000_000 + int(rng.integers(10**12)) * 1000
    table["scenario_id"] = scenario
    table["start_timestamp"] = start
    table["end_timestamp"] = start + (HISTORY + HORIZON - 1) * 100_000_000
    table["num_timestamps"] = HISTORY + HORIZON
    table["focal_track_id"] = table["track_id"].iloc[0]
    table["city"] = name
    table.to_parquet(where / f"scenario_{scenario}.parquet")
    archive = _map(city, recording.positions[0, HISTORY - 1])
    (where / f"log_map_archive_{scenario}.json").write_text(json.dumps(archive))


def _states(recording: Recording, ids: list[str], steps: int) -> pd.DataFrame:
    """One row per track and step, in av2's columns and order."""
    rows, at = np.nonzero(recording.valid[:, :steps])
    whole = recording.valid.all(axis=1)
    categories = np.where(whole, _SCORED, _FRAGMENT)
    categories[:2] = _FOCAL, _UNSCORED
    return pd.DataFrame(
        {
            "observed": at < HISTORY,
            "track_id": np.array(ids)[rows],
            "object_type": np.array(recording.kinds)[rows],
            "object_category": categories[rows],
            "timestep": at,
            "position_x": recording.positions[rows, at, 0],
            "position_y": recording.positions[rows, at, 1],
            "heading": recording.headings[rows, at],
            "velocity_x": recording.velocities[rows, at, 0],
            "velocity_y": recording.velocities[rows, at, 1],
        }
    )


def _track_ids(rng: np.random.Generator, recording: Recording) -> list[str]:
    """Numbers as strings; the recording car is ``"AV"``."""
    numbers = rng.choice(np.arange(1000, 200_000), len(recording.kinds), replace=False)
    return ["AV" if row == 1 else str(number) for row, number in enumerate(numbers.tolist())]


def _map(city: City, centre: np.ndarray) -> dict[str, dict[str, Any]]:
    """The vector map around a point, with successors that lie outside it, as the real ones have."""
    lanes = [lane for lane in city.lanes.values() if _near(lane.centerline, centre)]
    return {
        "lane_segments": {str(lane.id): _lane(lane) for lane in lanes},
        "drivable_areas": {
            str(9000 + i): {"id": 9000 + i, "area_boundary": _points(area)}
            for i, area in enumerate(city.areas)
            if _near(area, centre)
        },
        "pedestrian_crossings": {
            str(5000 + i): {"id": 5000 + i, "edge1": _points(edges[0]), "edge2": _points(edges[1])}
            for i, edges in enumerate(city.crossings)
            if _near(edges.reshape(-1, 2), centre)
        },
    }


def _near(line: np.ndarray, centre: np.ndarray) -> bool:
    return bool((np.linalg.norm(line - centre, axis=1) < _REACH).any())


def _points(line: np.ndarray) -> list[dict[str, float]]:
    return [{"x": round(x, 3), "y": round(y, 3), "z": _HEIGHT} for x, y in line.tolist()]


def _lane(lane: Lane) -> dict[str, Any]:
    inside = lane.intersection is not None
    return {
        "id": lane.id,
        "is_intersection": inside,
        "lane_type": "VEHICLE",
        "centerline": _points(lane.centerline),
        "left_lane_boundary": _points(offset(lane.centerline, -LANE_WIDTH / 2)),
        "left_lane_mark_type": "NONE" if inside else "DASHED_WHITE" if lane.left else "DOUBLE_SOLID_YELLOW",
        "right_lane_boundary": _points(offset(lane.centerline, LANE_WIDTH / 2)),
        "right_lane_mark_type": "NONE" if inside else "DASHED_WHITE" if lane.right else "SOLID_WHITE",
        "left_neighbor_id": lane.left,
        "right_neighbor_id": lane.right,
        "predecessors": lane.predecessors,
        "successors": lane.successors,
    }
