"""The command line: ``frozenllm extract | inspect | families | bench``."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from frozenllm.core.ablations import random_block
from frozenllm.core.block import LLMBlock
from frozenllm.core.families import FAMILIES
from frozenllm.core.layer import FrozenLLMLayer
from frozenllm.core.spec import BlockSpec
from frozenllm.core.weights import BlockContents, parse_dtype, read_block, read_specs, save_block

_SOURCE_HELP = (
    "a folder in transformers' layout, a folder with Meta's consolidated.*.pth, a block file, a GGUF file, a "
    "repository on the hub (org/name or org/name@revision), or the word bundled"
)
_LAYERS_HELP = "indices of the layers, negative ones from the end (default: the last one; of a block file, all)"


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: Arguments without the program's name; those of the process by default.

    Returns:
        Exit code: 0, or 2 after an error, which is one line on stderr.
    """
    parser = _parser()
    args = parser.parse_args(argv)
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _show_warning
            return args.run(args)
    except (ValueError, OSError) as error:
        print(f"frozenllm: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("frozenllm: interrupted", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="frozenllm",
        description="Blocks of pretrained language models as frozen layers: get them, look at them, time them.",
    )
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    extract = commands.add_parser("extract", help="write layers of a language model into one block file")
    extract.add_argument("source", metavar="SOURCE", help=_SOURCE_HELP)
    extract.add_argument("--layers", type=int, nargs="+", metavar="N", help=_LAYERS_HELP)
    extract.add_argument("-o", "--output", required=True, metavar="FILE", help="the block file, ending in .safetensors")
    extract.add_argument("--dtype", help="store as float32, bfloat16 or float16 (default: as the source does)")
    extract.add_argument("-f", "--force", action="store_true", help="replace FILE where it exists")
    extract.set_defaults(run=_extract)

    inspect = commands.add_parser("inspect", help="show spec, sizes, hash and tensors of layers, checked like a load")
    inspect.add_argument("source", metavar="SOURCE", help=_SOURCE_HELP)
    inspect.add_argument("--layers", type=int, nargs="+", metavar="N", help=_LAYERS_HELP)
    inspect.add_argument("--json", action="store_true", help="print JSON instead of text")
    inspect.set_defaults(run=_inspect)

    families = commands.add_parser("families", help="list the model families that can be read")
    families.set_defaults(run=_families)

    bench = commands.add_parser(
        "bench",
        help="time the frozen layer on this machine, against its plain computation",
        description="Times a training step (forward, backward) of one frozen layer: the plain computation of every "
        "token, and the exact shortcuts, for all tokens and for one readout token. Weights are random: only their "
        "shapes matter. The ratio is the plain time over the other one, from rounds that alternate between them.",
    )
    bench.add_argument("--source", metavar="SOURCE", help=f"take the block's sizes from here: {_SOURCE_HELP}")
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
    bench.set_defaults(run=_bench)
    return parser


def _extract(args: argparse.Namespace) -> int:
    output = Path(args.output)
    if output.suffix != ".safetensors":
        raise ValueError(f"{output}: the name of a block file ends in .safetensors.")
    if output.exists() and not args.force:
        raise ValueError(f"{output}: exists; give another name, or --force to replace it.")
    if not output.absolute().parent.is_dir():
        raise ValueError(f"{output.parent}: no such folder.")
    dtype = parse_dtype(args.dtype)
    contents = read_block(args.source, args.layers)
    if dtype is not None:
        contents = contents.cast(dtype)
    save_block(contents, output)
    layers = ", ".join(map(str, contents.record.layers))
    print(f"{output}: layer(s) {layers} of {contents.record.source}, {_megabytes(output.stat().st_size)}")
    print(f"sha256 {contents.record.sha256}")
    return 0


def _inspect(args: argparse.Namespace) -> int:
    contents = read_block(args.source, args.layers)
    if args.json:
        print(json.dumps(_as_dict(contents), indent=2))
        return 0
    record = contents.record
    rows = [
        ("source", record.source + (f"@{record.revision}" if record.revision else "")),
        ("kind", contents.kind),
        ("layers", ", ".join(map(str, record.layers))),
        ("weights", f"{sum(spec.num_parameters() for spec in contents.specs):,}"),
        ("size", f"{_megabytes(contents.nbytes)} as stored ({record.dtype})"),
        ("sha256", record.sha256),
    ]
    for name, value in rows:
        print(f"{name:<8} {value}")
    for index, (layer, spec, tensors) in enumerate(zip(record.layers, contents.specs, contents.tensors, strict=True)):
        if index == 0 or spec != contents.specs[index - 1]:
            print(f"\nspec (layer {layer}; defaults left out)")
            for field in dataclasses.fields(BlockSpec):
                value = getattr(spec, field.name)
                if value != field.default:
                    print(f"  {field.name:<18} {value}")
        print(f"\ntensors of layer {layer}")
        _print_table(tensors.parts.items())
    if contents.final_norm:
        print("\nnorm after the model's last layer")
        _print_table(contents.final_norm.parts.items())
    return 0


def _print_table(parts: Any) -> None:
    for name, part in parts:
        shape = " x ".join(map(str, part.shape))
        dtype = part.stored
        print(f"  {name:<20} {shape:<15} {dtype:<9} {os.path.basename(part.file)}: {part.name}")


def _as_dict(contents: BlockContents) -> dict[str, Any]:
    return {
        "record": dataclasses.asdict(contents.record),
        "kind": contents.kind,
        "bytes": contents.nbytes,
        "specs": [spec.to_dict() for spec in contents.specs],
        "tensors": [
            {
                name: {
                    "shape": part.shape,
                    "dtype": part.stored,
                    "file": part.file,
                    "stored_as": part.name,
                }
                for name, part in layer.parts.items()
            }
            for layer in contents.tensors
        ],
    }


def _families(args: argparse.Namespace) -> int:
    rows = [("model_type", "models"), *((", ".join(family.model_types), family.models) for family in FAMILIES)]
    width = max(len(names) for names, _ in rows)
    for names, models in rows:
        print(f"{names:<{width}}  {models}")
    return 0


def _bench(args: argparse.Namespace) -> int:
    for name in ("hidden", "heads", "dim", "tokens", "batch", "repeats"):
        if getattr(args, name) < 1:
            raise ValueError(f"--{name} must be positive, not {getattr(args, name)}.")
    device = _device(args.device)
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


def _device(name: str) -> torch.device:
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"Device {name!r} cannot be used: {str(error).splitlines()[0]}") from error
    return device


def _megabytes(size: int) -> str:
    return f"{size / 1e6:.1f} MB"


def _show_warning(message: Warning | str, *_args: Any, **_kwargs: Any) -> None:
    print(f"frozenllm: warning: {message}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
