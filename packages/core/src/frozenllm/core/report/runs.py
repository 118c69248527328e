"""The runs that a report is about, and those that cannot be in it."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from omegaconf.errors import OmegaConfBaseException

from frozenllm.core.training.folder import CONFIG
from frozenllm.core.training.rows import natural, read_config
from frozenllm.core.training.run import SUMMARY


@dataclass(frozen=True)
class Run:
    """A finished run.

    Attributes:
        folder: The run folder.
        config: Its resolved config.
        summary: What ``summary.json`` holds.
        metric: The metric that it is compared by.
    """

    folder: Path
    config: dict[str, Any]
    summary: dict[str, Any]
    metric: str

    @property
    def modules(self) -> list[str]:
        """Packages of the modules that its config imports: ``frozenllm.video``."""
        return [name.rpartition(".")[0] or name for name in self.config["imports"]]

    @property
    def domain(self) -> str:
        """``"video"``, ..., or the name of a package of the user's own."""
        return self.modules[0].removeprefix("frozenllm.")

    @property
    def seed(self) -> int:
        """``runtime.seed``."""
        return int(self.config.get("runtime", {}).get("seed", 0))

    @property
    def value(self) -> float | None:
        """Last validation; None where it is not finite."""
        value = self.summary["metrics"].get(self.metric)
        return value if value is not None and math.isfinite(value) else None


@dataclass(frozen=True)
class LeftOut:
    """A run that is not in the report.

    Attributes:
        folder: Its folder.
        reason: A sentence.
    """

    folder: Path
    reason: str


def find_runs(paths: Sequence[str | Path]) -> tuple[list[Run], list[LeftOut]]:
    """Read all runs in and below some folders.

    Args:
        paths: Run folders, or folders above several.

    Returns:
        The finished runs, in the order of numbers in their names, and those that are damaged or have not finished; a
        warning names each of the latter.

    Raises:
        ValueError: There is no finished run.
    """
    folders: dict[Path, None] = {}
    left_out = []
    for path in map(Path, paths):
        below = sorted((file.parent for file in path.expanduser().rglob(CONFIG)), key=lambda f: natural(str(f)))
        if not below:
            what = "holds no run" if path.expanduser().is_dir() else "is no folder"
            left_out.append(LeftOut(path, f"It {what}."))
        folders.update(dict.fromkeys(folder.resolve() for folder in below))
    runs = []
    for folder in folders:
        try:
            runs.append(_read(folder))
        except ValueError as error:
            left_out.append(LeftOut(folder, str(error)))
    if not runs:
        first = f"{left_out[0].folder}: {left_out[0].reason}" if left_out else "No folder was given."
        raise ValueError(f"There is no finished run to report on. {first}")
    for entry in left_out:
        warnings.warn(f"{entry.folder} is left out. {entry.reason}", stacklevel=2)
    return runs, left_out


def _read(folder: Path) -> Run:
    try:
        config = read_config(folder)
        imports = config.get("imports")
        if not imports or not isinstance(imports, list) or not isinstance(config.get("llm"), dict):
            raise ValueError("it has no imports or no llm")
    except (OSError, ValueError, AssertionError, AttributeError, yaml.YAMLError, OmegaConfBaseException) as error:
        detail = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"Its {CONFIG} is not that of a run ({detail}).") from error
    try:
        summary = json.loads((folder / SUMMARY).read_text(encoding="utf-8"))
        finished, metrics = summary["finished"], summary["metrics"]
        if not all(isinstance(value, int | float) for value in metrics.values()):
            raise ValueError("a metric is no number")
    except FileNotFoundError:
        raise ValueError(f"It has not finished: there is no {SUMMARY} yet.") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"Its {SUMMARY} is damaged ({error}).") from error
    if not finished:
        raise ValueError(f"It has not finished: it stopped after {summary.get('epochs')} epochs (resume=true goes on).")
    metric = config.get("best") or next(iter(metrics), None)
    if metric is None or metric not in metrics:
        raise ValueError(f"It has no value of {metric}." if metric else "It was never validated.")
    return Run(folder, config, summary, metric)
