"""``frozenllm extract``: layers of a language model as one block file."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from frozenllm.core.commands.common import LAYERS_HELP, SOURCE_HELP, megabytes
from frozenllm.core.weights import parse_dtype, read_block, save_block


def add(commands: Any) -> None:
    """Register the command's arguments."""
    extract = commands.add_parser("extract", help="write layers of a language model into one block file")
    extract.add_argument("source", metavar="SOURCE", help=SOURCE_HELP)
    extract.add_argument("--layers", type=int, nargs="+", metavar="N", help=LAYERS_HELP)
    extract.add_argument("-o", "--output", required=True, metavar="FILE", help="the block file, ending in .safetensors")
    extract.add_argument("--dtype", help="store as float32, bfloat16 or float16 (default: as the source does)")
    extract.add_argument("-f", "--force", action="store_true", help="replace FILE where it exists")
    extract.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Write the block file; returns the exit code."""
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
    print(f"{output}: layer(s) {layers} of {contents.record.source}, {megabytes(output.stat().st_size)}")
    print(f"sha256 {contents.record.sha256}")
    return 0
