"""``frozenllm inspect``: spec, sizes, hash and tensors of layers."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
from typing import Any

from frozenllm.core.commands.common import LAYERS_HELP, SOURCE_HELP, megabytes
from frozenllm.core.spec import BlockSpec
from frozenllm.core.weights import BlockContents, read_block


def add(commands: Any) -> None:
    """Register the command's arguments."""
    inspect = commands.add_parser("inspect", help="show spec, sizes, hash and tensors of layers, checked like a load")
    inspect.add_argument("source", metavar="SOURCE", help=SOURCE_HELP)
    inspect.add_argument("--layers", type=int, nargs="+", metavar="N", help=LAYERS_HELP)
    inspect.add_argument("--json", action="store_true", help="print JSON instead of text")
    inspect.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print it; returns the exit code."""
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
        ("size", f"{megabytes(contents.nbytes)} as stored ({record.dtype})"),
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
