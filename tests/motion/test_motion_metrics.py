"""Errors against av2's functions, Argoverse 1's definitions, and constant velocity against a straight line."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from av2.datasets.motion_forecasting.eval import metrics as av2_metrics
from hypothesis import given, settings
from hypothesis import strategies as st

from frozenllm.motion.constant_velocity import ConstantVelocity, constant_velocity, evaluate
from frozenllm.motion.data import argoverse2
from frozenllm.motion.metrics import MotionMetric, mode_errors
from frozenllm.motion.scene import AGENT_FEATURES


def sample(trajectories: np.ndarray, probabilities: np.ndarray, future: np.ndarray, **more: object) -> dict:
    """One prediction, as tasks make them."""
    return {
        "trajectories": torch.from_numpy(np.asarray(trajectories)),
        "probabilities": torch.from_numpy(np.asarray(probabilities)),
        "future": torch.from_numpy(np.asarray(future)),
        "valid": torch.ones(len(future), dtype=torch.bool),
        "track": "1",
        **more,
    }


def results(metric: MotionMetric, samples: list[dict]) -> dict[str, float]:
    """Over several batches."""
    for i in range(0, len(samples), 3):
        metric.process(None, samples[i : i + 3])
    return metric.evaluate(len(samples))


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 10**6), modes=st.integers(1, 8), k=st.integers(1, 8), scale=st.sampled_from([0.5, 2.0, 20.0])
)
def test_errors_are_av2s(seed: int, modes: int, k: int, scale: float) -> None:
    draw = np.random.default_rng(seed)
    future = np.cumsum(draw.normal(size=(60, 2)), axis=0)
    trajectories = future + draw.normal(size=(modes, 1, 2)) * scale + draw.normal(size=(modes, 60, 2)) * 0.1
    chances = draw.dirichlet(np.ones(modes))
    top = sorted(range(modes), key=lambda i: -chances[i])[:k]
    shares = chances[top] / chances[top].sum()
    fde = av2_metrics.compute_fde(trajectories[top], future)
    best = int(np.argmin(fde))
    expected = {
        "minFDE": fde[best],
        "minADE": av2_metrics.compute_ade(trajectories[top], future)[best],
        "MR": float(av2_metrics.compute_is_missed_prediction(trajectories[top], future, 2.0)[best]),
        "brier-minFDE": av2_metrics.compute_brier_fde(trajectories[top], future, shares)[best],
        "brier-minADE": av2_metrics.compute_brier_ade(trajectories[top], future, shares)[best],
    }
    found = mode_errors(trajectories, chances, future, k)
    assert {name: found[name] for name in expected} == pytest.approx(expected, rel=1e-12)
    assert found["minFDE"] == min(fde)


def test_the_mean_over_random_predictions_is_av2s() -> None:
    draw = np.random.default_rng(0)
    futures = draw.normal(size=(10, 60, 2)).cumsum(axis=1)
    trajectories = futures[:, None] + draw.normal(size=(10, 6, 60, 2)).cumsum(axis=2) * 0.4
    chances = draw.dirichlet(np.ones(6), size=10)
    found = results(MotionMetric(k=(1, 6)), [sample(*row) for row in zip(trajectories, chances, futures, strict=True)])
    rows = []
    for paths, shares, future in zip(trajectories, chances, futures, strict=True):
        fde, likeliest = av2_metrics.compute_fde(paths, future), int(shares.argmax())
        best = int(fde.argmin())
        ade, missed = av2_metrics.compute_ade(paths, future), av2_metrics.compute_is_missed_prediction(paths, future)
        brier = av2_metrics.compute_brier_fde(paths, future, shares, normalize=True)
        rows.append(
            (ade[likeliest], fde[likeliest], missed[likeliest], ade[best], fde[best], missed[best], brier[best])
        )
    names = ["minADE1", "minFDE1", "MR1", "minADE6", "minFDE6", "MR6", "brier-minFDE6"]
    expected = dict(zip([f"motion/{name}" for name in names], np.mean(rows, axis=0), strict=True))
    assert found == pytest.approx(expected)


def test_argoverse1s_definitions_on_hand_made_cases() -> None:
    future = np.stack([np.arange(1, 31) * 1.0, np.zeros(30)], axis=1)
    near = future + [0.0, 3.0]  # 3 m beside it all the way
    bent = future.copy()
    bent[:, 1] = np.linspace(10, 1, 30)  # 5.5 m off in the mean, 1 m at the end
    far = future + [0.0, 50.0]
    # The endpoint chooses: `bent` counts although `near` is nearer on the whole.
    found = mode_errors(np.stack([near, bent, far]), np.array([0.6, 0.3, 0.1]), future, 6)
    assert found["minFDE"] == pytest.approx(1.0)
    assert found["minADE"] == pytest.approx(5.5)
    assert found["MR"] == 0.0
    assert found["p-minFDE"] == pytest.approx(1.0 - math.log(0.3))
    assert found["p-minADE"] == pytest.approx(5.5 - math.log(0.3))
    assert found["p-MR"] == pytest.approx(0.7)
    assert found["brier-minFDE"] == pytest.approx(1.0 + 0.7**2)
    # The two likeliest of three, made to sum to one.
    found = mode_errors(np.stack([bent, near, far]), np.array([0.1, 0.6, 0.3]), future, 2)
    assert found["minFDE"] == pytest.approx(3.0)
    assert found["MR"] == found["p-MR"] == 1.0
    assert found["p-minFDE"] == pytest.approx(3.0 - math.log(0.6 / 0.9))
    # The charge for a low probability ends at 0.05.
    found = mode_errors(np.stack([bent, far]), np.array([0.001, 0.999]), future, 6)
    assert found["p-minFDE"] == pytest.approx(1.0 - math.log(0.05))
    # Exactly at the threshold is no miss, and ties of the endpoint go to the likelier mode.
    found = mode_errors(np.stack([future + [0, 2.0], future - [0, 2.0]]), np.array([0.25, 0.75]), future, 6)
    assert found["MR"] == 0.0
    assert found["p-MR"] == pytest.approx(0.25)
    assert mode_errors(future[None] + [0, 2.0], np.ones(1), future, 6, miss=1.9)["MR"] == 1.0


def test_futures_known_in_part_and_not_at_all() -> None:
    future = np.stack([np.arange(30.0), np.zeros(30)], axis=1)
    valid = torch.ones(30, dtype=torch.bool)
    valid[[3, 4, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29]] = False
    wrong = future.copy()
    wrong[:20, 1], wrong[20:] = 1.5, 1e6
    whole = sample(future[None] + [0, 4.0], np.ones(1), future)
    part = sample(wrong[None], np.ones(1), np.where(valid[:, None], future, np.nan), valid=valid)
    none = sample(wrong[None], np.ones(1), np.zeros((30, 2)), valid=torch.zeros(30, dtype=torch.bool))
    found = results(MotionMetric(k=(1,), prefix="x"), [whole, part, none])
    assert found == pytest.approx({"x/minADE1": 2.75, "x/minFDE1": 2.75, "x/MR1": 0.5})
    found = results(MotionMetric(k=(1,)), [whole, part, {**none, "track": ""}, {**none, "track": ""}])
    assert found["motion/unreadable"] == 2.0
    assert found["motion/minADE1"] == pytest.approx(2.75)
    with pytest.raises(ValueError, match="Not one sample of the evaluated data has a known future"):
        results(MotionMetric(), [none, {**none, "track": ""}])


def test_names_are_chosen_and_checked() -> None:
    future = np.zeros((5, 2))
    found = results(MotionMetric(k=(6,), names=("p-minFDE", "p-MR")), [sample(future[None], np.ones(1), future)])
    assert sorted(found) == ["motion/p-MR6", "motion/p-minFDE6"]
    with pytest.raises(ValueError, match=r"MotionMetric knows minADE, .* not DAC"):
        MotionMetric(names=["DAC"])
    with pytest.raises(ValueError, match=r"values of k of at least 1, not \[0\]"):
        MotionMetric(k=[0])


@settings(max_examples=30, deadline=None)
@given(
    velocity=st.tuples(st.floats(-20, 20), st.floats(-20, 20)),
    gaps=st.sets(st.integers(0, 18), max_size=12),
    missing=st.integers(0, 3),
    seconds=st.sampled_from([0.1, 0.5, 2.0]),
)
def test_constant_velocity_goes_straight_on(
    velocity: tuple[float, float], gaps: set[int], missing: int, seconds: float
) -> None:
    valid = torch.ones(1, 3, 20, dtype=torch.bool)
    valid[0, 0, sorted(gaps - {18 - missing, 17 - missing, 16 - missing})] = False
    valid[0, 0, 20 - missing :] = False
    valid[0, 0, [18 - missing, 19 - missing]] = True
    agents = torch.zeros(1, 3, 20, len(AGENT_FEATURES), dtype=torch.float64)
    times = (torch.arange(20, dtype=torch.float64) - 19) * 0.1
    speed = torch.tensor(velocity, dtype=torch.float64)
    agents[0, 0, :, :2] = (times + 0.1 * missing)[:, None] * speed
    agents[..., AGENT_FEATURES.index("t")] = times
    agents = agents * valid[..., None]
    path = constant_velocity(agents, valid, 30, seconds)
    expected = (0.1 * torch.arange(1, 31, dtype=torch.float64) + 0.1 * missing)[:, None] * speed
    assert torch.allclose(path[0], expected, atol=1e-6)
    out = ConstantVelocity(30, seconds)(agents=agents, agents_valid=valid, agent_type=None)
    assert out["trajectories"].shape == (1, 1, 30, 2)
    assert out["logits"].shape == (1, 1)


def test_constant_velocity_is_evaluated_like_a_model(toy2: Path) -> None:
    data = argoverse2(toy2, "val")
    found = evaluate(data, batch_size=4)
    errors = []
    for item in data:
        path = constant_velocity(item["inputs"]["agents"][None], item["inputs"]["agents_valid"][None], 60)
        errors.append(av2_metrics.compute_fde(path.numpy().astype(float), item["targets"]["future"].numpy())[0])
    assert found["minFDE1"] == found["minFDE6"] == pytest.approx(np.mean(errors), rel=1e-5)
    standing = torch.zeros(1, 1, 5, len(AGENT_FEATURES))
    assert not constant_velocity(standing, torch.tensor([[[False, False, False, False, True]]]), 10).any()
