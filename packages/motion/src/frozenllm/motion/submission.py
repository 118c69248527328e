"""Files that the two benchmarks take: Argoverse 2's parquet, Argoverse 1's h5."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from frozenllm.motion.scene import to_city

ARGOVERSE2_STEPS, ARGOVERSE1_STEPS = 60, 30

_DATASET = "argoverse_forecasting"
_LEAST_DIFFERENCE = 1e-9


def ranked(probabilities: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Modes from the most to the least probable, and probabilities without ties.

    av2's reader sorts by probability with a sort that does not keep the order of equal ones, for each track anew. With
    probabilities that decrease strictly, by at least about 1e-9, it finds every mode where it was written.

    Args:
        probabilities: (K,) not negative.

    Returns:
        (K,) indices, equal ones in their order; (K,) float64 that decrease and sum to 1.
    """
    order = np.argsort(-probabilities, kind="stable")
    chances = np.asarray(probabilities, dtype=np.float64)[order]
    chances = chances / chances.sum() + _LEAST_DIFFERENCE * np.arange(len(order), 0, -1)
    return order, chances / chances.sum()


def write_argoverse2(predictions: Iterable[Mapping[str, Any]], path: str | os.PathLike[str]) -> Path:
    """A file for Argoverse 2's challenge, through av2's ``ChallengeSubmission``.

    Args:
        predictions: As a motion task predicts: ``scenario``, ``track``, ``trajectories`` (K, 60, 2) in the agent frame,
            ``probabilities`` (K,), ``origin`` and ``heading`` of the frame. Tracks of one scenario share their
            probabilities: mode k of each is world k.
        path: The parquet file; modes are in it from the most to the least probable.

    Returns:
        The file.

    Raises:
        ValueError: There are no predictions, one is for a scenario that could not be read, a track comes twice, or
            numbers do not fit the challenge.
    """
    from av2.datasets.motion_forecasting.eval.submission import ChallengeSubmission

    worlds: dict[str, tuple[np.ndarray, dict[str, np.ndarray]]] = {}
    orders: dict[str, list[int]] = {}
    for prediction in predictions:
        scenario, track = prediction["scenario"], prediction["track"]
        order, chances, trajectories = _city_modes(prediction, ARGOVERSE2_STEPS)
        shared, tracks = worlds.setdefault(scenario, (chances, {}))
        if track in tracks:
            raise ValueError(f"Track {track} of scenario {scenario} is predicted twice.")
        if not np.array_equal(shared, chances) or orders.setdefault(scenario, order.tolist()) != order.tolist():
            raise ValueError(f"The tracks of scenario {scenario} have different probabilities, but share their worlds.")
        tracks[track] = trajectories
    if not worlds:
        raise ValueError("There are no predictions to submit.")
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    ChallengeSubmission(worlds).to_parquet(path)
    return path


def write_argoverse1(predictions: Iterable[Mapping[str, Any]], path: str | os.PathLike[str]) -> Path:
    """A file for Argoverse 1's challenge: rows ``[sequence, x, y, probability]``, 30 per mode, one mode after another.

    Args:
        predictions: As for `write_argoverse2`, with trajectories (K, 30, 2).
        path: The h5 file; modes are in it from the most to the least probable.

    Returns:
        The file.

    Raises:
        ValueError: As for `write_argoverse2`, or a sequence is not called by a number.
    """
    import h5py

    rows: dict[int, np.ndarray] = {}
    for prediction in predictions:
        if not prediction["scenario"].isdecimal():
            raise ValueError(f"Argoverse 1 calls its sequences by numbers, not {prediction['scenario']!r}.")
        number = int(prediction["scenario"])
        if number in rows:
            raise ValueError(f"Sequence {number} is predicted twice.")
        _, chances, trajectories = _city_modes(prediction, ARGOVERSE1_STEPS)
        places = trajectories.reshape(-1, 2)
        column = np.repeat(chances, ARGOVERSE1_STEPS)
        rows[number] = np.column_stack([np.full(len(places), number), places, column])
    if not rows:
        raise ValueError("There are no predictions to submit.")
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        file.create_dataset(_DATASET, data=np.concatenate(list(rows.values())), compression="gzip", compression_opts=9)
    return path


def read_argoverse1(path: str | os.PathLike[str]) -> dict[int, tuple[np.ndarray, np.ndarray]]:
    """Probabilities (K,) and trajectories (K, 30, 2) per sequence of an h5 file, as the challenge reads them.

    Raises:
        ValueError: The file is damaged, or a sequence has no whole modes.
    """
    import h5py

    try:
        with h5py.File(path) as file:
            rows = file[_DATASET][:]
    except (OSError, KeyError) as error:
        raise ValueError(f"{path} cannot be read as a submission to Argoverse 1 ({error}).") from error
    found = {}
    for number in np.unique(rows[:, 0]).astype(int).tolist():
        modes = rows[rows[:, 0] == number]
        if len(modes) % ARGOVERSE1_STEPS:
            raise ValueError(f"{path} has {len(modes)} rows for sequence {number}, not {ARGOVERSE1_STEPS} per mode.")
        modes = modes.reshape(-1, ARGOVERSE1_STEPS, rows.shape[1])
        found[number] = (modes[:, 0, 3], modes[:, :, 1:3])
    return found


def _city_modes(prediction: Mapping[str, Any], steps: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Order of the modes, their probabilities, and their trajectories in the city frame, float64."""
    scenario, track = prediction["scenario"], prediction["track"]
    trajectories, chances = np.asarray(prediction["trajectories"]), np.asarray(prediction["probabilities"])
    if not track:
        raise ValueError(f"Scenario {scenario} could not be read, and a submission needs all of them: repair it.")
    if trajectories.shape != (len(chances), steps, 2):
        raise ValueError(
            f"The challenge takes trajectories of {steps} steps for every mode, but those of scenario {scenario} have "
            f"the shape {trajectories.shape} for {len(chances)} probabilities."
        )
    if not (np.isfinite(trajectories).all() and np.isfinite(chances).all() and (chances >= 0).all() and chances.any()):
        raise ValueError(f"The prediction for scenario {scenario} has numbers that are not finite or negative.")
    order, chances = ranked(chances)
    return order, chances, to_city(trajectories[order], np.asarray(prediction["origin"]), float(prediction["heading"]))
