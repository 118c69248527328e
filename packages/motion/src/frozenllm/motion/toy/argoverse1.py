"""Toy sequences in Argoverse 1's motion forecasting layout: csv files and the cities' vector maps."""

from __future__ import annotations

import os
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pandas as pd

from frozenllm.core.toy_folder import write_once
from frozenllm.motion.toy.city import City, make_city
from frozenllm.motion.toy.recording import record

HISTORY, HORIZON = 20, 30
CITIES = {"MIA_10316": (2110.0, 1340.0), "PIT_10314": (-180.0, 3620.0)}
"""Names and numbers of Argoverse 1's cities, and where the middle of their toy versions is in metres."""


def write_toy_argoverse1(
    root: str | os.PathLike[str] | None = None, *, train: int = 320, val: int = 96, test: int = 16, seed: int = 0
) -> Path:
    """Writes ``<root>/{train,val,test_obs}/data/<number>.csv`` and ``<root>/map_files/``, once.

    The folder appears whole or not at all; an existing one with the same settings is left as it is. Sequences of
    ``test_obs`` end with the history, as the official ones do.

    Args:
        root: The folder to write; None for one in the user's cache.
        train: Sequences in ``train``.
        val: Sequences in ``val``.
        test: Sequences in ``test_obs``.
        seed: Chooses cities and traffic.

    Returns:
        The folder.

    Raises:
        ValueError: The folder holds something else.
    """
    manifest = {"data": "toy Argoverse 1", "format": 1, "train": train, "val": val, "test": test, "seed": seed}

    def write(folder: Path) -> None:
        cities = {name: make_city(1000 * seed + 7 + i, centre) for i, (name, centre) in enumerate(CITIES.items())}
        (folder / "map_files").mkdir()
        for name, city in cities.items():
            _write_map(folder / "map_files" / f"pruned_argoverse_{name}_vector_map.xml", city)
        number = 0
        for part, (split, count) in enumerate({"train": train, "val": val, "test_obs": test}.items()):
            (folder / split / "data").mkdir(parents=True)
            for index in range(count):
                number += 1
                rng = np.random.default_rng([seed, part, index])
                name = list(cities)[int(rng.integers(len(cities)))]
                steps = HISTORY if split == "test_obs" else HISTORY + HORIZON
                table = _sequence(cities[name], name.partition("_")[0], rng, steps)
                table.to_csv(folder / split / "data" / f"{number}.csv", index=False)

    return write_once(root, "argoverse1", manifest, write)


def _sequence(city: City, name: str, rng: np.random.Generator, steps: int) -> pd.DataFrame:
    recording = record(city, rng, HISTORY, HISTORY + HORIZON, noise=0.05)
    stamps = 315_968_000.0 + rng.integers(10**6) + np.arange(steps) * 0.1 + rng.uniform(-0.004, 0.004, steps)
    numbers = rng.choice(np.arange(1, 100_000), len(recording.kinds), replace=False)
    rows = []
    for step in range(steps):
        for row in rng.permutation(len(recording.kinds)).tolist():
            if recording.valid[row, step]:
                track = f"00000000-0000-0000-0000-{numbers[row]:012d}"
                kind = "AGENT" if row == 0 else "AV" if row == 1 else "OTHERS"
                rows.append((stamps[step], track, kind, *recording.positions[row, step].tolist(), name))
    return pd.DataFrame(rows, columns=["TIMESTAMP", "TRACK_ID", "OBJECT_TYPE", "X", "Y", "CITY_NAME"])


def _write_map(path: Path, city: City) -> None:
    root = ElementTree.Element("ArgoverseVectorMap")
    ways, number = [], 0
    for lane in city.lanes.values():
        way = ElementTree.Element("way", lane_id=str(lane.id))
        inside = lane.intersection is not None
        tags = [
            ("has_traffic_control", str(lane.controlled)),
            ("turn_direction", lane.turn),
            ("is_intersection", str(inside)),
            ("l_neighbor_id", str(lane.left)),
            ("r_neighbor_id", str(lane.right)),
        ]
        tags += [("predecessor", str(i)) for i in lane.predecessors] + [("successor", str(i)) for i in lane.successors]
        for key, value in tags:
            ElementTree.SubElement(way, "tag", k=key, v=value)
        for x, y in lane.centerline.tolist():
            ElementTree.SubElement(root, "node", id=str(number), x=f"{x:.4f}", y=f"{y:.4f}", height="3.2")
            ElementTree.SubElement(way, "nd", ref=str(number))
            number += 1
        ways.append(way)
    root.extend(ways)
    ElementTree.indent(root)
    ElementTree.ElementTree(root).write(path, encoding="utf-8", xml_declaration=True)
