"""One table for the runs of a sweep: accuracy beside weights, operations and time.

    python -m frozenllm.core.training.tables runs/digits/layers_llama --host runs/digits/none

reads every run below the folders, and writes ``table.txt``, ``table.csv``, ``table.json``, ``table.png`` and, where
runs kept a validation loss, ``losses.png``. A sweep that has a name of its own ends with this by itself (`SweepTable`).
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import math
import re
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from frozenllm.core.training.folder import CONFIG, write_text
from frozenllm.core.training.run import SUMMARY

_SEED = "runtime.seed"
HOST = "host alone"
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
    found: list[tuple[str, Path, dict[str, Any]]] = []
    for folder in ([host] if host else []) + [f for f in folders if f != host]:
        runs = [path.parent for path in folder.rglob(CONFIG) if path.is_file()]
        if not runs:
            raise ValueError(f"{folder} holds no run: give the folder of a run or of a sweep.")
        found += [(str(folder), run, _config(run)) for run in runs]
    found.sort(key=lambda entry: (entry[0] != str(host), _natural(entry[0]), _natural(str(entry[1]))))
    metric = metric or next((config["best"] for _, _, config in found if config.get("best")), None)
    if metric is None:
        raise ValueError("No run names a best metric: give one with --metric.")
    rows: dict[tuple[str, str], Row] = {}
    arms: dict[tuple[str, str], Mapping[str, Any]] = {}
    for group, run, config in found:
        key = group, HOST if group == str(host) else _label(run, Path(group), config)
        arms.setdefault(key, _flat(config))
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


def text_table(rows: Sequence[Row]) -> str:
    """The table for people to read."""
    metric = rows[0].metric
    lines = [
        ("run", metric, "best", "trainable", "frozen", "GFLOPs", "official", "latency", "/ host", "step", "/ host", "")
    ]
    for row in rows:
        spread = f" +- {row.spread:.2f}" if row.spread is not None else ""
        best = statistics.mean(row.best) if row.best else None
        lines.append(
            (
                row.name,
                f"{row.mean:.2f}{spread}" if row.mean is not None else "-",
                _number(best, "{:.2f}"),
                _number(row.trainable, "{:,}"),
                _number(row.frozen, "{:,}"),
                _number(row.flops, "{:.3g}", 1e-9),
                _number(row.dense_flops, "{:.3g}", 1e-9),
                _number(row.latency, "{:.1f} ms", 1e3),
                _number(row.relative_latency, "{:.2f}"),
                _number(row.step_seconds, "{:.1f} ms", 1e3),
                _number(row.relative_step, "{:.2f}"),
                row.note,
            )
        )
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    printed = []
    for line in lines:
        cells = [
            line[0].ljust(widths[0]),
            *(c.rjust(w) for c, w in zip(line[1:-1], widths[1:-1], strict=True)),
            line[-1],
        ]
        printed.append("  ".join(cells).rstrip())
    return "\n".join([printed[0], "-" * max(map(len, printed)), *printed[1:]])


def csv_table(rows: Sequence[Row]) -> str:
    """The same as comma-separated values, numbers unrounded, times in seconds."""
    keys = sorted({key for row in rows for key in row.settings})
    columns = ["trainable", "frozen", "flops", "dense_flops", "latency", "relative_latency", "step_seconds"]
    columns += ["relative_step", "is_host", "note"]
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["group", "run", "metric", "mean", "spread", "seeds", "best", *columns, *keys])
    for row in rows:
        best = statistics.mean(row.best) if row.best else None
        head = [row.group, row.name, row.metric, row.mean, row.spread, len(row.values), best]
        writer.writerow([*head, *(getattr(row, c) for c in columns), *(row.settings.get(k) for k in keys)])
    return out.getvalue()


def write_tables(rows: Sequence[Row], folder: Path) -> list[Path]:
    """Write table and plots.

    Args:
        rows: From `collect`.
        folder: Made if missing.

    Returns:
        The files.

    Raises:
        ValueError: The folder cannot be written.
    """
    from frozenllm.core.training.table_plots import plot_losses, plot_table  # matplotlib takes a second to import

    texts = {
        "table.txt": text_table(rows) + "\n",
        "table.csv": csv_table(rows),
        "table.json": json.dumps([{**asdict(r), "mean": r.mean, "spread": r.spread} for r in rows], indent=2) + "\n",
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in texts.items():
            write_text(folder / name, text)
        plots = [plot_table(rows, folder / "table.png"), plot_losses(rows, folder / "losses.png")]
    except OSError as error:
        raise ValueError(f"{folder} cannot be written ({error.strerror}): name another with --out.") from error
    return [*(folder / name for name in texts), *(path for path in plots if path is not None)]


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


def _config(run: Path) -> dict[str, Any]:
    config = OmegaConf.to_container(OmegaConf.load(run / CONFIG))
    assert isinstance(config, dict)
    return config  # type: ignore[return-value]


def _label(run: Path, folder: Path, config: Mapping[str, Any]) -> str:
    """A run's name among those of its folder, without its seed."""
    if config.get("sweep"):
        return _BETWEEN.join(o for o in sorted(config["sweep"]) if not o.startswith(f"{_SEED}="))
    name = run.relative_to(folder).as_posix() if run != folder else f"{run.parent.name}/{run.name}"
    return re.sub(r"/?seed\d+$", "", name) or folder.name


def _natural(text: str) -> list[Any]:
    """Sorting key that puts layer 7 before layer 15."""
    return [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in re.split(r"(\d+)", text) if part]


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    """Dotted key -> plain value or JSON, of what may tell two arms apart."""
    if not isinstance(value, dict):
        return {prefix: json.dumps(value) if isinstance(value, list) else value}
    flat: dict[str, Any] = {}
    for key, entry in value.items():
        dotted = f"{prefix}.{key}" if prefix else str(key)
        if dotted not in _SAY_NOTHING:
            flat |= _flat(entry, dotted)
    return flat


def _number(value: float | None, form: str, factor: float | None = None) -> str:
    if value is None:
        return "-"
    return form.format(value if factor is None else value * factor)


def main(argv: Sequence[str] | None = None) -> None:
    """The command line.

    Args:
        argv: Arguments; None for the process's.
    """
    parser = argparse.ArgumentParser(prog="python -m frozenllm.core.training.tables", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("folders", nargs="+", type=Path, help="folders of sweeps or runs")
    parser.add_argument("--host", type=Path, help="folder of the host alone, which times are relative to")
    parser.add_argument("--metric", help="for example accuracy/top1; by default the runs' own best metric")
    parser.add_argument("--out", type=Path, help="where to write (the first folder)")
    options = parser.parse_args(argv)
    try:
        rows = collect(options.folders, options.host, options.metric)
        files = write_tables(rows, options.out or options.folders[0])
    except ValueError as error:
        sys.exit(f"error: {error}")
    print(text_table(rows))
    print("\nwrote " + ", ".join(map(str, files)))


if __name__ == "__main__":
    main()
