"""``frozenllm report``: one page about finished runs."""

from __future__ import annotations

import argparse
import importlib.util
from pathlib import Path
from typing import Any

_NEEDED = ("jinja2", "matplotlib", "mmengine", "omegaconf", "scipy")


def add(commands: Any) -> None:
    """Register the command's arguments."""
    report = commands.add_parser(
        "report",
        help="write one HTML page about finished training runs",
        description="Writes one self-contained HTML page about finished runs: comparison with spread over seeds, "
        "curves, costs, what was trained, and maps of samples from the information-filtering study, which is made "
        "where it is missing and the run's data is at hand.",
    )
    report.add_argument("runs", metavar="RUN", nargs="+", help="folder of a run, or a folder above several")
    report.add_argument("-o", "--output", type=Path, default=Path("report.html"), help="the page (%(default)s)")
    report.add_argument("--title", help="its title")
    report.add_argument(
        "--study",
        choices=("auto", "never", "again"),
        default="auto",
        help="studies of one seed of every arm: make what is missing (auto), read only (never), make anew (again)",
    )
    report.add_argument("--limit", type=int, metavar="N", help="study at most N validation samples (default: all)")
    report.add_argument("--samples", type=int, default=6, metavar="N", help="show N of them (default %(default)s)")
    report.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Write the page; returns the exit code."""
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise ValueError(f"A report needs {', '.join(missing)}: pip install 'frozenllm-core[train]'.")
    from frozenllm.core.report import write_report

    path = write_report(
        args.runs, args.output, title=args.title, study=args.study, limit=args.limit, samples=args.samples
    )
    print(f"wrote {path} ({path.stat().st_size / 1e6:.1f} MB)")
    return 0
