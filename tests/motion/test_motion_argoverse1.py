"""Argoverse 1's csv and xml files, against a reader that knows nothing but their description."""

from __future__ import annotations

import csv
import math
from pathlib import Path
from xml.dom import minidom

import numpy as np
import pytest

from frozenllm.motion.data import argoverse1
from frozenllm.motion.data.argoverse1 import LEAST_MOVE, find_maps, headings_of, read_sequence, read_vector_map
from frozenllm.motion.scene import AGENT_TYPES, LANE_ATTRIBUTES

MAP = """<?xml version="1.0"?>
<AnyRoot>
  <node id="7" x="10.5" y="-2.25" height="1.0" />
  <node id="9" x="12.5" y="-2.0" />
  <node id="8" x="14.0" y="-1.0" height="1.1" />
  <way lane_id="42">
    <tag k="has_traffic_control" v="True" />
    <tag k="turn_direction" v="LEFT" />
    <tag k="is_intersection" v="True" />
    <tag k="l_neighbor_id" v="None" />
    <tag k="r_neighbor_id" v="43" />
    <nd ref="9" /><nd ref="7" /><nd ref="8" />
    <tag k="predecessor" v="1" />
    <tag k="successor" v="999999" />
    <tag k="successor" v="43" />
  </way>
  <way lane_id="43">
    <tag k="has_traffic_control" v="False" />
    <tag k="turn_direction" v="RIGHT" />
    <tag k="is_intersection" v="False" />
    <tag k="l_neighbor_id" v="42" />
    <tag k="r_neighbor_id" v="None" />
    <nd ref="7" /><nd ref="8" />
  </way>
</AnyRoot>
"""


def test_sequences_are_read_state_by_state(toy1: Path) -> None:
    for split in ("train", "test_obs"):
        for path in sorted((toy1 / split / "data").iterdir())[:4]:
            scene = read_sequence(path)
            with open(path, newline="") as file:
                rows = list(csv.DictReader(file))
            frames = sorted({float(row["TIMESTAMP"]) for row in rows})
            assert scene.valid.shape == (len({row["TRACK_ID"] for row in rows}), len(frames))
            assert scene.valid.sum() == len(rows)
            for row in rows:
                track, step = scene.tracks.index(row["TRACK_ID"]), frames.index(float(row["TIMESTAMP"]))
                assert scene.valid[track, step]
                place = float(row["X"]), float(row["Y"])
                assert np.allclose(scene.positions[track, step], place, rtol=0, atol=1e-9)
                kind = {"AGENT": "vehicle", "AV": "vehicle", "OTHERS": "unknown"}[row["OBJECT_TYPE"]]
                assert AGENT_TYPES[scene.types[track]] == kind
                assert (row["OBJECT_TYPE"] == "AGENT") == (track == scene.target)
            assert (scene.scenario, scene.city, scene.present) == (path.stem, rows[0]["CITY_NAME"], 20)


def test_vector_maps_of_any_root_with_unequal_lanes(tmp_path: Path) -> None:
    (tmp_path / "map.xml").write_text(MAP)
    lanes = read_vector_map(tmp_path / "map.xml")
    assert lanes.counts.tolist() == [3, 2]
    assert lanes.points[0].tolist() == [[12.5, -2.0], [10.5, -2.25], [14.0, -1.0]]
    assert lanes.points[1].tolist() == [[10.5, -2.25], [14.0, -1.0], [14.0, -1.0]]
    names = [{n for n, on in zip(LANE_ATTRIBUTES, row, strict=True) if on} for row in lanes.attributes]
    assert names == [{"vehicle", "is_intersection", "turn_left", "traffic_control"}, {"vehicle", "turn_right"}]


def test_vector_maps_of_the_toy_cities(toy1: Path) -> None:
    found = find_maps(toy1 / "map_files")
    assert sorted(found) == ["MIA", "PIT"]
    lanes, document = read_vector_map(found["PIT"]), minidom.parse(str(found["PIT"]))
    nodes = {n.getAttribute("id"): n for n in document.getElementsByTagName("node")}
    ways = document.getElementsByTagName("way")
    assert len(lanes) == len(ways) > 100
    for row, way in enumerate(ways):
        points = [nodes[n.getAttribute("ref")] for n in way.getElementsByTagName("nd")]
        assert lanes.points[row].tolist() == [[float(p.getAttribute("x")), float(p.getAttribute("y"))] for p in points]
    assert read_vector_map(found["PIT"]) is lanes  # read once


def test_headings_come_from_moves_and_not_from_the_future() -> None:
    line = np.array([[0, 0], [0.1, 0], [0.6, 0], [0.7, 0.0], [0.7, 0.7], [0.7, 1.4]])[None]
    found = headings_of(line, np.ones((1, 6), dtype=bool))
    expected = [math.nan, math.nan, 0.0, 0.0, math.pi / 2, math.pi / 2]
    # From (0.7, 0) at least half a metre back lies (0.1, 0); from (0.7, 0.7) it is (0.7, 0).
    assert np.allclose(found[0], expected, equal_nan=True)
    gaps = np.array([[True, False, True, False, True, True]])
    again = headings_of(line, gaps)[0]
    assert np.isnan(again[[1, 3]]).all()
    assert again[4] == pytest.approx(math.atan2(0.7, 0.1))
    shaking = np.random.default_rng(0).normal(0, 0.05, (1, 20, 2))
    assert np.isnan(headings_of(shaking, np.ones((1, 20), dtype=bool))).all()
    for cut in range(2, 6):
        assert np.array_equal(headings_of(line[:, :cut], np.ones((1, cut), bool))[0], found[0, :cut], equal_nan=True)
    assert LEAST_MOVE == 0.5


def test_samples_of_all_splits(toy1: Path, tmp_path: Path) -> None:
    for split, count, known in (("train", 12, 30), ("val", 6, 30), ("test_obs", 3, 0)):
        data = argoverse1(toy1, split)
        assert len(data) == count
        for sample in data:
            assert sample["targets"]["valid"].sum() == known
            assert sample["inputs"]["lanes"].shape[0] > 5
            assert sample["inputs"]["agents"].shape[1:] == (20, 7)
    numbers = [int(sample["scenario"]) for sample in argoverse1(toy1, "train")]
    assert numbers == sorted(numbers)  # by number, not by letter
    (tmp_path / "elsewhere").mkdir()
    for path in (toy1 / "map_files").iterdir():
        (tmp_path / "elsewhere" / path.name).symlink_to(path)
    (tmp_path / "val").symlink_to(toy1 / "val")
    moved = argoverse1(tmp_path, "val", maps=tmp_path / "elsewhere")[0]
    assert np.array_equal(moved["inputs"]["lanes"], argoverse1(toy1, "val")[0]["inputs"]["lanes"])
