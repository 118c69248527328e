"""What the benchmarks share: the sizes that they run at, timing in turns, memory, and the file of figures."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

LLAMA_7B = {"hidden_size": 4096, "num_heads": 32, "num_kv_heads": 32, "head_dim": 128, "intermediate_size": 11008}
"""Arguments of `frozenllm.core.BlockSpec`: a block of LLaMA-7B's size."""
TINY_BLOCK = {"hidden_size": 64, "num_heads": 4, "num_kv_heads": 4, "head_dim": 16, "intermediate_size": 96}
"""A block for ``--tiny``, which only shows that a benchmark runs."""


def seconds(call: Callable[[], Any], device: str | torch.device = "cpu") -> float:
    """Of one call, with the device idle before and after."""
    _wait(device)
    start = time.perf_counter()
    call()
    _wait(device)
    return time.perf_counter() - start


def take_turns(
    calls: Mapping[str, Callable[[], Any]], turns: int, device: str | torch.device = "cpu"
) -> dict[str, list[float]]:
    """Seconds of every call in each turn, so that other load falls on all alike; a first turn does not count."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(turns + 1):
        for name, call in calls.items():
            taken = seconds(call, device)
            if turn:
                times[name].append(taken)
    return times


def ratio(above: Sequence[float], below: Sequence[float]) -> float:
    """Median over turns of one call's time over another's."""
    return statistics.median(a / b for a, b in zip(above, below, strict=True))


def peak_bytes(step: Callable[[], Any]) -> int:
    """Bytes of this process that a step takes at its peak, above what was there before it. Linux only."""
    Path("/proc/self/clear_refs").write_text("5")  # forget earlier peaks
    before = _status("VmRSS")
    step()
    return max(_status("VmHWM") - before, 0)


def write_figures(path: Path | None, rows: Sequence[Mapping[str, Any]], **settings: Any) -> None:
    """Write the figures as JSON, with what they were measured with; None for nowhere."""
    if path is None:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    figures = {"torch": torch.__version__, "threads": torch.get_num_threads(), **settings, "rows": list(rows)}
    path.write_text(json.dumps(figures, indent=2) + "\n")
    print(f"\nwrote {path}")


def _wait(device: str | torch.device) -> None:
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize()


def _status(key: str) -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(f"{key}:"))
    return 1024 * int(line.split()[1])
