"""The agent-centred sample: against its definition, and the same however the scene is turned and shifted."""

from __future__ import annotations

import math
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf
from torch.utils.data import DataLoader

from frozenllm.core.training import DATASETS, FUNCTIONS, BrokenSample, compose_config
from frozenllm.motion.constant_velocity import ConstantVelocity
from frozenllm.motion.data import Window, argoverse1, argoverse2, centre, collate_scenes
from frozenllm.motion.data.argoverse1 import headings_of
from frozenllm.motion.metrics import mode_errors
from frozenllm.motion.scene import AGENT_FEATURES, LANE_ATTRIBUTES, MapPolylines, Scene, to_agent, to_city
from frozenllm.motion.toy.city import make_city
from frozenllm.motion.toy.recording import record
from frozenllm.motion.train import CONFIG

WINDOW = Window(history=20, horizon=30, radius=60.0)


@lru_cache(maxsize=16)
def scene(seed: int, known_headings: bool = True) -> Scene:
    """A toy scene as the readers make them; of 20 + 30 steps."""
    city, rng = make_city(seed, (1000.0, -500.0)), np.random.default_rng(seed)
    recording = record(city, rng, 20, 50, 0.05)
    kinds = np.array([0 if kind == "vehicle" else 1 for kind in recording.kinds])
    attributes = np.zeros((len(city.lanes), len(LANE_ATTRIBUTES)))
    attributes[:, LANE_ATTRIBUTES.index("vehicle")] = 1
    lanes = MapPolylines.from_lists([lane.centerline for lane in city.lanes.values()], list(attributes))
    headings = recording.headings if known_headings else headings_of(recording.positions, recording.valid)
    tracks = tuple(f"t{i}" for i in range(len(kinds)))
    return Scene("s", "toy", tracks, kinds, recording.positions, headings, recording.valid, 0, 20, lanes)


def plain(scene: Scene, window: Window) -> dict[tuple[str, int], list[float]]:
    """Rows per (track, step) from the words of the interface, one number at a time."""
    target = [t for t in range(20) if scene.valid[scene.target, t]][-1]
    ox, oy = scene.positions[scene.target, target]
    turn = scene.headings[scene.target, target]

    def local(point: np.ndarray) -> tuple[float, float]:
        x, y = point[0] - ox, point[1] - oy
        return x * math.cos(turn) + y * math.sin(turn), -x * math.sin(turn) + y * math.cos(turn)

    rows = {}
    for a, track in enumerate(scene.tracks):
        seen = [t for t in range(20) if scene.valid[a, t]]
        if a != scene.target and (not seen or math.hypot(*local(scene.positions[a, seen[-1]])) > window.radius):
            continue
        for t in range(20 - window.history, 20):
            if scene.valid[a, t]:
                x, y = local(scene.positions[a, t])
                dx = dy = 0.0
                if t - 1 in seen and t - 1 >= 20 - window.history:
                    px, py = local(scene.positions[a, t - 1])
                    dx, dy = x - px, y - py
                angle = scene.headings[a, t] - turn
                rows[track, t] = [x, y, dx, dy, math.cos(angle), math.sin(angle), (t - 19) * 0.1]
    return rows


