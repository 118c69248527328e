"""Arms of a comparison: runs that differ in their seed alone, and what tells the arms apart."""

from __future__ import annotations

import math
import os
import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from frozenllm.core.record import BlockRecord
from frozenllm.core.report.runs import Run
from frozenllm.core.style import COLOURS, HOST_COLOUR
from frozenllm.core.training.checkpoint import RECORD_KEY, read_checkpoint
from frozenllm.core.training.rows import Row, arrange, flat_config, natural

_KINDS = {"none": 0, "pretrained": 1, "random": 2, "mlp": 3}
LAST = Path("checkpoints") / "last.pt"


@dataclass(frozen=True)
class Difference:
    """A mean difference to the host.

    Attributes:
        mean: Of the arm less the host.
        low: Lower end of the 95 % interval (Student's t over paired seeds), or None.
        high: Its upper end.
        pairs: Seeds that both have; 0 where the means of different seeds are compared.
    """

    mean: float
    low: float | None = None
    high: float | None = None
    pairs: int = 0


@dataclass
class Arm:
    """One arm.

    Attributes:
        name: Unique within its section.
        row: Its figures, as tables have them.
        runs: One per seed, by seed.
        colour: In figures and tables.
        host: The arm that it is compared with; None for a host and where there is none.
        difference: To the host.
        records: Of its frozen blocks.
        record_note: Why there is none, where there should be one.
        checkpoint_bytes: Size of the last checkpoint.
    """

    name: str
    row: Row
    runs: list[Run]
    colour: str = HOST_COLOUR
    host: Arm | None = None
    difference: Difference | None = None
    records: list[BlockRecord] = field(default_factory=list)
    record_note: str = ""
    checkpoint_bytes: int | None = None

    @property
    def kind(self) -> str:
        """What stands in the layer's place: ``llm.kind``."""
        return str(self.runs[0].config["llm"].get("kind"))

    @property
    def layer(self) -> int | None:
        """The language model's layer, counted from 0; None where there are several or none."""
        layers = self.records[0].layers if self.records else self.runs[0].config["llm"].get("layers") or ()
        return layers[0] if len(layers) == 1 else None

    @property
    def relative_step(self) -> float | None:
        """Time of a training step over the host's."""
        host = self if self.row.is_host else self.host
        mine, its = self.row.step_seconds, host and host.row.step_seconds
        return mine / its if mine and its else None


@dataclass
class Section:
    """Runs of one domain that have a metric in common.

    Attributes:
        domain: See `Run.domain`.
        metric: The metric.
        arms: Hosts first. Of a sweep over layers, only the deepest layer.
        sweep: Arms that differ in nothing but the layer, by layer; empty where there is no such sweep.
        lower_is_better: Of the metric.
    """

    domain: str
    metric: str
    arms: list[Arm]
    sweep: list[Arm]
    lower_is_better: bool = False

    @property
    def all_arms(self) -> list[Arm]:
        """With the other layers of the sweep."""
        return [*self.arms, *(arm for arm in self.sweep if arm not in self.arms)]


def sections(runs: Sequence[Run], step_seconds: Mapping[Path, float] | None = None) -> list[Section]:
    """Group runs by domain and metric, and within by arm.

    Args:
        runs: Finished runs.
        step_seconds: Run folder -> seconds of a training step, where they were measured better than during the runs;
            arms that it does not name then have none, since times of two kinds are not to be compared.
    """
    grouped: dict[tuple[str, str], list[Run]] = defaultdict(list)
    for run in runs:
        grouped[run.domain, run.metric].append(run)
    return [_section(domain, metric, members, step_seconds or {}) for (domain, metric), members in grouped.items()]


def paired_difference(arm: Mapping[int, float], host: Mapping[int, float]) -> Difference | None:
    """Mean difference of two arms, with Student's 95 % interval over the seeds that both have.

    Args:
        arm: Seed -> value.
        host: The same of the host.

    Returns:
        None where one of them has no value.
    """
    if not arm or not host:
        return None
    seeds = sorted(arm.keys() & host.keys())
    if not seeds:
        return Difference(statistics.mean(arm.values()) - statistics.mean(host.values()))
    differences = [arm[seed] - host[seed] for seed in seeds]
    mean = statistics.mean(differences)
    if len(seeds) < 2:
        return Difference(mean, pairs=1)
    from scipy.special import stdtrit  # half a second to import

    half = float(stdtrit(len(seeds) - 1, 0.975)) * statistics.stdev(differences) / math.sqrt(len(seeds))
    return Difference(mean, mean - half, mean + half, len(seeds))


