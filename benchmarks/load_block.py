"""What reading one layer of a checkpoint costs, in time and memory, against reading the checkpoint whole.

    python benchmarks/load_block.py                        # 3.2 GB checkpoints, about 7 GB of disk, a few minutes
    python benchmarks/load_block.py --layers 3 --width 1024 --ffn 2816

Writes LLaMA-shaped checkpoints with random weights (Meta's layout in one and in two shards, and one safetensors file),
then reads a layer from each in fresh processes: `load_block`, and the way of the official code, a whole ``torch.load``.
The arms take turns, so that other load and the page cache fall on both alike. Memory is the growth of RssAnon after
imports, sampled: pages of mapped files do not count, since the system may drop them at any time. Linux only.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import torch
from common import write_figures
from safetensors.torch import load_file, save_file

from frozenllm.core import load_block

COLUMNS = {"attention.wo": 1, "feed_forward.w2": 1}  # shards hold columns of these, rows of the others
HF_NAMES = {
    "attention.wq": "self_attn.q_proj",
    "attention.wk": "self_attn.k_proj",
    "attention.wv": "self_attn.v_proj",
    "attention.wo": "self_attn.o_proj",
    "feed_forward.w1": "mlp.gate_proj",
    "feed_forward.w3": "mlp.up_proj",
    "feed_forward.w2": "mlp.down_proj",
    "attention_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
}


def main() -> None:
    """Write, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=8, help="layers of the checkpoints")
    parser.add_argument("--width", type=int, default=4096)
    parser.add_argument("--ffn", type=int, default=11008)
    parser.add_argument("--dtypes", nargs="+", default=["float32", "float16"], help="what the block computes in")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="where to write the checkpoints (default: a temporary folder)")
    parser.add_argument("--json", type=Path, help="write the figures here too")
    parser.add_argument("--measure", nargs=3, metavar=("ARM", "SOURCE", "DTYPE"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        print(json.dumps(measure(*args.measure)))
        return
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        rows = [row for shards in (1, 2) for row in compare(write_meta(Path(folder), args, shards), args)]
        rows += compare(write_safetensors(Path(folder), args), args)
    write_figures(args.json, rows)


def layer_tensors(args: argparse.Namespace, shards: int = 1) -> dict[str, torch.Tensor]:
    """One shard of one layer, in float16."""
    d, f = args.width, args.ffn
    shapes = {f"attention.{n}": (d, d) for n in ("wq", "wk", "wv", "wo")}
    shapes |= {"feed_forward.w1": (f, d), "feed_forward.w3": (f, d), "feed_forward.w2": (d, f)}
    tensors = {}
    for name, shape in shapes.items():
        along = COLUMNS.get(name, 0)
        part = [n // shards if axis == along else n for axis, n in enumerate(shape)]
        tensors[name] = (torch.randn(part) * d**-0.5).half()
    return tensors | {name: torch.ones(d).half() for name in ("attention_norm", "ffn_norm")}


def write_meta(folder: Path, args: argparse.Namespace, shards: int) -> Path:
    """Meta's layout."""
    target = folder / f"meta_{shards}_shards"
    target.mkdir()
    for shard in range(shards):
        part = {"norm.weight": torch.ones(args.width).half()}
        for i in range(args.layers):
            part |= {f"layers.{i}.{name}.weight": t for name, t in layer_tensors(args, shards).items()}
        torch.save(part, target / f"consolidated.{shard:02d}.pth")
        del part
    params = {"dim": args.width, "n_heads": args.width // 128, "n_layers": args.layers, "norm_eps": 1e-6}
    (target / "params.json").write_text(json.dumps(params))
    return target


def write_safetensors(folder: Path, args: argparse.Namespace) -> Path:
    """Transformers' layout."""
    target = folder / "safetensors"
    target.mkdir()
    tensors = {"model.norm.weight": torch.ones(args.width).half()}
    for i in range(args.layers):
        tensors |= {f"model.layers.{i}.{HF_NAMES[n]}.weight": t for n, t in layer_tensors(args).items()}
    save_file(tensors, target / "model.safetensors")
    config = {
        "model_type": "llama",
        "hidden_size": args.width,
        "intermediate_size": args.ffn,
        "num_hidden_layers": args.layers,
        "num_attention_heads": args.width // 128,
    }
    (target / "config.json").write_text(json.dumps(config))
    return target


def compare(source: Path, args: argparse.Namespace) -> list[dict]:
    """Time both arms in turns and print their ratio."""
    files = [path for path in source.iterdir() if path.suffix in (".pth", ".safetensors")]
    stored = sum(path.stat().st_size for path in files)
    rows = []
    for dtype in args.dtypes:
        runs: dict[str, list[dict]] = {"block": [], "whole": []}
        for _ in range(args.turns):
            for arm, seen in runs.items():
                command = [sys.executable, __file__, "--measure", arm, str(source), dtype]
                seen.append(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout))
        seconds = {arm: statistics.median(run["seconds"] for run in seen) for arm, seen in runs.items()}
        growth = {arm: max(run["growth"] for run in seen) for arm, seen in runs.items()}
        size = runs["block"][0]["block"]
        row = {
            "source": source.name,
            "stored_bytes": stored,
            "dtype": dtype,
            "block_bytes": size,
            "seconds": seconds,
            "growth_bytes": growth,
            "time_ratio": seconds["whole"] / seconds["block"],
        }
        rows.append(row)
        memory = {arm: f"{size_ / 1e6:6.0f} MB" for arm, size_ in growth.items()}
        print(f"\n{source.name}: {stored / 1e9:.2f} GB in {len(files)} file(s), block in {dtype} {size / 1e6:.0f} MB")
        print(f"  load_block     {seconds['block']:6.2f} s   memory {memory['block']}")
        print(f"  whole file(s)  {seconds['whole']:6.2f} s   memory {memory['whole']}")
        print(f"  time, whole : load_block = {row['time_ratio']:.1f} : 1", flush=True)
    return rows


def anonymous() -> int:
    """Anonymous memory of this process in bytes."""
    status = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in status if line.startswith("RssAnon")).split()[1]) * 1024


def measure(arm: str, source: str, dtype: str) -> dict:
    """Read the last layer in this process; seconds and growth of memory."""
    before, peak, done = anonymous(), [0], threading.Event()

    def watch() -> None:
        while not done.wait(0.005):
            peak[0] = max(peak[0], anonymous())

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    start = time.perf_counter()
    if arm == "block":
        block = load_block(source, dtype=dtype)
        size = block.num_parameters() * block.dtype.itemsize
    else:
        files = sorted(Path(source).glob("*.pth")) or sorted(Path(source).glob("*.safetensors"))
        whole = [torch.load(path, weights_only=True) if path.suffix == ".pth" else load_file(path) for path in files]
        size = sum(tensor.nbytes for part in whole for tensor in part.values())
        if Path(source).name == "safetensors":  # mapped: read the pages, as using the tensors would
            _ = [tensor.sum() for part in whole for tensor in part.values()]
    seconds = time.perf_counter() - start
    done.set()
    thread.join()
    return {"seconds": seconds, "growth": max(peak[0], anonymous()) - before, "block": size}


if __name__ == "__main__":
    main()