@pytest.mark.parametrize("seed", range(4))
def test_a_sample_is_what_the_interface_says(seed: int) -> None:
    source = scene(seed)
    sample = centre(source, WINDOW)
    inputs, expected = sample["inputs"], plain(source, WINDOW)
    assert sample["track"] == "t0"
    tracks = list(dict.fromkeys(track for track, _ in expected))
    assert tracks[0] == "t0"
    assert inputs["agents"].shape == (len(tracks), 20, len(AGENT_FEATURES))
    for row, track in enumerate(tracks):
        assert inputs["agent_type"][row] == source.types[source.tracks.index(track)]
        for step in range(20):
            assert bool(inputs["agents_valid"][row, step]) == ((track, step) in expected)
            values = expected.get((track, step), [0.0] * 7)
            assert np.allclose(inputs["agents"][row, step].numpy(), values, atol=2e-5)
    future = to_city(sample["targets"]["future"].numpy(), sample["origin"].numpy(), float(sample["heading"]))
    valid = sample["targets"]["valid"].numpy()
    assert np.array_equal(valid, source.valid[0, 20:])
    assert np.allclose(future[valid], source.positions[0, 20:][valid], atol=1e-4)
    near = [np.linalg.norm(line - sample["origin"].numpy(), axis=1).min() <= 60 for line in source.polylines.points]
    assert inputs["lanes"].shape == (sum(near), 9, 4)
    assert inputs["lanes_valid"].all()
    frame = sample["origin"].numpy(), float(sample["heading"])
    lanes = inputs["lanes"].numpy()
    starts, ends = to_city(lanes[..., :2], *frame), to_city(lanes[..., :2] + lanes[..., 2:], *frame)
    assert np.allclose(starts, source.polylines.points[near][:, :-1], atol=1e-4)
    assert np.allclose(ends, source.polylines.points[near][:, 1:], atol=1e-4)


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 3),
    known_headings=st.booleans(),
    angle=st.floats(-7, 7),
    shift=st.tuples(st.floats(-5000, 5000), st.floats(-5000, 5000)),
)
def test_turning_and_shifting_a_scene_changes_nothing(
    seed: int, known_headings: bool, angle: float, shift: tuple[float, float]
) -> None:
    source = scene(seed, known_headings)
    moved = source.moved(angle, shift)
    if not known_headings:  # found from the moved positions, as the reader would
        moved = Scene(**{**vars(moved), "headings": headings_of(moved.positions, moved.valid)})
    a, b = centre(source, WINDOW), centre(moved, WINDOW)
    for part in ("inputs", "targets"):
        for key in a[part]:
            assert a[part][key].shape == b[part][key].shape, key
            # float64 before centring: what is left is float32's rounding of numbers up to 100.
            assert torch.allclose(a[part][key].double(), b[part][key].double(), atol=2e-5), key
    errors = []
    for sample, origin in ((a, source), (b, moved)):
        batch = collate_scenes([sample])
        path = ConstantVelocity(30)(**batch["inputs"])["trajectories"][0]
        paths = torch.cat([path, path + torch.tensor([1.0, 2.0]), path * 0.5])
        in_city = to_city(paths.numpy(), sample["origin"].numpy(), float(sample["heading"]))
        errors.append(mode_errors(in_city, np.array([0.5, 0.3, 0.2]), origin.positions[0, 20:], 3))
        local = mode_errors(paths.numpy(), np.array([0.5, 0.3, 0.2]), sample["targets"]["future"].numpy(), 3)
        assert local == pytest.approx(errors[-1], abs=2e-4)
    assert errors[0] == pytest.approx(errors[1], abs=2e-4)


@settings(max_examples=20, deadline=None)
@given(
    points=st.lists(st.tuples(st.floats(-1e4, 1e4), st.floats(-1e4, 1e4)), min_size=1, max_size=5),
    origin=st.tuples(st.floats(-1e4, 1e4), st.floats(-1e4, 1e4)),
    heading=st.floats(-10, 10),
)
def test_frames_are_inverse(points: list, origin: tuple, heading: float) -> None:
    there = to_agent(np.array(points), np.array(origin), heading)
    assert np.allclose(to_city(there, np.array(origin), heading), points, atol=1e-8)
    assert np.allclose(to_agent(np.array([origin]), np.array(origin), heading), 0)
    ahead = np.array(origin) + [math.cos(heading), math.sin(heading)]
    assert np.allclose(to_agent(ahead, np.array(origin), heading), [1, 0], atol=1e-8)


def test_a_target_that_is_missing_at_last_is_centred_where_it_was_seen() -> None:
    source = scene(1)
    valid = source.valid.copy()
    valid[0] = True
    valid[0, 17:20] = False
    sample = centre(Scene(**{**vars(source), "valid": valid}), WINDOW)
    assert np.array_equal(sample["origin"].numpy(), source.positions[0, 16])
    assert float(sample["heading"]) == source.headings[0, 16]
    assert sample["inputs"]["agents_valid"][0].tolist() == [True] * 17 + [False] * 3
    assert sample["inputs"]["agents"][0, 16, :2].abs().max() == 0
    assert float(sample["inputs"]["agents"][0, 16, 6]) == pytest.approx(-0.3)
    future = to_city(sample["targets"]["future"].numpy(), sample["origin"].numpy(), float(sample["heading"]))
    assert np.allclose(future, source.positions[0, 20:], atol=1e-4)
    valid[0, :20] = False
    with pytest.raises(BrokenSample, match=r"^s: the target t0 is not observed in the 20 steps before"):
        centre(Scene(**{**vars(source), "valid": valid}), WINDOW)


