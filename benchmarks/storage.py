"""What storing a block in fewer bits costs: memory, error and time of a training step, at LLaMA-7B's sizes.

    python benchmarks/storage.py

Weights are random. The error is that of the block's update (output minus input) on random tokens, relative to float32;
times are of one forward and backward pass of the layer, best of the turns, and relative to float32 storage.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from common import LLAMA_7B, take_turns, write_figures

from frozenllm.core import BlockSpec, FrozenLLMLayer, LLMBlock, random_block

SPEC = BlockSpec(**LLAMA_7B)
STORAGES = [(dtype, quantize) for dtype in (torch.float32, torch.bfloat16) for quantize in (None, "int8", "int4")]


def stored_bytes(block: LLMBlock) -> int:
    """Bytes of all buffers."""
    return sum(buffer.nbytes for buffer in block.buffers())


def step_seconds(layer: FrozenLLMLayer, tokens: torch.Tensor, readout: slice | None, turns: int) -> float:
    """Best time of a forward and backward pass, after one that does not count."""
    call = {"pass": lambda: layer(tokens, readout=readout).square().mean().backward()}
    return min(take_turns(call, turns)["pass"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--turns", type=int, default=2)
    parser.add_argument("--json", type=Path, help="write the figures here too")
    args = parser.parse_args()
    original = random_block(SPEC)
    weights, norm = original.canonical_tensors(), original.final_norm_tensors()
    hidden = torch.randn(1, 197, SPEC.hidden_size, generator=torch.Generator().manual_seed(0))
    tokens = torch.randn(args.batch, 197, 384, requires_grad=True)
    with torch.no_grad():
        update = original(hidden) - hidden
    rows: list[dict[str, object]] = []
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {args.batch} x 197 tokens, 384 wide")
    print("compute    storage    block      error    one token read      all tokens")
    for dtype, quantize in STORAGES:
        block = LLMBlock(original.specs, weights, norm, original.record, dtype=dtype, quantize=quantize)
        with torch.no_grad():
            error = ((block(hidden.to(dtype)).float() - hidden) - update).norm() / update.norm()
        layer = FrozenLLMLayer(384, block)
        one, everything = (step_seconds(layer, tokens, r, args.turns) for r in (slice(0, 1), None))
        row: dict[str, object] = {
            "compute": str(dtype).removeprefix("torch."),
            "storage": quantize or str(dtype).removeprefix("torch."),
            "megabytes": stored_bytes(block) / 1e6,
            "error": error.item(),
            "one_token_seconds": one,
            "all_tokens_seconds": everything,
        }
        rows.append(row)
        first = rows[0]
        ratios = [s / first[key] for s, key in ((one, "one_token_seconds"), (everything, "all_tokens_seconds"))]  # type: ignore[operator]
        print(
            f"{row['compute']:9}  {row['storage']:9}  {row['megabytes']:4.0f} MB  {error:7.4f}   "
            f"{one:6.2f} s ({ratios[0]:4.2f} x)  {everything:6.2f} s ({ratios[1]:4.2f} x)",
            flush=True,
        )
    write_figures(args.json, rows)


if __name__ == "__main__":
    main()
