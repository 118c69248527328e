"""Argoverse 2's files, read by column, against av2's own readers."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from av2.datasets.motion_forecasting import scenario_serialization
from av2.datasets.motion_forecasting.data_schema import (
    ArgoverseScenario,
    ObjectState,
    ObjectType,
    Track,
    TrackCategory,
)
from av2.map.map_api import ArgoverseStaticMap

from frozenllm.motion.data import argoverse2
from frozenllm.motion.data.argoverse2 import Argoverse2, Window, read_map, read_scenario
from frozenllm.motion.scene import AGENT_TYPES, LANE_ATTRIBUTES, MapPolylines, rotation

NO_MAP = MapPolylines.from_lists([], [])


def compare(path: Path) -> None:
    """Every state of a scenario, as av2 and as we read it."""
    theirs, ours = scenario_serialization.load_argoverse_scenario_parquet(path), read_scenario(path, NO_MAP)
    assert (ours.scenario, ours.city, ours.present) == (theirs.scenario_id, theirs.city_name, 50)
    assert ours.tracks[ours.target] == theirs.focal_track_id
    assert sorted(ours.tracks) == sorted(track.track_id for track in theirs.tracks)
    states = 0
    for track in theirs.tracks:
        row = ours.tracks.index(track.track_id)
        assert AGENT_TYPES[ours.types[row]] == track.object_type.value
        for state in track.object_states:
            assert ours.valid[row, state.timestep]
            assert tuple(ours.positions[row, state.timestep]) == state.position
            assert ours.headings[row, state.timestep] == state.heading
            states += 1
    assert ours.valid.sum() == states


def test_scenarios_are_those_that_av2_reads(toy2: Path) -> None:
    for split in ("train", "test"):
        for folder in sorted((toy2 / split).iterdir())[:4]:
            compare(folder / f"scenario_{folder.name}.parquet")


def test_scenarios_that_av2_writes_with_every_type(tmp_path: Path) -> None:
    def state(i: int, step: int) -> ObjectState:
        return ObjectState(step < 50, step, (8.0 * step + i, 0.5 * i), 0.01 * step, (8.0, 0.0))

    tracks = [
        Track(
            str(900 + i),
            [state(i, step) for step in range(i, 110 - i, 1 + i % 3)],
            kind,
            TrackCategory.FOCAL_TRACK if i == 3 else TrackCategory.TRACK_FRAGMENT,
        )
        for i, kind in enumerate(ObjectType)
    ]
    stamps = np.arange(110) * 100_000_000 + 315_970_000_000_000_000
    scenario = ArgoverseScenario("abc", stamps, tracks, "903", "miami", None, None)
    scenario_serialization.serialize_argoverse_scenario_parquet(tmp_path / "scenario_abc.parquet", scenario)
    compare(tmp_path / "scenario_abc.parquet")
    assert {AGENT_TYPES[i] for i in read_scenario(tmp_path / "scenario_abc.parquet", NO_MAP).types} == set(AGENT_TYPES)


def test_maps_are_those_that_av2_reads(toy2: Path) -> None:
    folder = next((toy2 / "val").iterdir())
    path = folder / f"log_map_archive_{folder.name}.json"
    ours, static = read_map(path), ArgoverseStaticMap.from_json(path)
    lanes, crossings = static.get_scenario_lane_segments(), static.get_scenario_ped_crossings()
    assert crossings
    assert len(ours) == len(lanes) + len(crossings)
    names = [{n for n, on in zip(LANE_ATTRIBUTES, row, strict=True) if on} for row in ours.attributes]
    for row, lane in enumerate(lanes):
        assert np.array_equal(ours.points[row, :10], static.get_lane_segment_centerline(lane.id)[:, :2])
        assert ours.counts[row] == 10
        assert names[row] == {"vehicle", *(["is_intersection"] if lane.is_intersection else [])}
    for row, crossing in enumerate(crossings, start=len(lanes)):
        assert names[row] == {"crossing"}
        assert ours.counts[row] == 5
        outline = ours.points[row, :5]
        assert np.array_equal(outline[0], outline[4])
        corners = np.concatenate([crossing.edge1.xyz, crossing.edge2.xyz])[:, :2]
        assert {tuple(p) for p in outline} == {tuple(p) for p in corners}
        sides = np.linalg.norm(np.diff(outline, axis=0), axis=1)  # it does not cross itself
        assert sides[0] == pytest.approx(sides[2], rel=0.2)
        assert sides.sum() < 2 * (sides[0] + min(sides[1], sides[3])) + 1


def test_turning_and_shifting_the_files_changes_nothing(toy2: Path, tmp_path: Path) -> None:
    folder = sorted((toy2 / "val").iterdir())[0]
    moved = tmp_path / "val" / folder.name
    moved.mkdir(parents=True)
    turn, shift = rotation(2.4), np.array([-731.0, 88.5])
    table = pd.read_parquet(folder / f"scenario_{folder.name}.parquet")
    table[["position_x", "position_y"]] = table[["position_x", "position_y"]].to_numpy() @ turn.T + shift
    table[["velocity_x", "velocity_y"]] = table[["velocity_x", "velocity_y"]].to_numpy() @ turn.T
    table["heading"] += 2.4
    table.to_parquet(moved / f"scenario_{folder.name}.parquet")

    def move(node: object) -> object:
        if isinstance(node, list):
            return [move(entry) for entry in node]
        if isinstance(node, dict) and "x" in node:
            x, y = turn @ [node["x"], node["y"]] + shift
            return {"x": x, "y": y, "z": node["z"]}
        return {key: move(value) for key, value in node.items()} if isinstance(node, dict) else node

    archive = json.loads((folder / f"log_map_archive_{folder.name}.json").read_text())
    (moved / f"log_map_archive_{folder.name}.json").write_text(json.dumps(move(archive)))
    a, b = argoverse2(toy2, "val", radius=50.0)[0], argoverse2(tmp_path, "val", radius=50.0)[0]
    assert not np.allclose(a["origin"], b["origin"])
    for part in ("inputs", "targets"):
        for key, value in a[part].items():
            # What float32 and the interpolation of centrelines leave.
            assert torch.allclose(value.double(), b[part][key].double(), atol=1e-4), key


def test_test_sets_have_no_future_and_all_scenarios(toy2: Path) -> None:
    data = argoverse2(toy2, "test")
    assert len(data) == 3
    for sample in data:
        assert not sample["targets"]["valid"].any()
        assert not sample["targets"]["future"].any()
        assert sample["inputs"]["agents_valid"][0].any()
    names = [sample["scenario"] for sample in argoverse2(toy2, "val")]
    assert names == sorted(folder.name for folder in (toy2 / "val").iterdir())
    assert isinstance(argoverse2(toy2, "val"), Argoverse2)
    assert Window(50, 60, 100.0).settings()["radius"] == 100.0