def test_windows_cut_history_horizon_and_numbers(toy2: Path) -> None:
    whole = argoverse2(toy2, "val", radius=1000.0)
    part = argoverse2(toy2, "val", radius=30.0, history=10, horizon=15)
    few = argoverse2(toy2, "val", radius=1000.0, max_agents=2, max_lanes=5)
    blind = argoverse2(toy2, "val", use_map=False)
    for a, b, c, d in zip(whole, part, few, blind, strict=True):
        assert b["inputs"]["agents"].shape[1:] == (10, 7)
        assert torch.equal(a["inputs"]["agents_valid"][0, -10:], b["inputs"]["agents_valid"][0])
        assert torch.allclose(a["inputs"]["agents"][0, -9:], b["inputs"]["agents"][0, -9:])
        assert torch.equal(a["targets"]["future"][:15], b["targets"]["future"])
        assert b["inputs"]["lanes"].shape[0] < a["inputs"]["lanes"].shape[0]
        assert c["inputs"]["agents"].shape[0] == min(2, len(a["inputs"]["agents"]))
        assert torch.equal(c["inputs"]["agents"][0], a["inputs"]["agents"][0])
        gaps = (a["inputs"]["lanes"][..., :2].norm(dim=-1) + 1e9 * ~a["inputs"]["lanes_valid"]).amin(dim=1)
        ends = (a["inputs"]["lanes"][..., :2] + a["inputs"]["lanes"][..., 2:]).norm(dim=-1)
        gaps = torch.minimum(gaps, (ends + 1e9 * ~a["inputs"]["lanes_valid"]).amin(dim=1))
        starts = c["inputs"]["lanes"][:, 0]
        chosen = [int((a["inputs"]["lanes"][:, 0] - start).norm(dim=-1).argmin()) for start in starts]
        assert chosen == sorted(chosen)  # the order of the data
        # Lanes that follow each other share a point, so the same distance may mean another lane.
        assert torch.allclose(gaps[chosen].sort().values, gaps.sort().values[:5], atol=1e-2)
        assert d["inputs"]["lanes"].shape == (0, 1, 4)
    for options, message in (
        ({"history": 51}, "history must be at most 50 steps for Argoverse 2, not 51"),
        ({"horizon": 61}, "horizon must be at most 60 steps"),
        ({"radius": 0}, "radius must be a positive number of metres, not 0"),
        ({"radius": "wide"}, "radius must be a positive number of metres, not 'wide'"),
        ({"history": 2.5}, "history must be a whole number, not 2.5"),
        ({"history": 0}, "history must be at least 1"),
        ({"max_agents": 0}, "max_agents must be at least 1"),
    ):
        with pytest.raises(ValueError, match=message):
            argoverse2(toy2, "val", **options)


def test_batches_pad_with_what_is_not_valid(toy1: Path, toy2: Path) -> None:
    for dataset in (argoverse1(toy1, "train", train=True), argoverse2(toy2, "train", train=True)):
        samples = [dataset[i] for i in range(5)]
        batch = next(iter(DataLoader(dataset, batch_size=5, collate_fn=collate_scenes)))
        assert batch["scenario"] == [sample["scenario"] for sample in samples]
        assert batch["origin"].dtype == batch["heading"].dtype == torch.float64
        sizes = [len(sample["inputs"]["agents"]) for sample in samples]
        assert batch["inputs"]["agents"].shape[1] == max(sizes)
        for row, sample in enumerate(samples):
            for part in ("inputs", "targets"):
                for key, value in sample[part].items():
                    place = batch[part][key][row]
                    assert torch.equal(place[tuple(slice(n) for n in value.shape)], value)
                    assert place.double().abs().sum() == pytest.approx(float(value.double().abs().sum()))
    mixed = [argoverse2(toy2, "val", horizon=h)[0] for h in (10, 20)]
    with pytest.raises(ValueError, match=r"differ in steps: 20 and 10 for targets\.future"):
        collate_scenes(mixed)


@pytest.mark.parametrize("name", ["argoverse1", "argoverse2", "toy_argoverse1", "toy_argoverse2"])
def test_data_configs_build_what_they_say(name: str, toy1: Path, toy2: Path) -> None:
    root = {"1": toy1, "2": toy2}[name[-1]]
    toy = (
        ["data.toy.train=12", "data.toy.val=6", "data.toy.test=3"] if name.startswith("toy") else [f"data.root={root}"]
    )
    data = compose_config(CONFIG, [f"data={name}", *toy]).data
    assert data.collate == "scenes"
    batches = []
    for role, size in (("train", 12), ("val", 6)):
        dataset = DATASETS.build(OmegaConf.to_container(data[role], resolve=True))
        assert len(dataset) == size
        assert dataset.train == (role == "train")
        batches.append(next(iter(DataLoader(dataset, batch_size=4, collate_fn=FUNCTIONS.get(data.collate)))))
    for batch in batches:
        steps = (20, 30) if name.endswith("1") else (50, 60)
        assert (batch["inputs"]["agents"].shape[2], batch["targets"]["future"].shape[1]) == steps
        assert steps == (data.history, data.horizon)
    if not name.startswith("toy"):
        with pytest.raises(ValueError, match=r"needs its folder: data\.root="):
            DATASETS.build(OmegaConf.to_container(compose_config(CONFIG, [f"data={name}"]).data.val, resolve=True))
