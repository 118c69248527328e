"""The rows of a table: what the runs below some folders were, and what came out, seeds together."""

from __future__ import annotations

import json
import math
import re
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from frozenllm.core.training.folder import CONFIG
from frozenllm.core.training.run import SUMMARY

_SEED = "runtime.seed"
HOST = "host alone"
FoundRun = tuple[str, Path, dict[str, Any]]
"""The folder that was searched, the run's folder, its config."""
_BETWEEN = "\n"  # overrides in a row's name before it is shortened
_SAY_NOTHING = ("name", "runs", "recipe", _SEED, "resume", "overwrite", "llm.name", "imports", "sweep")


@dataclass
class Row:
    """One arm: runs that differ in nothing but their seed.

    Attributes:
        name: Of a sweep's run, the overrides that tell it from the others; else its folder.
        group: The folder it was found in.
        metric: The metric that ``values`` are of.
        values: Last validation of every seed; empty where a run has none.
        best: Best validation of every seed.
        test: The metric on the test set, with the weights that the recipe tests, of every seed that has it.
        settings: Config values that differ among the rows of the group, by dotted key.
        runs: Run folders.
        trainable: Numbers that are trained.
        frozen: Numbers in frozen blocks.
        flops: Operations of one prediction, as computed.
        dense_flops: Operations of one prediction without the exact shortcuts, as the official code computes it.
        latency: Seconds of one prediction.
        step_seconds: Median over seeds of the median seconds of a training step, loading included.
        relative_latency: ``latency`` over the host's.
        relative_step: ``step_seconds`` over the host's.
        is_host: Whether this is the host alone.
        note: What to know about the figures, such as that a run has not finished.
        latencies: ``latency`` of every seed.
        steps: ``step_seconds`` of every seed.
    """

    name: str
    group: str
    metric: str
    values: list[float] = field(default_factory=list)
    best: list[float] = field(default_factory=list)
    test: list[float] = field(default_factory=list)
    settings: dict[str, Any] = field(default_factory=dict)
    runs: list[str] = field(default_factory=list)
    trainable: int | None = None
    frozen: int | None = None
    flops: float | None = None
    dense_flops: float | None = None
    latency: float | None = None
    step_seconds: float | None = None
    relative_latency: float | None = None
    relative_step: float | None = None
    is_host: bool = False
    note: str = ""
    latencies: list[float] = field(default_factory=list)
    steps: list[float] = field(default_factory=list)

    @property
    def mean(self) -> float | None:
        """Mean of the last validations."""
        return statistics.mean(self.values) if self.values else None

    @property
    def spread(self) -> float | None:
        """Sample standard deviation over seeds; None for one."""
        return statistics.stdev(self.values) if len(self.values) > 1 else None


def collect(folders: Sequence[Path], host: Path | None = None, metric: str | None = None) -> list[Row]:
    """Read the runs below some folders.

    Args:
        folders: Of sweeps, or of single runs; each is a group of its own in plots.
        host: Folder with the host alone, which times are given relative to; None for the first run with ``llm=none``
            that is found.
        metric: Name in ``metrics.jsonl``; None for the one that the first run calls its best.

    Returns:
        The host first if it is given, then the others by folder and name.

    Raises:
        ValueError: A folder holds no run, or none has the metric.
    """
    found: list[FoundRun] = []
    for folder in ([host] if host else []) + [f for f in folders if f != host]:
        runs = [path.parent for path in folder.rglob(CONFIG) if path.is_file()]
        if not runs:
            raise ValueError(f"{folder} holds no run: give the folder of a run or of a sweep.")
        found += [(str(folder), run, read_config(run)) for run in runs]
    return arrange(found, str(host) if host else None, metric)


