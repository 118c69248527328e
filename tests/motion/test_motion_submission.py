"""Submission files, read back by what the benchmarks read them with: every mode in its place."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from av2.datasets.motion_forecasting.eval import metrics as av2_metrics
from av2.datasets.motion_forecasting.eval.submission import ChallengeSubmission
from hypothesis import given, settings
from hypothesis import strategies as st

from frozenllm.motion.data import argoverse1, argoverse2
from frozenllm.motion.scene import to_city
from frozenllm.motion.submission import ranked, read_argoverse1, write_argoverse1, write_argoverse2


def prediction(seed: int, chances: list[float], steps: int = 60, **more: object) -> dict:
    """Modes that are told apart by where they are."""
    draw = np.random.default_rng(seed)
    trajectories = torch.from_numpy(draw.normal(size=(len(chances), steps, 2))).float()
    return {
        "scenario": str(seed),
        "track": "t0",
        "trajectories": trajectories,
        "probabilities": torch.tensor(chances),
        "origin": torch.from_numpy(draw.normal(size=2) * 1000),
        "heading": torch.tensor(draw.uniform(-3, 3), dtype=torch.float64),
        **more,
    }


def in_city(item: dict) -> np.ndarray:
    """Its trajectories, as the files hold them."""
    return to_city(item["trajectories"].numpy(), item["origin"].numpy(), float(item["heading"]))


TIES = [
    [1 / 6] * 6,
    [0.3, 0.25, 0.2, 0.1, 0.1, 0.05],
    [0.1, 0.2, 0.2, 0.2, 0.2, 0.1],
    [0.0, 0.0, 1.0, 0.0, 0.0, 0.0],
    [1.0],
]


def test_every_mode_is_in_its_place_ties_included(tmp_path: Path) -> None:
    items = []
    for seed, chances in enumerate(TIES):  # several tracks of one scenario share their worlds
        items += [prediction(seed, chances, track=f"t{i}") for i in range(4 if len(chances) > 1 else 1)]
        for i, item in enumerate(items[-4:]):
            item["trajectories"] = item["trajectories"] + 100 * i
    path = write_argoverse2(items, tmp_path / "deep" / "s.parquet")
    found = ChallengeSubmission.from_parquet(path).predictions
    assert set(found) == {item["scenario"] for item in items}
    for item in items:
        chances, tracks = found[item["scenario"]]
        order = sorted(range(len(chances)), key=lambda k: -float(item["probabilities"][k]))
        assert np.allclose(chances, item["probabilities"].numpy()[order], atol=1e-7)
        assert (np.diff(chances) < 0).all()
        assert chances.sum() == pytest.approx(1, abs=1e-12)
        assert np.allclose(tracks[item["track"]], in_city(item)[order], rtol=0, atol=1e-9)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.sampled_from([0.0, 1e-12, 0.1, 0.1 + 1e-12, 0.25, 1.0, 3.0]), min_size=1, max_size=8))
def test_ranks_are_strict_and_probabilities_stay(weights: list[float]) -> None:
    values = np.array(weights)
    if not values.any():
        values[0] = 1.0
    order, chances = ranked(values)
    assert sorted(order) == list(range(len(values)))
    assert (np.diff(values[order]) <= 0).all()
    assert all(a < b for a, b in pairwise(order) if values[a] == values[b])
    assert (np.diff(chances) < 0).all()
    assert (chances > 0).all()
    assert chances.sum() == pytest.approx(1, abs=1e-12)
    assert np.allclose(chances, values[order] / values.sum(), atol=1e-7)


def test_a_whole_test_split_in_argoverse2s_frame(toy2: Path, tmp_path: Path) -> None:
    items = []
    for sample in argoverse2(toy2, "val"):
        future = sample["targets"]["future"]
        items.append({**sample, "trajectories": torch.stack([future, future + 3]), "probabilities": torch.ones(2) / 2})
    found = ChallengeSubmission.from_parquet(write_argoverse2(items, tmp_path / "s.parquet")).predictions
    for sample in argoverse2(toy2, "val"):
        truth = to_city(sample["targets"]["future"].numpy(), sample["origin"].numpy(), float(sample["heading"]))
        fde = av2_metrics.compute_fde(found[sample["scenario"]][1][sample["track"]], truth)
        assert fde == pytest.approx([0, 18**0.5], abs=1e-3)


def test_argoverse1s_rows(toy1: Path, tmp_path: Path) -> None:
    items = [prediction(seed, chances, steps=30) for seed, chances in enumerate(TIES)]
    path = write_argoverse1(items, tmp_path / "s.h5")
    with h5py.File(path) as file:
        assert list(file) == ["argoverse_forecasting"]
        rows = file["argoverse_forecasting"][:]
    assert rows.shape == (30 * sum(map(len, TIES)), 4)
    found, at = read_argoverse1(path), 0
    for item in items:
        chances, trajectories = found[int(item["scenario"])]
        order = np.argsort(-item["probabilities"].numpy(), kind="stable")
        assert np.allclose(trajectories, in_city(item)[order], rtol=0, atol=1e-9)
        assert np.allclose(chances, item["probabilities"].numpy()[order], atol=1e-7)
        for mode in in_city(item)[order]:  # 30 rows per mode, one mode after another
            assert (rows[at : at + 30, 0] == int(item["scenario"])).all()
            assert np.allclose(rows[at : at + 30, 1:3], mode, rtol=0, atol=1e-9)
            assert len(set(rows[at : at + 30, 3])) == 1
            at += 30
    sample = argoverse1(toy1, "test_obs")[0]
    item = {**sample, "trajectories": torch.zeros(1, 30, 2), "probabilities": torch.ones(1)}
    back = read_argoverse1(write_argoverse1([item], tmp_path / "t.h5"))[int(sample["scenario"])][1]
    assert np.allclose(back[0], sample["origin"].numpy())


def test_what_does_not_fit_is_named(tmp_path: Path) -> None:
    good = prediction(1, [0.6, 0.4])
    for items, message in (
        ([], "no predictions to submit"),
        ([good, good], "Track t0 of scenario 1 is predicted twice"),
        ([good, {**prediction(1, [0.4, 0.6]), "track": "t1"}], "tracks of scenario 1 have different probabilities"),
        ([{**good, "track": ""}], "Scenario 1 could not be read, and a submission needs all"),
        ([prediction(1, [1.0], steps=30)], r"takes trajectories of 60 steps .* shape \(1, 30, 2\)"),
        ([{**good, "trajectories": good["trajectories"] * torch.nan}], "not finite or negative"),
        ([prediction(1, [1.5, -0.5])], "not finite or negative"),
    ):
        with pytest.raises(ValueError, match=message):
            write_argoverse2(items, tmp_path / "s.parquet")
    with pytest.raises(ValueError, match="calls its sequences by numbers, not 'a-b'"):
        write_argoverse1([prediction(1, [1.0], steps=30, scenario="a-b")], tmp_path / "s.h5")
    with pytest.raises(ValueError, match="Sequence 1 is predicted twice"):
        write_argoverse1([prediction(1, [1.0], steps=30)] * 2, tmp_path / "s.h5")
    (tmp_path / "broken.h5").write_text("no")
    with pytest.raises(ValueError, match=r"broken\.h5 cannot be read as a submission"):
        read_argoverse1(tmp_path / "broken.h5")
    assert not (tmp_path / "s.h5").exists()