def _section(domain: str, metric: str, runs: Sequence[Run], step_seconds: Mapping[Path, float]) -> Section:
    single = [run.folder.parent for run in runs if not run.config.get("sweep")]
    common = os.path.commonpath(single) if single else ""
    by_folder = {str(run.folder): run for run in runs}
    found = [(str(r.folder.parent) if r.config.get("sweep") else common, r.folder, r.config) for r in runs]
    rows = arrange(found, metric=metric)
    arms = []
    for row in rows:
        members = sorted((by_folder[folder] for folder in row.runs), key=lambda run: run.seed)
        known = [step_seconds[run.folder] for run in members if run.folder in step_seconds]
        if step_seconds:
            row.step_seconds = statistics.median(known) if known else None
        twins = sum(other.name == row.name for other in rows)
        arms.append(Arm(f"{Path(row.group).name}: {row.name}" if twins > 1 else row.name, row, members))
        _look_at_checkpoint(arms[-1])
    _shorten(arms)
    arms.sort(key=lambda arm: (_KINDS.get(arm.kind, 9), natural(arm.name)))
    hosts = [arm for arm in arms if arm.row.is_host]
    for arm in arms:
        if arm not in hosts and hosts:
            recipe = arm.runs[0].config.get("recipe")
            arm.host = next((h for h in hosts if h.runs[0].config.get("recipe") == recipe), hosts[0])
            arm.difference = paired_difference(_values(arm), _values(arm.host))
    sweep = _sweep(arms)
    main = [arm for arm in arms if arm not in sweep[:-1]]
    for place, arm in enumerate(arm for arm in main if arm not in hosts[:1]):
        arm.colour = COLOURS[place % len(COLOURS)]
    for arm in sweep[:-1]:
        arm.colour = sweep[-1].colour
    return Section(domain, metric, main, sweep, runs[0].config.get("best_mode") == "min")


def _values(arm: Arm) -> dict[int, float]:
    return {run.seed: run.value for run in arm.runs if run.value is not None}


def _look_at_checkpoint(arm: Arm) -> None:
    """Size of the last checkpoint, and the records of blocks in it."""
    path = arm.runs[0].folder / LAST
    if not path.is_file():
        arm.record_note = "There is no checkpoint any more, which would say which weights the block has."
        return
    arm.checkpoint_bytes = path.stat().st_size
    try:
        state = read_checkpoint(path, mmap=True)["state_dict"]
        entries = [value for key, value in state.items() if key.rpartition(".")[2] == RECORD_KEY]
        arm.records = [BlockRecord.from_tensor(value) for value in entries]
    except (ValueError, KeyError, AttributeError) as error:
        arm.record_note = f"The block's record cannot be read: {error}"


def _shorten(arms: Sequence[Arm]) -> None:
    """Leave out the folders that all names begin with."""
    parts = [arm.name.split("/") for arm in arms]
    while len(arms) > 1 and all(len(part) > 1 for part in parts) and len({part[0] for part in parts}) == 1:
        parts = [part[1:] for part in parts]
    for arm, part in zip(arms, parts, strict=True):
        arm.name = "/".join(part)


def _sweep(arms: Sequence[Arm]) -> list[Arm]:
    """The largest set of arms that differ in nothing but the language model's layer, by layer."""
    alike: dict[tuple[tuple[str, str], ...], dict[int, Arm]] = defaultdict(dict)
    for arm in arms:
        if arm.kind in ("pretrained", "random") and arm.layer is not None and arm.row.values:
            flat = flat_config(arm.runs[0].config)
            key = tuple(sorted((k, str(v)) for k, v in flat.items() if k != "llm.layers"))
            alike[key][arm.layer] = arm
    largest = max(alike.values(), key=len, default={})
    return [largest[layer] for layer in sorted(largest)] if len(largest) > 1 else []
