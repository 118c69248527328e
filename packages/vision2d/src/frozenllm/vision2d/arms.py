"""Arms of the information-filtering study beside each other: intervals for each, and differences image by image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from PIL import Image
from torch import Tensor

from frozenllm.core.analysis import auroc, bootstrap, geometric_mean, inside_outside, overlap, paired_difference
from frozenllm.core.analysis.findings import findings_table, interval_finding
from frozenllm.core.analysis.study import Finding
from frozenllm.core.style import COLOURS, HOST_COLOUR
from frozenllm.vision2d.measures import Measured
from frozenllm.vision2d.study import KINDS

IOU, BEST, AUROC = "IoU, honest threshold", "IoU, best threshold of each image (upper bound)", "AUROC"
RATIO, RANK, COHERENCE, ACCURACY = "activation on the object over elsewhere", "effective rank", "coherence", "accuracy"
HOST, LAYER = "host", "adapter_out"
Key = tuple[str, str | None, str | None]


@dataclass
class Arm:
    """Runs that differ by their seed alone.

    Attributes:
        name: For tables.
        measured: One a seed, all on the same images.
    """

    name: str
    measured: list[Measured]


@dataclass
class Comparison:
    """What the arms have in numbers.

    Attributes:
        arms: Arm -> findings: means over images of values that are first averaged over seeds.
        seeds: Arm -> name of a finding with tap and kind -> its value by seed.
        differences: Image by image; the name says which arm and tap are compared with which.
        images: How many there are.
        what: What the masks show.
    """

    arms: dict[str, list[Finding]] = field(default_factory=dict)
    seeds: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    differences: list[Finding] = field(default_factory=list)
    images: int = 0
    what: str = ""


def compare_arms(arms: Sequence[Arm]) -> Comparison:
    """Compare arms, the first of which is the baseline.

    Raises:
        ValueError: The arms were measured on different images, or without masks.
    """
    first = arms[0].measured[0]
    for arm in arms:
        for measured in arm.measured:
            if measured.names != first.names:
                raise ValueError(f"{arm.name} was studied on other images than {arms[0].name}: give --masks to all.")
            if measured.relevant is None:
                raise ValueError(f"{measured.title} has images without masks: give ImageNet-S with --masks ROOT.")
    result = Comparison(images=len(first.names), what=first.what)
    values: dict[str, dict[Key, Tensor]] = {}
    for arm in arms:
        each, chances = zip(*(_per_image(measured) for measured in arm.measured), strict=True)
        # Ratios are averaged as logarithms, so that their mean over seeds and images is a geometric one.
        values[arm.name] = {key: torch.stack([v[key] for v in each]).nanmean(dim=0) for key in each[0]}
        result.arms[arm.name] = [
            _finding(key, value, sum(c[key] for c in chances) / len(chances) if key in chances[0] else None)
            for key, value in values[arm.name].items()
        ]
        result.arms[arm.name] += _coherence(arm.measured)
        result.seeds[arm.name] = {
            " ".join(part for part in key if part): [_finding(key, v[key], None).value for v in each] for key in each[0]
        }
    result.differences = _differences([arm.name for arm in arms], values)
    return result


def _per_image(measured: Measured) -> tuple[dict[Key, Tensor], dict[Key, float]]:
    """Values image by image, and what chance gives on average."""
    found: dict[Key, Tensor] = {}
    chances: dict[Key, float] = {}
    relevant, counted = measured.relevant, measured.counted
    assert relevant is not None
    for (kind, tap), active in measured.analysis.activations.items():
        covered = overlap(active, relevant, measured.names, counted)
        found[IOU, tap, kind], found[BEST, tap, kind] = covered.honest, covered.oracle
        chances[IOU, tap, kind], chances[BEST, tap, kind] = covered.chance_honest, covered.chance_oracle
        found[AUROC, tap, kind] = auroc(active, relevant, counted)
        chances[AUROC, tap, kind] = 0.5
    for depth, strength in measured.analysis.strengths.items():
        found[RATIO, depth, None] = inside_outside(strength, relevant, counted).log()
    for depth, rank in measured.analysis.ranks.items():
        found[RANK, depth, None] = rank
    outputs = measured.analysis.outputs
    if outputs is not None and measured.own_classes:
        found[ACCURACY, None, None] = (outputs.argmax(dim=1) == measured.targets).float()
    return found, chances


def _finding(key: Key, values: Tensor, chance: float | None) -> Finding:
    name, tap, kind = key
    if name == RATIO:
        interval = bootstrap(values.exp(), statistic=geometric_mean)
        return interval_finding(name, interval, tap, kind, chance=1.0, unit="x")
    unit = "%" if name in (IOU, BEST, ACCURACY) else ""
    return interval_finding(name, bootstrap(values), tap, kind, chance=chance, unit=unit)


def _coherence(measured: Sequence[Measured]) -> list[Finding]:
    known = [m.coherence for m in measured if m.coherence is not None]
    if len(known) != len(measured):
        return []
    intervals = [coherence.interval() for coherence in known]
    # Of several seeds the mean of their ends: an interval over samples for a typical run.
    value, low, high = (sum(getattr(i, part) for i in intervals) / len(intervals) for part in ("value", "low", "high"))
    return [Finding(COHERENCE, value, low=low, high=high, chance=0.0, samples=intervals[0].samples)]


def _differences(names: Sequence[str], values: dict[str, dict[Key, Tensor]]) -> list[Finding]:
    """What the paper claims, in differences image by image."""
    base, *others = names
    pairs: list[tuple[str, str, str, str]] = []
    for name in others:
        pairs += [(name, LAYER, base, HOST), (name, HOST, base, HOST), (name, LAYER, name, HOST)]
    pairs += [(a, LAYER, b, LAYER) for place, a in enumerate(others) for b in others[place + 1 :]]
    found = []
    for measure in (IOU, BEST, AUROC):
        for kind in KINDS:
            for arm, tap, other, other_tap in pairs:
                if kind == "attention" and LAYER in (tap, other_tap):  # the layer's own is its block's
                    tap, other_tap = (t if t == HOST else "attention_weights" for t in (tap, other_tap))
                first, second = (values[n].get((measure, t, kind)) for n, t in ((arm, tap), (other, other_tap)))
                if first is not None and second is not None:
                    name = f"{measure}: {arm}, {tap} - {other}, {other_tap}"
                    gap = paired_difference(first, second)
                    unit = "" if measure == AUROC else "%"
                    found.append(interval_finding(name, gap, None, kind, chance=0.0, unit=unit))
    return found


def report_text(comparison: Comparison, rule: str) -> str:
    """The comparison as a table of arms, and the list of differences."""
    arms = comparison.arms
    keys = list(dict.fromkeys((f.name, f.kind, f.tap) for found in arms.values() for f in found))
    keys.sort(key=lambda key: [IOU, BEST, AUROC, RATIO, RANK, COHERENCE, ACCURACY].index(key[0]))
    lines = [f"{comparison.images} images; relevant: {comparison.what}, by the rule '{rule}'", ""]
    width = 30
    last = None
    for name, kind, tap in keys:
        if name != last:
            head = name + (", %" if name in (IOU, BEST, ACCURACY) else "")
            lines += ["", head.ljust(46) + "".join(arm.rjust(width) for arm in arms), "-" * (46 + width * len(arms))]
            last = name
        cells = []
        for found in arms.values():
            match = next((f for f in found if (f.name, f.kind, f.tap) == (name, kind, tap)), None)
            cells.append(_cell(match).rjust(width))
        where = " at ".join(part for part in (kind, tap) if part)
        lines.append(f"  {where:44s}" + "".join(cells))
    lines += ["", "Differences image by image; an interval without 0 is a sure difference on such images"]
    return "\n".join([*lines, findings_table(comparison.differences)])


def _cell(finding: Finding | None) -> str:
    if finding is None:
        return "-"
    digits = 1 if finding.unit == "%" or finding.name == RANK else 3
    text = f"{finding.value:.{digits}f} [{finding.low:.{digits}f}, {finding.high:.{digits}f}]"
    return text + (f" ({finding.chance:.{digits}f})" if finding.chance is not None and finding.name == IOU else "")


def draw(comparison: Comparison) -> dict[str, Image.Image]:
    """Figures by file name."""
    from frozenllm.vision2d.study_pictures import depth_lines, dots  # matplotlib takes a second to import

    names = list(comparison.arms)
    colours = {name: HOST_COLOUR if place == 0 else COLOURS[place - 1] for place, name in enumerate(names)}

    def series(measure: str, kind: str | None) -> dict[str, list[Finding]]:
        found = {n: [f for f in fs if f.name == measure and f.kind == kind] for n, fs in comparison.arms.items()}
        return {name: fs for name, fs in found.items() if fs}

    pictures = {}
    for file, measure, label in (
        ("iou.png", IOU, "IoU, %, honest threshold"),
        ("iou_upper_bound.png", BEST, "IoU, %, best of each image"),
        ("auroc.png", AUROC, "AUROC"),
    ):
        panels = {kind: found for kind in KINDS if (found := series(measure, kind))}
        pictures[file] = dots(panels, label, colours)
    deep = {"activation on the object\nover elsewhere": series(RATIO, None), "effective rank": series(RANK, None)}
    deep = {label: found for label, found in deep.items() if found}
    pictures["depth.png"] = depth_lines(deep, colours, {"activation on the object\nover elsewhere": 1.0})
    return pictures
