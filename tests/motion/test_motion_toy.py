"""Toy traffic is read and drawn by av2, looks like the real files, and its map tells more than constant velocity."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from xml.etree import ElementTree

import cv2
import numpy as np
import pandas as pd
import pytest
from av2.datasets.motion_forecasting import scenario_serialization
from av2.datasets.motion_forecasting.data_schema import TrackCategory
from av2.datasets.motion_forecasting.viz import scenario_visualization
from av2.map.map_api import ArgoverseStaticMap

from frozenllm.motion.constant_velocity import evaluate
from frozenllm.motion.data import toy_argoverse1, toy_argoverse2
from frozenllm.motion.metrics import mode_errors
from frozenllm.motion.toy import write_toy_argoverse1, write_toy_argoverse2
from frozenllm.motion.toy.city import make_city
from frozenllm.motion.toy.recording import record
from frozenllm.motion.toy.traffic import simulate

SMALL = {"train": 2, "val": 1, "test": 1}


def test_av2_reads_the_scenarios(toy2: Path) -> None:
    for split, last in (("train", 110), ("test", 50)):
        for folder in (toy2 / split).iterdir():
            scenario = scenario_serialization.load_argoverse_scenario_parquet(
                folder / f"scenario_{folder.name}.parquet"
            )
            assert scenario.scenario_id == folder.name
            assert len(scenario.timestamps_ns) == 110
            assert np.allclose(np.diff(scenario.timestamps_ns), 1e8)
            focal = next(track for track in scenario.tracks if track.track_id == scenario.focal_track_id)
            assert focal.category == TrackCategory.FOCAL_TRACK
            assert [state.timestep for state in focal.object_states][-1] == last - 1
            assert any(track.track_id == "AV" for track in scenario.tracks)
            for track in scenario.tracks:
                assert all(state.observed == (state.timestep < 50) for state in track.object_states)
                moving = [state for state in track.object_states if np.hypot(*state.velocity) > 3]
                for state in moving:  # heading and velocity agree
                    way = np.arctan2(state.velocity[1], state.velocity[0]) - state.heading
                    assert abs(np.angle(np.exp(1j * way))) < 0.4


def test_av2_reads_the_maps_with_successors_outside(toy2: Path) -> None:
    outside = 0
    for folder in sorted((toy2 / "train").iterdir())[:2]:
        static = ArgoverseStaticMap.from_json(folder / f"log_map_archive_{folder.name}.json")
        lanes = static.vector_lane_segments
        assert len(lanes) > 20
        assert static.vector_drivable_areas
        written = json.loads((folder / f"log_map_archive_{folder.name}.json").read_text())["lane_segments"]
        lines = {lane: static.get_lane_segment_centerline(lane) for lane in lanes}
        for lane in lanes.values():
            centre = np.array([[p["x"], p["y"]] for p in written[str(lane.id)]["centerline"]])
            assert np.abs(lines[lane.id][:, :2] - centre).max() < 0.5
            for successor in lane.successors:
                if successor in lanes:
                    assert np.linalg.norm(lines[successor][0] - lines[lane.id][-1]) < 0.5
                else:
                    outside += 1
    assert outside


def test_av2_draws_a_scenario(toy2: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Every 27th of its 110 pictures; the drawing is all av2's.
    monkeypatch.setattr(scenario_visualization, "range", lambda n: range(0, n, 27 if n == 110 else 1), raising=False)
    folder = next((toy2 / "val").iterdir())
    scenario = scenario_serialization.load_argoverse_scenario_parquet(folder / f"scenario_{folder.name}.parquet")
    static = ArgoverseStaticMap.from_json(folder / f"log_map_archive_{folder.name}.json")
    scenario_visualization.visualize_scenario(scenario, static, tmp_path / "drawn.mp4")
    film = cv2.VideoCapture(str(tmp_path / "drawn.mp4"))
    frames = []
    while (read := film.read())[0]:
        frames.append(read[1])
    assert len(frames) == 5
    assert all(frame.std() > 10 for frame in frames)
    assert (frames[0] != frames[-1]).mean() > 0.01


def test_argoverse1_files_have_the_official_columns(toy1: Path) -> None:
    for split, frames in (("train", 50), ("val", 50), ("test_obs", 20)):
        for path in (toy1 / split / "data").iterdir():
            table = pd.read_csv(path)
            assert list(table) == ["TIMESTAMP", "TRACK_ID", "OBJECT_TYPE", "X", "Y", "CITY_NAME"]
            assert table.TIMESTAMP.nunique() == frames
            assert set(table.CITY_NAME) <= {"MIA", "PIT"}
            kinds = table.groupby("TRACK_ID").OBJECT_TYPE.unique().map(tuple)
            assert sorted(kinds)[:2] == [("AGENT",), ("AV",)]
            assert set(kinds[2:]) <= {("AGENT",), ("AV",), ("OTHERS",)}
            agent = table[table.OBJECT_TYPE == "AGENT"]
            assert np.linalg.norm(np.diff(agent[["X", "Y"]].to_numpy()[-5:], axis=0), axis=1).max() < 3
    for city in ("MIA_10316", "PIT_10314"):
        root = ElementTree.parse(toy1 / "map_files" / f"pruned_argoverse_{city}_vector_map.xml").getroot()
        ids = {way.attrib["lane_id"] for way in root.iter("way")}
        for way in root.iter("way"):
            keys = [tag.attrib["k"] for tag in way.iter("tag")]
            assert {"has_traffic_control", "turn_direction", "is_intersection", "l_neighbor_id"} < set(keys)
            assert "successor" in keys
            assert {tag.attrib["v"] for tag in way.iter("tag") if tag.attrib["k"] == "successor"} <= ids


def test_traffic_shows_every_manoeuvre() -> None:
    city, rng = make_city(0), np.random.default_rng(0)
    motions = [m for node in range(16) for _ in range(3) for m in simulate(city, rng, node, 110)]
    cars = [m for m in motions if m.kind == "vehicle"]
    turned = np.array([m.headings[-1] - m.headings[0] for m in cars])
    assert (turned > 1).any()
    assert (turned < -1).any()
    assert (np.abs(turned) < 0.2).any()
    assert any(m.changes_lane for m in cars)
    assert any(m.speeds[0] > 4 and m.speeds.min() < 0.3 for m in cars)  # stops
    assert any(m.speeds.max() == 0 for m in cars)  # parked
    assert any(m.kind == "pedestrian" and m.speeds.max() > 1 for m in motions)
    for m in cars:  # nobody jumps
        step = np.linalg.norm(np.diff(m.positions, axis=0), axis=1)
        assert step.max() < 1.5
        assert np.abs(np.diff(m.speeds)).max() < 0.9
    gaps = [record(city, rng, 50, 110, 0.05).valid for _ in range(30)]
    assert any(not valid[0, :50].all() for valid in gaps)
    assert all(valid[0].any() and valid[0, 50:].all() and valid[1].all() for valid in gaps)
    assert sum((~valid[2:]).any() for valid in gaps) > 10


def _follow_lane(sample: dict) -> np.ndarray:
    """Not a model: on along the lane that the target is on, at its speed, every way an intersection offers."""
    inputs = {key: value.double().numpy() for key, value in sample["inputs"].items()}
    valid, horizon = inputs["lanes_valid"] > 0, len(sample["targets"]["future"])
    starts, steps = inputs["lanes"][..., :2], inputs["lanes"][..., 2:]
    lanes = [
        np.concatenate([start[mask], (start[mask] + step[mask])[-1:]])
        for start, step, mask, kind in zip(starts, steps, valid, inputs["lane_attributes"], strict=True)
        if not kind[-1]
    ]
    history = inputs["agents"][0][inputs["agents_valid"][0] > 0]
    speed = np.linalg.norm(history[-1, :2] - history[-4, :2]) / (history[-1, 6] - history[-4, 6])

    def distance(lane: np.ndarray) -> float:
        away = np.linalg.norm(lane, axis=1)
        ahead = np.diff(lane, axis=0)[min(away.argmin(), len(lane) - 2)]
        return away.min() + 5 * (1 - ahead[0] / np.linalg.norm(ahead))

    ways, paths = [min(lanes, key=distance)], []
    ways[0] = ways[0][np.linalg.norm(ways[0], axis=1).argmin() :]
    while ways:
        way = ways.pop()
        length = np.linalg.norm(np.diff(way, axis=0), axis=1).sum()
        following = [lane for lane in lanes if np.linalg.norm(lane[0] - way[-1]) < 0.3]
        if length > speed * horizon * 0.1 + 5 or not following or len(way) > 200:
            paths.append(way)
        else:
            ways += [np.concatenate([way, lane[1:]]) for lane in following]
    predicted = []
    for path in paths:
        along = np.concatenate([[0], np.cumsum(np.linalg.norm(np.diff(path, axis=0), axis=1))])
        at = speed * 0.1 * np.arange(1, horizon + 1)
        predicted.append(np.stack([np.interp(at, along, path[:, axis]) for axis in (0, 1)], axis=1))
    return np.stack(predicted)


def test_the_map_tells_what_constant_velocity_does_not(toy2: Path, toy1: Path) -> None:
    for data, root in ((toy_argoverse2, toy2), (toy_argoverse1, toy1)):
        dataset = data(root, "train", toy={"train": 12, "val": 6, "test": 3}, radius=60.0)
        samples = [s for s in (dataset[i] for i in range(len(dataset))) if s["inputs"]["agent_type"][0] == 0]
        errors = []
        for sample in samples:
            paths = _follow_lane(sample)
            chances = np.full(len(paths), 1 / len(paths))
            errors.append(mode_errors(paths, chances, sample["targets"]["future"].numpy(), len(paths))["minFDE"])
        assert np.mean(errors) < 0.75 * evaluate(samples)["minFDE6"]


def test_toy_data_are_written_once_and_the_same_for_a_seed(tmp_path: Path) -> None:
    for write in (write_toy_argoverse2, write_toy_argoverse1):
        place = tmp_path / write.__name__
        root = write(place / "a", **SMALL, seed=3)
        stamp = (root / "toy.json").stat().st_mtime_ns
        assert write(root, **SMALL, seed=3) == root
        assert (root / "toy.json").stat().st_mtime_ns == stamp
        other = write(place / "b", **SMALL, seed=3)
        files = sorted(p.relative_to(root) for p in root.rglob("*") if p.is_file())
        assert files == sorted(p.relative_to(other) for p in other.rglob("*") if p.is_file())
        assert all((root / f).read_bytes() == (other / f).read_bytes() for f in files)
        third = write(place / "c", **SMALL, seed=4)
        assert any((third / f).read_bytes() != (root / f).read_bytes() for f in files if (third / f).exists())
        assert {p.name for p in place.iterdir()} == {"a", "b", "c"}  # no scratch folders are left


def test_toy_data_leave_other_folders_alone_and_survive_a_race(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(ValueError, match=r"mine holds something else than toy data"):
        write_toy_argoverse1(tmp_path / "mine")
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "years of work"
    with ThreadPoolExecutor(3) as pool:
        roots = list(pool.map(lambda _: write_toy_argoverse1(tmp_path / "race", **SMALL), range(3)))
    assert len(set(roots)) == 1
    with pytest.raises(ValueError, match="other settings"):
        write_toy_argoverse1(tmp_path / "race", **SMALL, seed=1)
    assert {p.name for p in tmp_path.iterdir()} == {"mine", "race"}
