"""What preprocessing motion data takes, and what it saves: scenarios, samples and training steps a second.

    python benchmarks/motion_data.py                                    # toy traffic in both formats
    python benchmarks/motion_data.py --data argoverse2 --root /data/argoverse2 --samples 500

Reading with and without the cache is timed in turns in one process, batches of 32 included, so that other load falls on
both alike. The first pass of each, which fills the file system's cache and starts Python's libraries, does not count.
Training steps are those of VectorNet alone, at its full size, loading included.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from common import write_figures
from torch.utils.data import DataLoader, Dataset, Subset

from frozenllm.motion.data import argoverse1, argoverse2, collate_scenes
from frozenllm.motion.models import VectorNet
from frozenllm.motion.preprocess import write_cache
from frozenllm.motion.task import MotionTask
from frozenllm.motion.toy import write_toy_argoverse1, write_toy_argoverse2

FORMATS: dict[str, tuple[Callable[..., Any], Callable[..., Path]]] = {
    "argoverse1": (argoverse1, write_toy_argoverse1),
    "argoverse2": (argoverse2, write_toy_argoverse2),
}
HORIZON = {"argoverse1": 30, "argoverse2": 60}


def pass_seconds(dataset: Dataset, samples: int) -> float:
    """One epoch of batches."""
    start = time.perf_counter()
    for _ in DataLoader(Subset(dataset, range(samples)), batch_size=32, collate_fn=collate_scenes):
        pass
    return time.perf_counter() - start


def training_seconds(dataset: Dataset, samples: int, model: MotionTask, optimizer: torch.optim.Optimizer) -> float:
    """One epoch of training; loading happens in the same process."""
    start = time.perf_counter()
    for batch in DataLoader(Subset(dataset, range(samples)), batch_size=32, collate_fn=collate_scenes):
        optimizer.zero_grad()
        torch.stack(list(model(**batch, mode="loss").values())).sum().backward()
        optimizer.step()
    return time.perf_counter() - start


def measure(name: str, root: Path | None, args: argparse.Namespace, scratch: Path) -> dict[str, Any]:
    """All figures for one data set."""
    data, toy = FORMATS[name]
    root = root or toy(scratch / name, train=args.samples, val=1, test=1)
    scenes = data(root, "train", on_error="skip")
    samples = min(args.samples, len(scenes))
    scenes.names, scenes.size = scenes.names[:samples], samples
    scenes[0]  # libraries are loaded when the first one is read
    rates = {}
    for workers in args.workers:
        start = time.perf_counter()
        write_cache(scenes, scratch / f"{name}-{workers}" / "train", name, "train", workers=workers, progress=False)
        rates[workers] = samples / (time.perf_counter() - start)
    folder = scratch / f"{name}-{args.workers[0]}"
    size = sum(path.stat().st_size for path in (folder / "train").iterdir())
    cached = data(None, "train", cache=folder, on_error="skip")
    seconds: dict[str, list[float]] = {"files": [], "cache": []}
    training: dict[str, list[float]] = {"files": [], "cache": []}
    torch.manual_seed(0)
    task = MotionTask(VectorNet(HORIZON[name])).train()
    optimizer = torch.optim.AdamW(task.parameters(), lr=5e-4)
    for turn in range(args.turns + 1):
        for arm, dataset in (("files", scenes), ("cache", cached)):
            took, trained = pass_seconds(dataset, samples), training_seconds(dataset, samples, task, optimizer)
            if turn:
                seconds[arm].append(took)
                training[arm].append(trained)
    steps = -(-samples // 32)
    ratios = [files / cache for files, cache in zip(seconds["files"], seconds["cache"], strict=True)]
    return {
        "data": name,
        "samples": samples,
        "preprocessed_per_second": rates,
        "bytes_per_sample": size / samples,
        "samples_per_second": {arm: samples / statistics.median(times) for arm, times in seconds.items()},
        "steps_per_second": {arm: steps / statistics.median(times) for arm, times in training.items()},
        "cache_relative_to_files": statistics.median(ratios),
        "spread": [min(ratios), max(ratios)],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", choices=list(FORMATS), help="one data set (both)")
    parser.add_argument("--root", type=Path, help="its folder (toy traffic)")
    parser.add_argument("--samples", type=int, default=200)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 2], help="processes that preprocess")
    parser.add_argument("--tiny", action="store_true", help="few samples: only to see that it runs")
    parser.add_argument("--json", type=Path, help="write the figures here too")
    args = parser.parse_args()
    if args.root and not args.data:
        parser.error("--root needs --data.")
    if args.tiny:
        args.samples, args.turns, args.workers = 8, 1, [0]
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, batches of 32", flush=True)
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        for name in [args.data] if args.data else FORMATS:
            row = measure(name, args.root, args, Path(scratch))
            rows.append(row)
            print(f"\n{name}, {row['samples']} {'scenes' if args.root else 'toy scenes'}")
            for workers, rate in row["preprocessed_per_second"].items():
                print(f"  preprocessing, {workers} workers {rate:9.1f} scenes/s")
            for arm, rate in row["samples_per_second"].items():
                print(f"  reading {arm:16s} {rate:9.1f} samples/s")
            for arm, rate in row["steps_per_second"].items():
                print(f"  training from {arm:10s} {rate:9.2f} steps/s")
            low, high = row["spread"]
            print(f"  cache relative to files {row['cache_relative_to_files']:9.1f} ({low:.1f} to {high:.1f})")
            print(f"  a sample in the cache   {row['bytes_per_sample'] / 1024:9.1f} KiB", flush=True)
    write_figures(args.json, rows)


if __name__ == "__main__":
    main()
