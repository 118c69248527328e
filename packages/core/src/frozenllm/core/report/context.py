"""What the templates show of a section: plain values and texts."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from frozenllm.core.analysis.findings import value_text
from frozenllm.core.analysis.study import Finding
from frozenllm.core.report.arms import Arm, Section
from frozenllm.core.report.figures import decimals, figures, number
from frozenllm.core.report.maps import maps_data, picture_uri, script_json
from frozenllm.core.report.reproduce import command
from frozenllm.core.report.runs import Run
from frozenllm.core.report.studies import Studied, finding_groups, range_text, studies

PICTURE = 1000
"""Longest side of a picture that has no marks, in pixels."""


def section_context(section: Section, study: str, limit: int | None, samples: int) -> dict[str, Any]:
    """Everything that ``section.html`` names.

    Args:
        section: The section.
        study: See `frozenllm.core.report.write_report`.
        limit: See there.
        samples: See there.
    """
    studied, problems = studies(section.arms, study, limit, samples)
    maps = maps_data(studied)
    hosts = _once(arm.host.name for arm in section.arms if arm.host)
    return {
        "domain": section.domain,
        "metric": section.metric,
        "lower_is_better": section.lower_is_better,
        "hosts": hosts,
        "tested": any(arm.row.test for arm in section.arms),
        "arms": [_arm(arm) for arm in section.arms],
        "others": [_arm(arm) for arm in section.all_arms if arm not in section.arms],
        "figures": figures(section),
        "maps": None if maps is None else script_json(maps),
        "studies": [
            {
                "name": entry.arm.name,
                "colour": entry.arm.colour,
                "pictures": [(caption, picture_uri(p, PICTURE)) for caption, p in entry.studies[0].pictures.items()],
            }
            for entry in studied
        ],
        "titles": _once(_title(entry) for entry in studied),
        "notes": _once(note for entry in studied for study in entry.studies for note in study.notes),
        "several_studies": any(len(entry.studies) > 1 for entry in studied),
        "studied_samples": _studied_samples(studied),
        "findings": [
            {
                "name": name,
                "rows": [
                    {
                        "where": row.where.replace("_", " "),
                        "cells": [_finding(values) for values in row.values],
                        "chance": row.chance,
                    }
                    for row in rows
                ],
            }
            for name, rows in finding_groups(studied).items()
        ],
        "problems": problems,
        "trained": [_trained(arm) for arm in section.arms],
        "data_differs": len({json.dumps(a.runs[0].config.get("data", {}).get("val")) for a in section.arms}) > 1,
    }


def _once(texts: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(texts))


def _title(entry: Studied) -> str:
    """What was asked, said for all arms alike."""
    config = entry.arm.runs[0].config
    return entry.studies[0].title.replace(f"{config.get('recipe')}/{config.get('name')}", "these runs")


def _studied_samples(studied: Sequence[Studied]) -> str:
    counts = sorted({f.samples for entry in studied for study in entry.studies for f in study.findings if f.samples})
    if not counts:
        return ""
    return f"Over {counts[0]:,} samples." if len(counts) == 1 else f"Over {counts[0]:,} to {counts[-1]:,} samples."


def _arm(arm: Arm) -> dict[str, Any]:
    row = arm.row
    difference, places = arm.difference, decimals(row.values)
    interval = None
    if difference is not None and difference.low is not None and difference.high is not None:
        interval = [f"{end:+.{places}f}" for end in (difference.low, difference.high)]
    return {
        "name": arm.name,
        "colour": arm.colour,
        "is_host": row.is_host,
        "seeds": len(arm.runs),
        "value": _spread(row.values),
        "best": _spread(row.best),
        "test": _spread(row.test),
        "difference": f"{difference.mean:+.{places}f}" if difference else None,
        "interval": interval,
        "pairs": difference.pairs if difference else 0,
        "note": row.note,
        "trainable": row.trainable,
        "frozen": row.frozen,
        "step": row.step_seconds,
        "relative_step": arm.relative_step,
        "flops": row.flops,
        "dense_flops": row.dense_flops,
        "latency": row.latency,
        "checkpoint": arm.checkpoint_bytes,
    }


def _spread(values: Sequence[float]) -> dict[str, Any] | None:
    if not values:
        return None
    mean = statistics.mean(values)
    spread = f"{statistics.stdev(values):.{decimals(values)}f}" if len(values) > 1 else None
    return {"mean": number(mean), "spread": spread}


def _finding(findings: Sequence[Finding] | None) -> dict[str, Any] | None:
    """A cell of the table: one seed with its bootstrap interval, several with their mean and range."""
    if not findings:
        return None
    values, unit = [finding.value for finding in findings], findings[0].unit
    low, high = (findings[0].low, findings[0].high) if len(findings) == 1 else (min(values), max(values))
    return {
        "value": value_text(sum(values) / len(values), unit),
        "range": None if low is None or high is None else range_text(low, high, unit),
        "seeds": len(values),
    }


def _trained(arm: Arm) -> dict[str, Any]:
    run = arm.runs[0]
    config = run.config
    return {
        "name": arm.name,
        "colour": arm.colour,
        "recipe": config.get("recipe"),
        "seeds": ", ".join(str(run.seed) for run in arm.runs),
        "budget": f"{run.summary.get('epochs')} epochs, {run.summary.get('iterations')} iterations, "
        f"batch {config.get('data', {}).get('batch_size')}",
        "model": _short(config.get("model")),
        "data": _short(config.get("data", {}).get("train")),
        "llm": _short(config["llm"]),
        "records": arm.records,
        "record_note": "" if arm.kind in ("none", "mlp") and not arm.records else arm.record_note,
        "kind": arm.kind,
        "command": command(run),
        "folders": [str(run.folder) for run in arm.runs],
        "environment": _environment(run),
    }


def _short(group: Any) -> str:
    """A config group in a line, without what is not set."""
    if not isinstance(group, Mapping):
        return str(group)
    flat = [f"{key}={json.dumps(v) if isinstance(v, dict | list) else v}" for key, v in group.items() if v is not None]
    return ", ".join(flat)


def _environment(run: Run) -> dict[str, str]:
    try:
        known = json.loads((run.folder / "environment.json").read_text(encoding="utf-8"))
        packages = ", ".join(f"{name} {version}" for name, version in known["packages"].items())
        devices = ", ".join(known["gpus"]) or f"{known['processor']}, {known['threads']} threads"
        return {
            "machine": f"{known['platform']}, {devices}",
            "packages": f"Python {known['python']}, {packages}",
            "command": " ".join(map(str, known["command"])),
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}
