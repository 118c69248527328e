"""``frozenllm bench``: a training step of the frozen layer, timed on this machine."""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

from frozenllm.core.ablations import random_block
from frozenllm.core.block import LLMBlock
from frozenllm.core.commands.common import SOURCE_HELP, parse_device
from frozenllm.core.layer import FrozenLLMLayer
from frozenllm.core.spec import BlockSpec
from frozenllm.core.weights import parse_dtype, read_specs


def add(commands: Any) -> None:
    """Register the command's arguments."""
    bench = commands.add_parser(
        "bench",
        help="time the frozen layer on this machine, against its plain computation",
        description="Times a training step (forward, backward) of one frozen layer: the plain computation of every "
        "token, and the exact shortcuts, for all tokens and for one readout token. Weights are random: only their "
        "shapes matter. The ratio is the plain time over the other one, from rounds that alternate between them.",
    )
    bench.add_argument("--source", metavar="SOURCE", help=f"take the block's sizes from here: {SOURCE_HELP}")
    bench.add_argument("--hidden", type=int, default=1024, help="width of the block (default %(default)s)")
    bench.add_argument("--heads", type=int, default=16, help="heads of the block (default %(default)s)")
    bench.add_argument("--ffn", type=int, help="width of its feed-forward network (default: 8/3 of --hidden)")
    bench.add_argument("--dim", type=int, default=384, help="width of the host's tokens (default %(default)s)")
    bench.add_argument("--tokens", type=int, default=197, help="tokens of a sample (default %(default)s)")
    bench.add_argument("--batch", type=int, default=4, help="samples of a batch (default %(default)s)")
    bench.add_argument("--dtype", default="float32", help="what the block computes in (default %(default)s)")
    bench.add_argument("--device", default="cpu", help="cpu, cuda, ... (default %(default)s)")
    bench.add_argument("--repeats", type=int, default=5, help="timed rounds (default %(default)s)")
    bench.add_argument("--json", action="store_true", help="print JSON instead of text")
    bench.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Time the cases and print them; returns the exit code."""
    for name in ("hidden", "heads", "ffn", "dim", "tokens", "batch", "repeats"):
        if getattr(args, name) is not None and getattr(args, name) < 1:
            raise ValueError(f"--{name} must be positive, not {getattr(args, name)}.")
    device = parse_device(args.device)
    dtype = parse_dtype(args.dtype)
    spec = read_specs(args.source)[0] if args.source else _spec_from(args)
    block = random_block(spec, dtype=dtype, device=device)
    tokens = torch.randn(args.batch, args.tokens, args.dim, device=device)
    cases: dict[str, Callable[[], None]] = {
        "plain, all tokens": _step(block, tokens, "dense", None),
        "shortcut, all tokens": _step(block, tokens, "auto", None),
        "shortcut, one token": _step(block, tokens, "auto", slice(0, 1)),
    }
    seconds = _time_in_turns(cases, args.repeats, device)
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    plain = medians["plain, all tokens"]
    if args.json:
        cases_out = {n: {"seconds": seconds[n], "median": m, "speedup": plain / m} for n, m in medians.items()}
        print(json.dumps({"spec": spec.to_dict(), "threads": torch.get_num_threads(), "cases": cases_out}, indent=2))
        return 0
    threads = f", {torch.get_num_threads()} thread(s)" if device.type == "cpu" else ""
    print(f"block {spec.hidden_size} wide, {spec.num_parameters():,} weights in {args.dtype} on {device}{threads}")
    print(f"{args.batch} x {args.tokens} tokens, {args.dim} wide; training step, median of {args.repeats} rounds")
    for name, median in medians.items():
        spread = f"{min(seconds[name]) * 1e3:.1f}-{max(seconds[name]) * 1e3:.1f}"
        print(f"  {name:<21} {median * 1e3:9.1f} ms ({spread})   {plain / median:5.2f} x")
    return 0


def _step(block: LLMBlock, tokens: torch.Tensor, exact: Any, readout: slice | None) -> Callable[[], None]:
    torch.manual_seed(0)
    layer = FrozenLLMLayer(tokens.shape[-1], block, exact=exact).to(tokens.device)
    tokens = tokens.clone().requires_grad_()  # as behind trainable layers of a host

    def step() -> None:
        layer.zero_grad(set_to_none=True)
        tokens.grad = None
        layer(tokens, readout=readout).sum().backward()

    return step


def _time_in_turns(cases: dict[str, Callable[[], None]], repeats: int, device: torch.device) -> dict[str, list[float]]:
    """Seconds of each round; the cases take turns, so that a drift of the machine's speed meets all of them."""
    seconds: dict[str, list[float]] = {name: [] for name in cases}
    for round_ in range(repeats + 1):
        for name, step in cases.items():
            _synchronize(device)
            start = time.perf_counter()
            step()
            _synchronize(device)
            if round_ > 0:  # the first round warms up
                seconds[name].append(time.perf_counter() - start)
    return seconds


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _spec_from(args: argparse.Namespace) -> BlockSpec:
    if args.hidden % args.heads:
        raise ValueError(f"--hidden ({args.hidden}) must be a multiple of --heads ({args.heads}).")
    return BlockSpec(
        hidden_size=args.hidden,
        num_heads=args.heads,
        num_kv_heads=args.heads,
        head_dim=args.hidden // args.heads,
        intermediate_size=args.ffn or args.hidden * 8 // 3,
    )