def arrange(found: Sequence[FoundRun], host: str | None = None, metric: str | None = None) -> list[Row]:
    """Rows of runs that are known already.

    Args:
        found: Runs with the folder that each was found in, which it is named within.
        host: The folder of the host alone; see `collect`.
        metric: See `collect`.

    Returns:
        See `collect`.

    Raises:
        ValueError: No run has the metric.
    """
    found = sorted(found, key=lambda entry: (entry[0] != host, natural(entry[0]), natural(str(entry[1]))))
    metric = metric or next((config["best"] for _, _, config in found if config.get("best")), None)
    if metric is None:
        raise ValueError("No run names a best metric: give one with --metric.")
    rows: dict[tuple[str, str], Row] = {}
    arms: dict[tuple[str, str], Mapping[str, Any]] = {}
    for group, run, config in found:
        key = group, HOST if group == host else _label(run, Path(group), config)
        arms.setdefault(key, flat_config(config))
        _add(rows.setdefault(key, Row(key[1], group, metric)), run, metric)
    if not any(row.values for row in rows.values()):
        raise ValueError(f"No run has a value of {metric}: none was validated, or it is another one (--metric).")
    for key, row in rows.items():
        others = [flat for (group, _), flat in arms.items() if group == row.group]
        row.settings = {k: v for k, v in arms[key].items() if any(o.get(k, v) != v for o in others)}
        row.is_host = arms[key].get("llm.kind") == "none"
    _shorten(list(rows.values()))
    _relate(list(rows.values()))
    return list(rows.values())


def _add(row: Row, run: Path, metric: str) -> None:
    row.runs.append(str(run))
    try:
        summary = json.loads((run / SUMMARY).read_text())
    except FileNotFoundError:
        row.note = "no result yet"
        return
    if not summary["finished"]:
        row.note = f"stopped after {summary['epochs']} epochs"
    value = summary["metrics"].get(metric)
    if value is not None and not math.isfinite(value):
        row.note = f"{metric} is {value}"
    elif value is not None:
        row.values.append(value)
    if summary["best"] and summary["best"]["metric"] == metric:
        row.best.append(summary["best"]["value"])
    if (tested := (summary.get("test") or {}).get(metric)) is not None:
        row.test.append(tested)
    for name in ("trainable", "frozen", "flops", "dense_flops"):
        setattr(row, name, summary.get(name))
    for name, times in (("latency", row.latencies), ("step_seconds", row.steps)):
        if summary.get(name) is not None:
            times.append(summary[name])
            setattr(row, name, statistics.median(times))


def _shorten(rows: Sequence[Row]) -> None:
    """Leave out the overrides that all rows of a group have in common."""
    for group in {row.group for row in rows}:
        members = [row for row in rows if row.group == group]
        tokens = [row.name.split(_BETWEEN) for row in members]
        common = set.intersection(*map(set, tokens)) if len(members) > 1 else set()
        for row, own in zip(members, tokens, strict=True):
            row.name = ", ".join(token for token in own if token not in common) or row.name


def _relate(rows: Sequence[Row]) -> None:
    host = next((row for row in rows if row.is_host), None)
    for row in rows if host else ():
        assert host is not None
        if row.latency and host.latency:
            row.relative_latency = row.latency / host.latency
        if row.step_seconds and host.step_seconds:
            row.relative_step = row.step_seconds / host.step_seconds


def read_config(run: Path) -> dict[str, Any]:
    """A run's resolved config, as plain values."""
    config = OmegaConf.to_container(OmegaConf.load(run / CONFIG))
    assert isinstance(config, dict)
    return config  # type: ignore[return-value]


def _label(run: Path, folder: Path, config: Mapping[str, Any]) -> str:
    """A run's name among those of its folder, without its seed."""
    if config.get("sweep"):
        return _BETWEEN.join(o for o in sorted(config["sweep"]) if not o.startswith(f"{_SEED}="))
    name = run.relative_to(folder).as_posix() if run != folder else f"{run.parent.name}/{run.name}"
    return re.sub(r"/?seed\d+$", "", name) or folder.name


def natural(text: str) -> list[Any]:
    """Sorting key that puts layer 7 before layer 15."""
    return [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in re.split(r"(\d+)", text) if part]


def flat_config(value: Any, prefix: str = "") -> dict[str, Any]:
    """Dotted key -> plain value or JSON, of what may tell two arms apart."""
    if not isinstance(value, dict):
        return {prefix: json.dumps(value) if isinstance(value, list) else value}
    flat: dict[str, Any] = {}
    for key, entry in value.items():
        dotted = f"{prefix}.{key}" if prefix else str(key)
        if dotted not in _SAY_NOTHING:
            flat |= flat_config(entry, dotted)
    return flat
