"""Arms beside each other: the host alone, with the frozen layer, with what may stand in its place."""

from __future__ import annotations

import re
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from frozenllm.core.training.composition import compose_config
from frozenllm.core.training.run import RunResult, train

HOST_AND_LAYER = {"host alone": ["llm=none"], "+ frozen bundled block": ["llm=bundled"]}
"""The arms of a training tool's toy run, and their overrides."""


@dataclass
class ArmResult:
    """One arm, trained with several seeds.

    Attributes:
        arm: Its name.
        runs: One result per seed.
    """

    arm: str
    runs: list[RunResult]

    def values(self, metric: str) -> list[float]:
        """A metric's last validation, per seed."""
        return [run.metrics[metric] for run in self.runs]

    def mean(self, metric: str) -> float:
        """Mean over the seeds."""
        return statistics.mean(self.values(metric))

    def spread(self, metric: str) -> float:
        """Sample standard deviation over the seeds; 0 for one seed."""
        return statistics.stdev(self.values(metric)) if len(self.runs) > 1 else 0.0

    @property
    def trainable(self) -> int:
        """Numbers that are trained."""
        return self.runs[0].trainable

    @property
    def frozen(self) -> int:
        """Numbers in frozen blocks."""
        return self.runs[0].frozen

    @property
    def step_seconds(self) -> float | None:
        """Median step over the seeds."""
        times = [run.step_seconds for run in self.runs if run.step_seconds is not None]
        return statistics.median(times) if times else None


def compare(
    package: str, arms: Mapping[str, Sequence[str]], seeds: Sequence[int] = (0,), overrides: Sequence[str] = ()
) -> list[ArmResult]:
    """Train every arm with every seed, one after another; earlier runs of the same comparison are replaced.

    Args:
        package: The domain's config package.
        arms: Name -> overrides that make the arm.
        seeds: Values of ``runtime.seed``. Seeds take turns in the outer loop, so that a machine that slows down
            meanwhile slows down all arms alike.
        overrides: For all arms.

    Returns:
        One result per arm, in order.
    """
    results = {arm: ArmResult(arm, []) for arm in arms}
    for seed in seeds:
        for arm, own in arms.items():
            name = f"{re.sub(r'[^a-z0-9]+', '-', arm.lower()).strip('-')}/seed{seed}"
            common = [*overrides, f"runtime.seed={seed}", f"name={name}", "overwrite=true"]
            print(f"== {arm}, seed {seed}", flush=True)
            results[arm].runs.append(train(compose_config(package, [*common, *own])))
    return list(results.values())


def table(results: Sequence[ArmResult], metric: str) -> str:
    """A table of arms: metric (mean and spread), trainable and frozen numbers, step time relative to the first arm."""
    base = results[0].step_seconds
    rows = [("arm", metric, "trainable", "frozen", "step", "relative")]
    for result in results:
        spread = f" +- {result.spread(metric):.2f}" if len(result.runs) > 1 else ""
        step = result.step_seconds
        rows.append(
            (
                result.arm,
                f"{result.mean(metric):.2f}{spread}",
                f"{result.trainable:,}",
                f"{result.frozen:,}",
                f"{1000 * step:.1f} ms" if step else "-",
                f"{step / base:.2f} x" if step and base else "-",
            )
        )
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = []
    for row in rows:
        numbers = (cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))
        lines.append("  ".join([row[0].ljust(widths[0]), *numbers]))
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])


def print_table(results: Sequence[ArmResult], metric: str) -> None:
    """Print `table`, under an empty line."""
    print(f"\n{table(results, metric)}", flush=True)


def compare_toys(
    package: str, overrides: Sequence[str], metric: str, arms: Mapping[str, Sequence[str]] = HOST_AND_LAYER
) -> list[ArmResult]:
    """What a training tool does by itself: train arms on toy data, one seed each, and print their table.

    Args:
        package: The domain's config package.
        overrides: For all arms, such as the recipe.
        metric: Of the table.
        arms: See `compare`.

    Returns:
        One result per arm, in order; their runs lie in ``runs/toy``.
    """
    results = compare(package, arms, overrides=[*overrides, "runs=runs/toy"])
    print_table(results, metric)
    return results
