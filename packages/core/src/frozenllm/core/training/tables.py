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
import statistics
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from frozenllm.core.training.cli import errors_in_a_sentence
from frozenllm.core.training.rows import Row, collect
from frozenllm.core.whole_files import write_text


def text_table(rows: Sequence[Row]) -> str:
    """The table for people to read."""
    metric = rows[0].metric
    tested = any(row.test for row in rows)
    costs = ("trainable", "frozen", "GFLOPs", "official", "latency", "/ host", "step", "/ host", "")
    lines = [("run", metric, "best", *(("test",) if tested else ()), *costs)]
    for row in rows:
        best = statistics.mean(row.best) if row.best else None
        lines.append(
            (
                row.name,
                _mean(row.values),
                _number(best, "{:.2f}"),
                *((_mean(row.test),) if tested else ()),
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
    writer.writerow(["group", "run", "metric", "mean", "spread", "seeds", "best", "test", *columns, *keys])
    for row in rows:
        best = statistics.mean(row.best) if row.best else None
        test = statistics.mean(row.test) if row.test else None
        head = [row.group, row.name, row.metric, row.mean, row.spread, len(row.values), best, test]
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


def _mean(values: Sequence[float]) -> str:
    """Mean over seeds, with the sample standard deviation of several."""
    if not values:
        return "-"
    spread = f" +- {statistics.stdev(values):.2f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.2f}{spread}"


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
    with errors_in_a_sentence():
        rows = collect(options.folders, options.host, options.metric)
        files = write_tables(rows, options.out or options.folders[0])
    print(text_table(rows))
    print("\nwrote " + ", ".join(map(str, files)))


if __name__ == "__main__":
    main()
