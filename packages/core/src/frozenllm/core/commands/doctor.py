"""``frozenllm doctor``: what is installed here, what of it works, and how to mend what does not."""

from __future__ import annotations

import argparse
import json
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import constants

from frozenllm.core.checkup import BROKEN, MISSING, WORKS, Outcome, examine
from frozenllm.core.environment import environment
from frozenllm.core.toy_folder import toy_root
from frozenllm.core.weights.hub import cache_root


def add(commands: Any) -> None:
    """Register the command's arguments."""
    doctor = commands.add_parser(
        "doctor",
        help="say what is installed here, try all of it, and name the fix for what does not work",
        description="Versions, devices and folders; then every part of every installed package of this project is "
        "tried. Parts of extras that are not installed are missing, which is no fault. The exit code is 1 if something "
        "that is installed or needed does not work.",
    )
    doctor.add_argument("--json", action="store_true", help="print JSON instead of text")
    doctor.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print the report; returns 1 if something is broken, else 0."""
    machine = {**environment(), "folders": folders()}
    if args.json:
        outcomes = list(examine())
        report = {**machine, "parts": [asdict(outcome) for outcome in outcomes], "works": _healthy(outcomes)}
        print(json.dumps(report, indent=2))
        return 0 if _healthy(outcomes) else 1
    _print_machine(machine)
    print("\nparts")
    outcomes = []
    for outcome in examine():
        outcomes.append(outcome)
        print(f"  {outcome.status:<8} {outcome.package:<11} {outcome.name}: {outcome.detail}", flush=True)
        if outcome.fix:
            print(f"  {'':<20} -> {outcome.fix}", flush=True)
    counts = {status: sum(outcome.status == status for outcome in outcomes) for status in (WORKS, MISSING, BROKEN)}
    print(f"\n{counts[WORKS]} parts work, {counts[MISSING]} are not installed, {counts[BROKEN]} are broken")
    return 0 if _healthy(outcomes) else 1


def folders() -> dict[str, dict[str, Any]]:
    """Where this project and the hub keep files: path, whether it is there, bytes free on its disk."""
    places = {
        "blocks": cache_root(),
        "hub": Path(constants.HF_HUB_CACHE),
        "toy data": toy_root(),
        "runs": Path.cwd() / "runs",
    }
    return {
        name: {"path": str(path), "exists": path.exists(), "free_bytes": shutil.disk_usage(_existing(path)).free}
        for name, path in places.items()
    }


def _existing(path: Path) -> Path:
    """The folder itself, or the nearest one above it that is there."""
    return next(folder for folder in (path, *path.absolute().parents) if folder.exists())


def _healthy(outcomes: list[Outcome]) -> bool:
    return all(outcome.status != BROKEN for outcome in outcomes)


def _print_machine(machine: dict[str, Any]) -> None:
    cuda = f"CUDA {machine['cuda']}" if machine["cuda"] else "no CUDA"
    rows = [
        ("Python", f"{machine['python']}, {machine['platform']}"),
        ("processor", f"{machine['processor']}, {machine['cpu_count']} threads, {machine['threads']} used by torch"),
        ("GPU", ", ".join(machine["gpus"]) or "none"),
        ("torch", f"{torch.__version__}, built with {cuda}"),
    ]
    rows += [(name, version) for name, version in machine["packages"].items() if name != "torch"]
    print("versions")
    for name, value in rows:
        print(f"  {name:<20} {value}")
    print("\nfolders")
    for name, place in machine["folders"].items():
        state = "" if place["exists"] else ", not there yet"
        print(f"  {name:<20} {place['path']} ({place['free_bytes'] / 1e9:.0f} GB free{state})")
