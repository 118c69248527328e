"""What the tests of every domain's training tool share."""

from __future__ import annotations

import importlib
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from processes import call

from frozenllm.core.training import ArmResult, RunResult, compose_config, train

TOOLS = Path(__file__).parents[2] / "tools"


def call_tool(domain: str, *arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """``python tools/train_<domain>.py ...`` in a process of its own."""
    return call([sys.executable, str(TOOLS / f"train_{domain}.py"), *arguments], cwd)


def trained(config: str, *overrides: str) -> RunResult:
    """A run in this process; torch's number of threads is put back afterwards."""
    threads = torch.get_num_threads()
    try:
        return train(compose_config(config, [*overrides, "runtime.console=false"]))
    finally:
        torch.set_num_threads(threads)


def block_weights(state: Mapping[str, Any]) -> list[str]:
    """What a checkpoint should not have: names of weights of frozen blocks."""
    return [name for name in state if ".block." in name and not name.endswith("_extra_state")]


def quick_toys(monkeypatch: pytest.MonkeyPatch, folder: Path, *overrides: str) -> dict[str, Any]:
    """Make toy runs, which a tool starts by itself, short ones in a folder.

    Returns:
        The ``arms`` and ``overrides`` of the toy run, once there was one.
    """
    monkeypatch.chdir(folder)
    module = importlib.import_module("frozenllm.core.training.compare")  # its package has a function of that name
    compare, seen = module.compare, {}

    def quick(package: str, arms: Mapping[str, Sequence[str]], **options: Sequence[str]) -> list[ArmResult]:
        seen.update(options, arms=dict(arms))
        return compare(package, arms, overrides=[*options["overrides"], *overrides])

    monkeypatch.setattr(module, "compare", quick)
    return seen
