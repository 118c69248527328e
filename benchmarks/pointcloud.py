"""Point clouds: farthest point sampling against a plain loop, and Point-BERT with and without the frozen layer.

    python benchmarks/pointcloud.py --json runs/bench/pointcloud.json
    python benchmarks/pointcloud.py --tiny                        # seconds: does it run?

Sampling: 32 clouds of 8192 points to 512, beside the loop that one would write with `torch.cdist`. Frozen layer: a
training step (forward and backward) of Point-BERT with a random block of LLaMA-7B's size, by the exact shortcuts and by
the dense formulation of the official code, relative to the host alone. The two sides of a ratio take turns, so that
other load falls on both alike; medians over turns are reported.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from common import LLAMA_7B, TINY_BLOCK, ratio, take_turns, write_figures
from torch import Tensor

from frozenllm.pointcloud import PointBERT
from frozenllm.pointcloud.ops import farthest_point_sample

LIMIT = 0.5


def plain_loop(xyz: Tensor, num: int) -> Tensor:
    """Farthest point sampling as one writes it first: `torch.cdist` to the latest point, minimum, argmax."""
    chosen = torch.zeros(xyz.shape[0], num, dtype=torch.int64, device=xyz.device)
    nearest = torch.full(xyz.shape[:2], torch.inf, device=xyz.device)
    rows = torch.arange(xyz.shape[0], device=xyz.device)
    for step in range(1, num):
        latest = xyz[rows, chosen[:, step - 1]].unsqueeze(1)
        nearest = torch.minimum(nearest, torch.cdist(latest, xyz)[:, 0])
        chosen[:, step] = nearest.argmax(dim=1)
    return chosen


def sampling(clouds: int, points: int, num: int, turns: int, device: str) -> dict[str, Any]:
    xyz = torch.randn(clouds, points, 3, generator=torch.Generator().manual_seed(0)).to(device)
    calls = {"ours": lambda: farthest_point_sample(xyz, num), "plain": lambda: plain_loop(xyz, num)}
    times = take_turns(calls, turns, device)
    same = float((calls["ours"]() == calls["plain"]()).float().mean())
    found = ratio(times["ours"], times["plain"])
    print(f"farthest point sampling, {clouds} x {points} -> {num}")
    for name, values in times.items():
        print(f"  {name:24s} {statistics.median(values):8.3f} s")
    print(f"  ours relative to plain: {found:.2f} (limit {LIMIT}); equal indices {100 * same:.2f} %", flush=True)
    return {"what": "sampling", "seconds": times, "relative": found, "limit": LIMIT, "equal": same}


def frozen_layer(batch: int, points: int, groups: int, spec: dict[str, int], turns: int, device: str) -> dict[str, Any]:
    xyz = torch.randn(batch, points, 3, generator=torch.Generator().manual_seed(0)).to(device)
    llm = {"kind": "random", "spec": spec, "seed": 0}
    models = {
        "host": PointBERT(num_groups=groups),
        "shortcut": PointBERT(num_groups=groups, llm=llm),
        "dense": PointBERT(num_groups=groups, llm={**llm, "exact": "dense"}),
    }

    def step(model: PointBERT) -> Callable[[], None]:
        model.to(device).train()

        def run() -> None:
            model.zero_grad()
            model(xyz).square().mean().backward()

        return run

    times = take_turns({name: step(model) for name, model in models.items()}, turns, device)
    relative = {name: ratio(times[name], times["host"]) for name in times}
    print(f"training step of Point-BERT, batch {batch}, {points} points, {groups} groups, all tokens read")
    for name, values in times.items():
        print(f"  {name:24s} {statistics.median(values):8.3f} s   {relative[name]:6.2f} x host")
    found = ratio(times["shortcut"], times["dense"])
    print(f"  shortcut relative to dense: {found:.2f}", flush=True)
    return {"what": "training step", "groups": groups, "seconds": times, "relative": relative, "of_dense": found}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--groups", type=int, nargs="+", default=[64], help="64, 256, 512: 1k, 4k, 8k points")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--tiny", action="store_true", help="small clouds and a small block: only to see that it runs")
    parser.add_argument("--json", type=Path, help="write the figures here too")
    args = parser.parse_args()
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {args.device}", flush=True)
    if args.tiny:
        rows = [sampling(2, 256, 32, 1, args.device), frozen_layer(2, 128, 8, TINY_BLOCK, 1, args.device)]
    else:
        rows = [sampling(32, 8192, 512, args.turns, args.device)]
        for groups in args.groups:
            rows.append(frozen_layer(args.batch, groups * 16, groups, LLAMA_7B, args.turns, args.device))
    write_figures(args.json, rows)


if __name__ == "__main__":
    main()
