"""``frozenllm cost``: memory and operations of a training step, counted without running it."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import torch

from frozenllm.core.commands.common import SOURCE_HELP
from frozenllm.core.cost import (
    HOSTS,
    LLMS,
    HostShape,
    block_bytes,
    host_step,
    layer_step,
    meta_block,
    meta_host,
    trained,
)
from frozenllm.core.memory import process_memory
from frozenllm.core.packed import check_quantize
from frozenllm.core.spec import BlockSpec
from frozenllm.core.weights import parse_dtype, read_specs

_STORAGES = (("float32", torch.float32, None), ("bfloat16", torch.bfloat16, None))
_STORAGES += (("int8", torch.bfloat16, "int8"), ("int4", torch.bfloat16, "int4"))  # type: ignore[assignment]
_WAYS = (
    ("plain", "dense", False),
    ("plain, recomputed", "dense", True),
    ("shortcuts", "auto", False),
    ("shortcuts, recomputed", "auto", True),
)


def add(commands: Any) -> None:
    """Register the command's arguments."""
    cost = commands.add_parser(
        "cost",
        help="work out memory and operations of a training step, for 1 to many GPUs",
        description="Counts a training step of a host with a frozen layer, without running it and without weights: "
        "what blocks take in memory, operations and kept activations of the layer with and without the exact "
        "shortcuts, and the memory of every process with DDP and FSDP. docs/cost.md says what is counted.",
    )
    cost.add_argument("--llm", nargs="+", metavar="NAME", help=f"blocks: {', '.join(LLMS)} (default: all)")
    cost.add_argument("--source", metavar="SOURCE", help=f"take the block's sizes from here instead: {SOURCE_HELP}")
    cost.add_argument("--blocks", type=int, default=1, help="layers of the language model (default %(default)s)")
    cost.add_argument("--host", default="vit-s", help=f"{', '.join(HOSTS)} (default %(default)s)")
    cost.add_argument("--batch", type=int, default=128, help="samples of a process (default %(default)s)")
    cost.add_argument("--gpus", type=int, nargs="+", default=[1, 8, 64], help="processes (default 1 8 64)")
    cost.add_argument("--dtype", default="bfloat16", help="of autocast and of the block (default %(default)s)")
    cost.add_argument("--quantize", help="store the block as int8 or int4 (default: as --dtype)")
    cost.add_argument("--json", action="store_true", help="print JSON instead of text")
    cost.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Count and print; returns the exit code."""
    for name in ("blocks", "batch"):
        if getattr(args, name) < 1:
            raise ValueError(f"--{name} must be positive, not {getattr(args, name)}.")
    if min(args.gpus) < 1:
        raise ValueError(f"--gpus must be positive, not {min(args.gpus)}.")
    if args.host not in HOSTS:
        raise ValueError(f"--host must be one of {', '.join(HOSTS)}, not {args.host!r}.")
    check_quantize(args.quantize)
    dtype = parse_dtype(args.dtype)
    assert dtype is not None
    shape = HOSTS[args.host]
    host = host_step(shape, args.batch, dtype)
    alone = {"parameters": trained(meta_host(shape)), **asdict(host)}
    found = {
        "host": {"name": args.host, "batch": args.batch, **alone},
        "llms": {name: _count(spec, args, shape, dtype, alone) for name, spec in _specs(args).items()},
    }
    if args.json:
        print(json.dumps(found, indent=2))
    else:
        _print(found, args, shape)
    return 0


def _specs(args: argparse.Namespace) -> dict[str, BlockSpec]:
    if args.source:
        if args.llm:
            raise ValueError("Give --llm or --source, not both.")
        return {args.source: read_specs(args.source)[0]}
    names = args.llm or list(LLMS)
    unknown = [name for name in names if name not in LLMS]
    if unknown:
        raise ValueError(f"--llm must be one of {', '.join(LLMS)}, not {unknown[0]!r}: others by --source.")
    return {name: LLMS[name] for name in names}


def _count(
    spec: BlockSpec, args: argparse.Namespace, shape: HostShape, dtype: torch.dtype, host: dict[str, int]
) -> dict[str, Any]:
    block = meta_block(spec, args.blocks, dtype, args.quantize)
    readout = None if shape.reads_all else 1
    steps = {
        name: layer_step(block, shape.dim, args.batch, shape.tokens, readout, exact=exact, recompute=recompute)
        for name, exact, recompute in _WAYS
    }
    adapters = 2 * shape.dim * spec.hidden_size
    memory = process_memories(block_bytes(block), adapters, steps["shortcuts"].kept, shape, host, args.gpus)
    return {
        "weights": block.num_parameters(),
        "stored": {name: block_bytes(meta_block(spec, args.blocks, of, how)) for name, of, how in _STORAGES},
        "adapters": adapters,
        "steps": {name: asdict(step) for name, step in steps.items()},
        "processes": memory,
    }


def process_memories(
    block: int, adapters: int, kept: int, shape: HostShape, host: dict[str, int], gpus: Sequence[int]
) -> list[dict[str, Any]]:
    """Memory for every number of GPUs, with DDP and FSDP."""
    parameters = host["parameters"] + adapters
    largest = max(12 * shape.dim**2, adapters)  # a layer of the host, or the adapters, which are gathered with the root
    rows = []
    for count in gpus:
        for strategy in ("ddp", "fsdp") if count > 1 else ("ddp",):
            memory = process_memory(block, parameters, largest, host["kept"] + kept, count, strategy)
            name = strategy if count > 1 else "none"
            rows.append({"gpus": count, "strategy": name, **asdict(memory), "total": memory.total})
    return rows


def _print(found: dict[str, Any], args: argparse.Namespace, shape: HostShape) -> None:
    host, llms = found["host"], found["llms"]
    reads = "all" if shape.reads_all else "one"
    print(f"{args.host}: {host['parameters']:,} weights, {shape.dim} wide; a process has {args.batch} x {shape.tokens}")
    print(f"tokens, of which the head reads {reads}. A step of the host alone: {host['flops'] / 1e12:.2f} TFLOP,")
    print(f"{_gb(host['kept'])} GB of activations.\n")
    print("blocks, GB of weights as stored")
    stored = [name for name, _, _ in _STORAGES]
    rows = [(name, f"{llm['weights']:,}", *(_gb(llm["stored"][s]) for s in stored)) for name, llm in llms.items()]
    _table([("llm", "weights", *stored), *rows])
    print(f"\na training step of the layer in one process, {args.dtype}")
    steps = [
        (name, way, f"{step['flops'] / 1e12:.2f}", f"{step['flops'] / host['flops']:.2f}", _gb(step["kept"]))
        for name, llm in llms.items()
        for way, step in llm["steps"].items()
    ]
    _table([("llm", "computed", "TFLOP", "of host", "kept GB"), *steps])
    print("\nGB in each process, with the shortcuts; GB it sends in a step")
    parts = ("block", "weights", "gradients", "optimizer", "activations", "total", "exchanged")
    processes = [
        (name, str(row["gpus"]), row["strategy"], *(_gb(row[part]) for part in parts))
        for name, llm in llms.items()
        for row in llm["processes"]
    ]
    _table([("llm", "GPUs", "strategy", *parts[:-1], "sends"), *processes])


def _table(rows: Sequence[Sequence[str]]) -> None:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    words = [not any(row[i][:1].isdigit() for row in rows[1:]) for i in range(len(widths))]
    words[0] = True
    for row in rows:
        cells = [c.ljust(w) if word else c.rjust(w) for c, w, word in zip(row, widths, words, strict=True)]
        print("  " + "  ".join(cells).rstrip())


def _gb(size: int) -> str:
    return f"{size / 1e9:.3f}"
