"""Training steps of the motion hosts with a frozen block of LLaMA-7B's size: exact shortcuts against the plain way.

    python benchmarks/motion.py --json runs/bench/motion.json      # some minutes on two cores
    python benchmarks/motion.py --tiny                             # seconds: does it run?

Every row is a host and a place of the layer. Host alone, layer with shortcuts and layer without ("dense": every token
through the block, as the official code computes it) take turns, and a figure is a ratio within one turn, so that other
load falls on all alike; the median over turns is reported. A step is forward, loss, backward and AdamW on a batch of
made-up scenes; the block's weights are random (speed depends on neither).
"""

from __future__ import annotations

import argparse
import statistics
from functools import partial
from pathlib import Path
from typing import Any

import torch
from common import LLAMA_7B, TINY_BLOCK, ratio, take_turns, write_figures
from torch import Tensor

from frozenllm.core import BlockSpec, LLMBlock, random_block
from frozenllm.motion.models import MMTransformer, VectorNet
from frozenllm.motion.task import MotionTask
from frozenllm.motion.testing import random_inputs

HOSTS = {"vectornet": VectorNet, "mmtransformer": MMTransformer}
HOST, LAYER, DENSE = "host alone", "frozen layer", "frozen layer, dense"
HORIZON = {20: 30, 50: 60}


def build(host: str, arm: str, insert: str, block: LLMBlock, horizon: int) -> tuple[MotionTask, torch.optim.Optimizer]:
    """A task around the host, and its optimizer."""
    torch.manual_seed(0)
    model = HOSTS[host](horizon, insert=insert, llm=None if arm == HOST else block)
    if arm == DENSE:
        model.llm.exact = "dense"
    return MotionTask(model), torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=5e-4)


def step(task: MotionTask, optimizer: torch.optim.Optimizer, batch: dict[str, Any]) -> None:
    """One training step."""
    optimizer.zero_grad()
    losses: dict[str, Tensor] = task(**batch, mode="loss")
    torch.stack(list(losses.values())).sum().backward()
    optimizer.step()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hosts", nargs="+", default=list(HOSTS), choices=list(HOSTS))
    parser.add_argument("--inserts", nargs="+", default=["before_decoder", "after_subgraph"])
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--agents", type=int, default=20, help="agents of a scene")
    parser.add_argument("--lanes", type=int, default=80, help="lanes of a scene")
    parser.add_argument("--history", type=int, default=20, choices=list(HORIZON), help="20: Argoverse 1; 50: 2")
    parser.add_argument("--turns", type=int, default=3, help="timed steps of each arm, after one that does not count")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"], help="of the block")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--tiny", action="store_true", help="a tiny block and batch: only to see that it runs")
    parser.add_argument("--json", type=Path, help="write the figures here too")
    args = parser.parse_args()
    if args.tiny:
        args.batch, args.agents, args.lanes, args.turns = 2, 4, 6, 1
    dtype, device = getattr(torch, args.dtype), torch.device(args.device)
    block = random_block(BlockSpec(**(TINY_BLOCK if args.tiny else LLAMA_7B)), dtype=dtype)
    inputs = random_inputs(args.batch, args.agents, args.lanes, history=args.history, full=True)
    horizon = HORIZON[args.history]
    future = torch.randn(args.batch, horizon, 2).cumsum(dim=1)
    batch: dict[str, Any] = {
        "inputs": {name: x.to(device) for name, x in inputs.items()},
        "targets": {"future": future.to(device), "valid": torch.ones(args.batch, horizon, dtype=torch.bool).to(device)},
    }
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {args.device}, block in {args.dtype}")
    print(f"{args.batch} scenes of {args.agents} agents and {args.lanes} lanes", flush=True)
    rows: list[dict[str, Any]] = []
    for host in args.hosts:
        for insert in args.inserts:
            calls = {}
            for arm in (HOST, LAYER, DENSE):
                task, optimizer = build(host, arm, insert, block, horizon)
                calls[arm] = partial(step, task.to(device).train(), optimizer, batch)
            seconds = take_turns(calls, args.turns, device)
            row = {
                "host": host,
                "insert": insert,
                "step_seconds": seconds,
                "dense_over_shortcut": ratio(seconds[DENSE], seconds[LAYER]),
                "shortcut_over_host": ratio(seconds[LAYER], seconds[HOST]),
                "dense_over_host": ratio(seconds[DENSE], seconds[HOST]),
            }
            rows.append(row)
            print(f"\n{host}, {insert}")
            for arm, times in seconds.items():
                print(f"  {arm:20s} {1000 * statistics.median(times):9.1f} ms a step")
            print(
                f"  dense / shortcut {row['dense_over_shortcut']:.1f}, shortcut / host {row['shortcut_over_host']:.2f}"
            )
    settings = {name: getattr(args, name) for name in ("batch", "agents", "lanes", "history", "dtype", "device")}
    write_figures(args.json, rows, **settings)


if __name__ == "__main__":
    main()
