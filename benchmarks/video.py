"""The frozen layer on all tokens of a video clip, at LLaMA-7B's sizes: dense against folded, time and peak memory.

    python benchmarks/video.py                            # several minutes and 6 GB on two cores
    python benchmarks/video.py --dtypes bfloat16 --clips 2
    python benchmarks/video.py --tiny                     # only to see that it runs

A training step is forward and backward of the layer alone, with the 1568 tokens of 16 frames at 224 pixels (tubelets
of 2 x 16 x 16). Times are taken in turns in one process, so that other load falls on both alike; peak memory in a
process of its own for each, above what the layer and its inputs take. Weights are random: neither depends on them.
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from common import LLAMA_7B, TINY_BLOCK, peak_bytes, ratio, take_turns, write_figures

from frozenllm.core import BlockSpec, FrozenLLMLayer, random_block

ARMS = {"dense": "dense", "folded": "auto"}  # what FrozenLLMLayer calls them
WIDTHS = {"small": 384, "base": 768}


def make_step(arm: str, case: dict[str, Any]) -> Callable[[], None]:
    """Forward and backward of a new layer."""
    dtype = getattr(torch, case["dtype"])
    block = random_block(BlockSpec(**case["spec"]), dtype=dtype, device=case["device"])
    layer = FrozenLLMLayer(case["dim"], block, exact=ARMS[arm]).to(case["device"]).train()
    tokens = torch.randn(case["clips"], case["tokens"], case["dim"], device=case["device"], requires_grad=True)

    def step() -> None:
        layer(tokens).float().square().mean().backward()
        layer.zero_grad()
        tokens.grad = None

    return step


def peak_memory(arm: str, case: dict[str, Any]) -> int:
    """Bytes that a step takes at its peak, above what was there before it."""
    torch.set_num_threads(case["threads"])
    step = make_step(arm, case)
    if case["device"] == "cuda":
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        step()
        return torch.cuda.max_memory_allocated() - before
    return peak_bytes(step)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--hosts", nargs="+", default=["small"], choices=list(WIDTHS), help="whose tokens: ViT-S, ViT-B"
    )
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"], choices=["float32", "bfloat16"])
    parser.add_argument("--clips", type=int, default=1, help="batch size")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--tiny", action="store_true", help="a tiny block and few tokens")
    parser.add_argument("--json", type=Path, help="write the figures here too")
    args = parser.parse_args()
    threads = torch.get_num_threads()
    print(f"torch {torch.__version__}, {threads} threads, {args.device}, {args.clips} clip(s)", flush=True)
    rows = []
    spawn = multiprocessing.get_context("spawn")
    for host in args.hosts:
        for dtype in args.dtypes:
            case = {"dim": WIDTHS[host], "tokens": 1568, "clips": args.clips, "dtype": dtype, "device": args.device}
            case |= {"spec": TINY_BLOCK if args.tiny else LLAMA_7B, "threads": threads}
            if args.tiny:
                case |= {"dim": 16, "tokens": 64}
            memory = {}
            for arm in ARMS:
                with spawn.Pool(1) as pool:
                    memory[arm] = pool.apply(peak_memory, (arm, case))
            seconds = take_turns({arm: make_step(arm, case) for arm in ARMS}, args.turns, args.device)
            medians = {arm: statistics.median(values) for arm, values in seconds.items()}
            row = {
                "what": f"frozen layer, {case['tokens']} tokens of ViT-{host[0].upper()}" + " (tiny sizes)" * args.tiny,
                "dtype": dtype,
                "clips": args.clips,
                "seconds": seconds,
                "peak_bytes": memory,
                "dense_over_folded_time": ratio(seconds["dense"], seconds["folded"]),
                "dense_over_folded_memory": memory["dense"] / max(memory["folded"], 1),
            }
            rows.append(row)
            print(f"\n{row['what']}, {dtype}")
            for arm in ARMS:
                print(f"  {arm:7s} {medians[arm]:8.3f} s a step   {memory[arm] / 2**20:8.0f} MiB at the peak")
            time_ratio, memory_ratio = row["dense_over_folded_time"], row["dense_over_folded_memory"]
            print(f"  dense takes {time_ratio:.2f} x the time and {memory_ratio:.2f} x the memory", flush=True)
    write_figures(args.json, rows)


if __name__ == "__main__":
    main()
