"""Training throughput of ViT-S with a frozen block of LLaMA-7B's size, relative to the host alone, by the whole tool.

    python benchmarks/vision2d.py --json runs/bench/vision2d.json      # minutes per arm on two cores
    python benchmarks/vision2d.py --tiny                               # seconds: does it run?

Every arm is a run of the ImageNet recipe as `frozenllm.vision2d.train` makes it: JPEG files, loader, augmentation,
mixup, optimizer, EMA. Host and host with the layer take turns, and a figure is their ratio within one turn, so that
other load falls on both alike; the median over turns is reported. The images are made up and the block's weights random
(speed does not depend on either).
"""

from __future__ import annotations

import argparse
import gc
import statistics
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import LLAMA_7B, TINY_BLOCK, ratio, write_figures
from PIL import Image

from frozenllm.core.training import compose_config, train
from frozenllm.vision2d.train import CONFIG

HOST, LAYER = "host", "host + frozen layer"
TINY = ["+model.embed_dim=24", "+model.num_heads=2", "+model.depth=2", "+model.img_size=32"]
TINY += ["data.train.transform.input_size=32", "data.val.transform.input_size=32"]


def write_images(root: Path, count: int, size: int) -> None:
    """A data set in ImageNet's layout: smooth random images as JPEG, two classes."""
    generator = np.random.default_rng(0)
    for split, images in (("train", count), ("val", 2)):
        for index in range(images):
            folder = root / split / f"n{index % 2:08d}"
            folder.mkdir(parents=True, exist_ok=True)
            coarse = generator.integers(0, 256, (size // 16, size // 16, 3), dtype=np.uint8)
            image = Image.fromarray(coarse).resize((size, size), Image.Resampling.BICUBIC)
            image.save(folder / f"{index:05d}.JPEG", quality=90)


def time_arm(arm: str, common: list[str], block: dict[str, int], name: str) -> float:
    """Median seconds of a training step, loading included, of a run of its own."""
    spec = ", ".join(f"{key}: {value}" for key, value in block.items())
    layer = ["llm=random", "llm.source=null", f"+llm.spec={{{spec}}}"] if arm == LAYER else ["llm=none"]
    torch.compiler.reset()
    result = train(compose_config(CONFIG, [*common, *layer, f"name={name}", "overwrite=true"]))
    gc.collect()
    assert result.step_seconds is not None
    return result.step_seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--precisions", nargs="+", default=["fp32", "bf16"], choices=["fp32", "bf16"])
    parser.add_argument("--compile", nargs="+", default=["off", "on"], choices=["off", "on"], help="torch.compile")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--steps", type=int, default=8, help="steps of a run, of which the first three do not count")
    parser.add_argument("--turns", type=int, default=3, help="runs of each arm")
    parser.add_argument("--workers", type=int, default=1, help="processes that load")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--tiny", action="store_true", help="a tiny host, block and batch: only to see that it runs")
    parser.add_argument("--json", type=Path, help="write the figures here too")
    args = parser.parse_args()
    if args.steps < 4:
        parser.error("--steps must be 4 or more: the first three warm up.")
    if args.tiny:
        args.batch, args.steps, args.turns, args.workers = 4, 5, 1, 0
    print(
        f"torch {torch.__version__}, {torch.get_num_threads()} threads, {args.device}, batch {args.batch}", flush=True
    )
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as scratch:
        write_images(Path(scratch) / "data", args.batch * args.steps, 64 if args.tiny else 400)
        common = ["recipe=imagenet_vit_small", f"data.root={scratch}/data", f"runs={scratch}/runs"]
        common += [f"data.batch_size={args.batch}", f"runtime.stop_after={args.steps}", f"runtime.device={args.device}"]
        common += [f"runtime.workers={args.workers}", "runtime.console=false", *(TINY if args.tiny else [])]
        for precision in args.precisions:
            for compiled in args.compile:
                compiling = str(compiled == "on").lower()
                chosen = [*common, f"runtime.precision={precision}", f"runtime.compile={compiling}"]
                seconds: dict[str, list[float]] = {HOST: [], LAYER: []}
                for turn in range(args.turns):
                    for arm in seconds:
                        name = f"{precision}-{compiled}-{turn}-{'layer' if arm == LAYER else 'host'}"
                        block = TINY_BLOCK if args.tiny else LLAMA_7B
                        seconds[arm].append(time_arm(arm, chosen, block, name))
                medians = {arm: statistics.median(times) for arm, times in seconds.items()}
                row = {
                    "what": "training of vit_small_patch16_224, loader included" + (" (tiny sizes)" * args.tiny),
                    "precision": precision,
                    "compile": compiled == "on",
                    "batch": args.batch,
                    "step_seconds": seconds,
                    "images_per_second": {arm: args.batch / median for arm, median in medians.items()},
                    "throughput_relative_to_host": ratio(seconds[HOST], seconds[LAYER]),
                }
                rows.append(row)
                print(f"\n{precision}, torch.compile {compiled}")
                for arm, rate in row["images_per_second"].items():
                    print(f"  {arm:20s} {rate:8.2f} images/s   {medians[arm]:7.3f} s a step")
                print(f"  throughput relative to the host: {row['throughput_relative_to_host']:.2f}", flush=True)
    write_figures(args.json, rows)


if __name__ == "__main__":
    main()
