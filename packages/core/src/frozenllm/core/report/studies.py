"""The studies of the arms: read, or made where they are missing."""

from __future__ import annotations

import importlib
import importlib.util
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from frozenllm.core.analysis.findings import value_text
from frozenllm.core.analysis.study import FOLDER, Finding, Study, read_study
from frozenllm.core.report.arms import LAST, Arm
from frozenllm.core.report.runs import Run

MODES = ("auto", "never", "again")


@dataclass
class Studied:
    """An arm's studies.

    Attributes:
        arm: The arm.
        studies: One per seed that was studied; the first one's samples are shown.
    """

    arm: Arm
    studies: list[Study] = field(default_factory=list)


def studies(
    arms: Sequence[Arm], mode: str = "auto", limit: int | None = None, samples: int = 6
) -> tuple[list[Studied], list[str]]:
    """The studies of some arms.

    Args:
        arms: The arms; only the first seed of each is studied here.
        mode: ``"auto"`` makes what is missing, ``"again"`` makes all anew, ``"never"`` reads only.
        limit: At most so many validation samples.
        samples: How many of them are shown.

    Returns:
        The arms that have one, and a sentence for each that has none; the latter are also warned about.
    """
    assert mode in MODES
    found: dict[int, dict[Path, Study]] = {id(arm): {} for arm in arms}
    problems: list[str] = []
    missing: list[Arm] = []
    unasked: list[Arm] = []
    for arm in arms:
        for run in arm.runs:
            try:
                known = read_study(run.folder) if mode != "again" or run is not arm.runs[0] else None
            except ValueError as error:
                known = None
                problems.append(f"{arm.name}, seed {run.seed}: {error}")
            if known is not None:
                found[id(arm)][run.folder] = known
        if not found[id(arm)] or mode == "again" or _older_than_weights(arm.runs[0].folder):
            missing.append(arm)
    if mode == "never":
        unasked, missing = [arm for arm in missing if not found[id(arm)]], []
    start = time.perf_counter()
    for place, arm in enumerate(missing):
        run = arm.runs[0]
        print(f"[{place + 1}/{len(missing)}] study of {arm.name}{_left(start, place, len(missing))}", flush=True)
        try:
            found[id(arm)][run.folder] = _make(run, limit, samples)
        except ValueError as error:
            problems.append(f"{arm.name}: {error}")
    for problem in problems:
        warnings.warn(problem, stacklevel=2)
    if unasked:
        problems.append(f"Not studied: {', '.join(arm.name for arm in unasked)}.")
    order = {run.folder: place for arm in arms for place, run in enumerate(arm.runs)}
    kept = [Studied(arm, [found[id(arm)][f] for f in sorted(found[id(arm)], key=order.__getitem__)]) for arm in arms]
    return [entry for entry in kept if entry.studies], problems


def study_module(run: Run) -> Any | None:
    """The module ``study`` beside one of those that a run's config imports; None where there is none.

    Raises:
        ValueError: It cannot be imported.
    """
    for package in run.modules:
        try:
            if importlib.util.find_spec(f"{package}.study") is not None:
                return importlib.import_module(f"{package}.study")
        except ModuleNotFoundError as error:
            if error.name and package.startswith(error.name):
                continue  # the user's own package, which this process does not see
            raise ValueError(f"{package}.study cannot be imported ({error}).") from error
        except ImportError as error:
            raise ValueError(f"{package}.study cannot be imported ({error}).") from error
    return None


def _make(run: Run, limit: int | None, samples: int) -> Study:
    module = study_module(run)
    if module is None:
        raise ValueError(f"{run.modules[0]} has no study that could be made here.")
    try:
        module.study(run.folder, limit=limit, samples=samples).save(run.folder)
        made = read_study(run.folder)  # as the next report will read it
    except (ValueError, ImportError, OSError) as error:
        raise ValueError(f"The study could not be made: {' '.join(str(error).split())}") from error
    except Exception as error:  # of a domain's code or its libraries: the page is worth having without it
        raise ValueError(f"The study could not be made ({type(error).__name__}: {_first_line(error)}).") from error
    assert made is not None
    return made


def _older_than_weights(run: Path) -> bool:
    """Whether a run was trained on since it was studied."""
    study, weights = run / FOLDER, run / LAST
    return study.is_dir() and weights.is_file() and study.stat().st_mtime < weights.stat().st_mtime


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), "no message")


def _left(start: float, done: int, total: int) -> str:
    if not done:
        return ""
    return f", about {(time.perf_counter() - start) / done * (total - done):.0f} s left"


@dataclass(frozen=True)
class FindingRow:
    """One line of a table of findings.

    Attributes:
        where: Kind of activation and tap.
        values: One list per arm, over its seeds; None where it has none.
        chance: What arms would get without information; a range where it differs among them.
    """

    where: str
    values: list[list[Finding] | None]
    chance: str


def finding_groups(studied: Sequence[Studied]) -> dict[str, list[FindingRow]]:
    """Findings of all arms beside each other: one table a measure, in the order in which they first appear."""
    groups: dict[str, dict[str, list[list[Finding] | None]]] = {}
    for place, entry in enumerate(studied):
        for finding in (finding for study in entry.studies for finding in study.findings):
            where = " at ".join(part for part in (finding.kind, finding.tap) if part)
            row = groups.setdefault(finding.name, {}).setdefault(where, [None] * len(studied))
            row[place] = [*(row[place] or []), finding]
    return {
        name: [FindingRow(where, values, _chance(values)) for where, values in rows.items()]
        for name, rows in groups.items()
    }


def range_text(low: float, high: float, unit: str) -> str:
    """Two ends, as people read them: ``"28.1 to 31.0 %"``."""
    first, last = value_text(low, unit), value_text(high, unit)
    return last if first == last else f"{first.removesuffix(unit).strip()} to {last}"


def _chance(values: Sequence[list[Finding] | None]) -> str:
    findings = [finding for entry in values for finding in entry or ()]
    chances = [finding.chance for finding in findings if finding.chance is not None]
    return range_text(min(chances), max(chances), findings[0].unit) if chances else value_text(None)
