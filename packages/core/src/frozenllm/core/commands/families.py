"""``frozenllm families``: what can be read."""

from __future__ import annotations

import argparse
from typing import Any

from frozenllm.core.families import FAMILIES


def add(commands: Any) -> None:
    """Register the command's arguments."""
    families = commands.add_parser("families", help="list the model families that can be read")
    families.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print them; returns the exit code."""
    rows = [("model_type", "models"), *((", ".join(family.model_types), family.models) for family in FAMILIES)]
    width = max(len(names) for names, _ in rows)
    for names, models in rows:
        print(f"{names:<{width}}  {models}")
    return 0
