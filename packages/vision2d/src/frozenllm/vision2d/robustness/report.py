"""What an evaluation leaves: ``results.json``, ``table.txt`` and ``robustness.png``."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from frozenllm.core.training.folder import write_text
from frozenllm.vision2d.robustness.models import Candidate
from frozenllm.vision2d.robustness.scores import Counts, corruption_scores
from frozenllm.vision2d.robustness.sets import SEVERITIES, TITLES, EvalSet

RESULTS, TABLE, PLOT = "results.json", "table.txt", "robustness.png"


def results(candidate: Candidate, parts: Sequence[EvalSet], counts: Mapping[str, Counts]) -> dict[str, Any]:
    """Every figure, as it goes into ``results.json``.

    Args:
        candidate: The evaluated model.
        parts: The sets that were asked for.
        counts: By name, of the sets that are done.
    """
    sets: dict[str, Any] = {}
    for part in parts:
        if part.name not in counts:
            continue
        found = counts[part.name]
        sets[part.name] = {
            "top1": found.accuracy(1),
            "top5": found.accuracy(5),
            "images": found.images,
            "unreadable": found.unreadable,
            "missing_classes": found.missing_classes,
            "data": str(part.path),
        }
    corrupted = corruption_scores(counts) if any(part.corrupted for part in parts) else None
    return {
        "title": candidate.title,
        "model": candidate.identity,
        "transform": candidate.transform,
        "complete": all(part.name in counts for part in parts),
        "sets": sets,
        "imagenet_c": corrupted,
    }


def table(figures: Mapping[str, Any]) -> str:
    """The figures as text: a line per data set, then ImageNet-C in full."""
    model = figures["model"]
    lines = [
        f"{figures['title']}  ({model.get('checkpoint') or model.get('model')}, sha256 {model['sha256'][:12]})",
        "",
    ]
    lines.append(f"{'data set':<18}{'top-1 %':>9}{'top-5 %':>9}{'images':>12}  remarks")
    for family, title in TITLES.items():
        members = [entry for name, entry in figures["sets"].items() if name.partition("/")[0] == family]
        if not members:
            continue
        images, remarks = sum(entry["images"] for entry in members), _remarks(members)
        if family == "imagenet_c":
            scores = figures["imagenet_c"]
            mean = "-" if scores["top1"] is None else f"{scores['top1']:.2f}"
            remarks.insert(
                0, f"mean of {scores['evaluated']} of 75 parts" if scores["top1"] is None else "mean of 75 parts"
            )
            lines.append(f"{title:<18}{mean:>9}{'':>9}{images:>12,}  {', '.join(remarks)}")
            if scores["mce"] is not None:
                lines.append(
                    f"{title + ' mCE':<18}{scores['mce']:>9.2f}{'':>21}  error relative to AlexNet's, lower is better"
                )
        else:
            top1, top5 = members[0]["top1"], members[0]["top5"]
            lines.append(f"{title:<18}{top1:>9.2f}{top5:>9.2f}{images:>12,}  {', '.join(remarks)}".rstrip())
    if figures["imagenet_c"] and figures["imagenet_c"]["corruptions"]:
        lines += ["", f"{'ImageNet-C top-1 %':<20}" + "".join(f"{s:>8}" for s in SEVERITIES) + f"{'mean':>9}{'CE':>9}"]
        for name, row in figures["imagenet_c"]["corruptions"].items():
            values = [f"{row['top1'][str(s)]:.2f}" if str(s) in row["top1"] else "-" for s in SEVERITIES]
            ends = [f"{row[key]:.2f}" if key in row else "-" for key in ("mean", "ce")]
            lines.append(f"{name:<20}" + "".join(f"{v:>8}" for v in values) + "".join(f"{v:>9}" for v in ends))
    if not figures["complete"]:
        lines += ["", "Not all sets are done: the same command goes on with the rest."]
    return "\n".join(lines) + "\n"


def _remarks(members: Sequence[Mapping[str, Any]]) -> list[str]:
    remarks = []
    if missing := max(entry["missing_classes"] for entry in members):
        remarks.append(f"PARTIAL: {missing} classes missing")
    if unreadable := sum(entry["unreadable"] for entry in members):
        remarks.append(f"{unreadable} images unreadable, left out")
    return remarks


def write_report(folder: Path, figures: Mapping[str, Any], final: bool = True) -> None:
    """Write the results, and in the end the table and the plot.

    Args:
        folder: The output folder.
        figures: See `results`.
        final: False in between: only ``results.json``.
    """
    write_text(folder / RESULTS, json.dumps(figures, indent=2) + "\n")
    if final and figures["sets"]:
        write_text(folder / TABLE, table(figures))
        plot(folder / PLOT, figures)


def plot(path: Path, figures: Mapping[str, Any]) -> None:
    """Top-1 accuracy of every data set as bars; beside them ImageNet-C by corruption and severity."""
    from frozenllm.core.style import COLOURS, new_figure, styled  # matplotlib takes a second to import

    bars = {TITLES[name]: entry["top1"] for name, entry in figures["sets"].items() if name in TITLES}
    scores = figures["imagenet_c"] or {"corruptions": {}, "top1": None}
    if scores["top1"] is not None:
        bars[TITLES["imagenet_c"]] = scores["top1"]
    bars = {title: bars[title] for title in TITLES.values() if title in bars}
    rows = scores["corruptions"]
    panels = [panel for panel in (bars, rows) if panel]
    with styled():
        figure = new_figure(6.5 * len(panels), 5.5)
        axes = list(figure.subplots(1, len(panels), squeeze=False)[0])
        figure.suptitle(figures["title"])
        if bars:
            left = axes.pop(0)
            drawn = left.barh(list(bars), list(bars.values()), color=COLOURS[0])
            left.bar_label(drawn, fmt="%.1f", padding=3)
            left.invert_yaxis()
            left.set(xlim=(0, 100), xlabel="top-1 accuracy (%)")
            left.grid(visible=False, axis="y")
        if rows:
            right = axes.pop(0)
            values = [[row["top1"].get(str(s), float("nan")) for s in SEVERITIES] for row in rows.values()]
            right.imshow(values, vmin=0, vmax=100, cmap="viridis", aspect="auto")
            right.grid(visible=False)
            right.set(xlabel="severity", title="ImageNet-C, top-1 accuracy (%)")
            right.set_xticks(range(len(SEVERITIES)), [str(s) for s in SEVERITIES])
            right.set_yticks(range(len(rows)), list(rows))
            for y, row in enumerate(values):
                for x, value in enumerate(row):
                    if value == value:  # parts that are not done are not numbers
                        shade = "black" if value > 60 else "white"
                        right.text(x, y, f"{value:.0f}", ha="center", va="center", color=shade)
        figure.savefig(path, dpi=100)
