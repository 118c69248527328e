"""A frozen language-model block beside its controls on real images, in minutes: ``python -m frozenllm.vision2d.demo``.

Three arms with the same training budget: the host alone, with the frozen block of the bundled language model, and with
a frozen block of the same shape and random weights (the control that the paper lacks); then every block of the language
model in turn. Writes ``summary.json`` and ``report.html`` into the run folder.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import json
import multiprocessing
import os
import re
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from frozenllm.core import load_block
from frozenllm.core.training import ArmResult, build_model, compose_config, errors_in_a_sentence, table, train
from frozenllm.core.training.run import RunResult
from frozenllm.vision2d.toy import write_digits
from frozenllm.vision2d.train import CONFIG, METRIC

HOST, BUNDLED, RANDOM = "host alone", "+ frozen bundled block", "+ frozen random block"
ARMS: dict[str, list[str]] = {
    HOST: ["llm=none"],
    BUNDLED: ["llm=bundled"],
    RANDOM: ["llm=random", "llm.seed=${runtime.seed}"],  # another random block for every seed
}

REPORT = "report.html"
_STUDIED = 64  # validation images, of one run of each arm, to stay within minutes
_SWEEP_SEEDS = 2  # of the sweep over layers, to stay within minutes


@dataclass(frozen=True)
class Job:
    """One training run: an arm's name, its overrides, its seed."""

    arm: str
    overrides: tuple[str, ...]
    seed: int

    @property
    def name(self) -> str:
        """The run's folder below the recipe's."""
        return f"{re.sub(r'[^a-z0-9]+', '-', self.arm.lower()).strip('-')}/seed{self.seed}"


def run_demo(
    folder: Path, seeds: Sequence[int] = (0, 1, 2), *, epochs: int | None = None, jobs: int = 1, layers: bool = True
) -> dict[str, Any]:
    """Train all arms, write everything, and return what ``summary.json`` holds.

    Args:
        folder: Where runs, figures and report go.
        seeds: One run per arm and seed.
        epochs: Instead of the recipe's.
        jobs: Runs at the same time, each in a process and on a thread of its own.
        layers: Whether to sweep the blocks of the bundled language model.

    Raises:
        ValueError: The folder cannot be written, or a setting is wrong.
    """
    from frozenllm.core.report import write_report  # matplotlib takes a second to import
    from frozenllm.vision2d.demo_text import lead

    start = time.perf_counter()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"The folder {folder} cannot be written ({error.strerror}): name another one.") from error
    data = write_digits()
    # The spawned processes have no other start method, and no loader workers of their own.
    common = [f"runs={folder}", "overwrite=true", "runtime.console=false", "runtime.worker_start=spawn"]
    common += [f"schedule.epochs={epochs}", f"schedule.warmup_epochs={min(2, epochs / 2)}"] if epochs else []
    config = compose_config(CONFIG, [*common, *ARMS[BUNDLED]])
    arms: dict[str, list[str]] = dict(ARMS)
    swept = _layer_arms() if layers else {}
    arms.update({name: overrides for name, overrides in swept.values() if name not in arms})
    # The seed is the outer loop: a machine that slows down meanwhile slows down all arms alike.
    plan = [
        Job(arm, tuple(overrides), seed)
        for place, seed in enumerate(seeds)
        for arm, overrides in arms.items()
        if arm in ARMS or place < _SWEEP_SEEDS
    ]
    results = _train_all(plan, common, jobs)
    steps = time_steps([*common, f"runtime.seed={seeds[0]}"])
    compared = [
        # The runs shared the processors, so their own step times say little about the arms.
        ArmResult(arm, [replace(results[arm, seed], step_seconds=steps[arm]) for seed in seeds])
        for arm in ARMS
    ]
    summary: dict[str, Any] = {
        "metric": METRIC,
        "seeds": list(seeds),
        "samples": {split: sum(1 for _ in (data / split).glob("*/*.png")) for split in ("train", "val")},
        "layer_seeds": list(seeds[:_SWEEP_SEEDS]),
        "epochs": config.schedule.epochs,
        "batch_size": config.data.batch_size,
        "learning_rate": config.optim.lr,
        "host": {k: config.model[k] for k in ("img_size", "patch_size", "embed_dim", "depth", "num_heads")},
        "arms": [_describe(result, steps) for result in compared],
        "layers": [
            {"layer": layer, **_figures([results[name, seed].metrics[METRIC] for seed in seeds[:_SWEEP_SEEDS]])}
            for layer, (name, _) in swept.items()
        ],
        "runs": [asdict(run) for result in compared for run in result.runs],
        "table": table(compared, METRIC),
        "seconds": time.perf_counter() - start,
    }
    (folder / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
    write_report(
        [run.run_dir for run in results.values()],
        folder / REPORT,
        title="A frozen language-model block in a vision transformer",
        limit=_STUDIED,
        lead=lead(summary),
        step_seconds={Path(run.run_dir): steps[arm] for (arm, _), run in results.items() if arm in steps},
    )
    return summary


def _layer_arms() -> dict[int, tuple[str, list[str]]]:
    """Layer -> name and overrides of its arm; the last layer is the arm that is trained anyway."""
    last = load_block("bundled").record.layers[-1]
    own = {layer: (f"bundled layer {layer}", [*ARMS[BUNDLED], f"llm.layers=[{layer}]"]) for layer in range(last)}
    return {**own, last: (BUNDLED, ARMS[BUNDLED])}


def _train_all(plan: Sequence[Job], common: Sequence[str], jobs: int) -> dict[tuple[str, int], RunResult]:
    start = time.perf_counter()
    results: dict[tuple[str, int], RunResult] = {}
    context = multiprocessing.get_context("spawn")  # a forked child would inherit torch's threads
    print(f"{len(plan)} runs, {jobs} at a time", flush=True)
    with concurrent.futures.ProcessPoolExecutor(jobs, mp_context=context) as pool:
        pending = {pool.submit(_train_one, job, tuple(common)): job for job in plan}
        try:
            for future in concurrent.futures.as_completed(pending):
                job, result = pending[future], future.result()
                results[job.arm, job.seed] = result
                left = (time.perf_counter() - start) / len(results) * (len(plan) - len(results))
                print(
                    f"[{len(results):2d}/{len(plan)}] {job.arm + f', seed {job.seed}':34s}"
                    f"{result.metrics[METRIC]:6.2f} %   {result.seconds:4.0f} s, about {left:3.0f} s left",
                    flush=True,
                )
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return results


def _train_one(job: Job, common: Sequence[str]) -> RunResult:
    overrides = [*common, *job.overrides, f"name={job.name}", f"runtime.seed={job.seed}"]
    return train(compose_config(CONFIG, overrides))


def time_steps(common: Sequence[str], rounds: int = 40) -> dict[str, float]:
    """Median seconds of a training step (forward, backward, optimizer, without data loading) of every arm.

    The arms take turns step by step, so that whatever else the machine does falls on all of them.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        timed: dict[str, list[float]] = {arm: [] for arm in ARMS}
        prepared = {}
        for arm, overrides in ARMS.items():
            config = compose_config(CONFIG, [*common, *overrides])
            model = build_model(config).train()
            images = torch.randn(config.data.batch_size, 3, config.model.img_size, config.model.img_size)
            labels = torch.randint(config.model.num_classes, (config.data.batch_size,))
            prepared[arm] = (model, torch.optim.AdamW(model.parameters(), lr=1e-4), images, labels)
        for turn in range(rounds + 3):
            for arm, (model, optimizer, images, labels) in prepared.items():
                began = time.perf_counter()
                optimizer.zero_grad()
                nn.functional.cross_entropy(model(images), labels).backward()
                optimizer.step()
                if turn >= 3:  # the first steps allocate
                    timed[arm].append(time.perf_counter() - began)
    finally:
        torch.set_num_threads(threads)
    return {arm: statistics.median(times) for arm, times in timed.items()}


def _describe(result: ArmResult, steps: Mapping[str, float]) -> dict[str, Any]:
    return {
        "arm": result.arm,
        **_figures(result.values(METRIC)),
        "trainable": result.trainable,
        "frozen": result.frozen,
        "step_seconds": steps[result.arm],
        "relative_step": steps[result.arm] / steps[HOST],
    }


def _figures(values: Sequence[float]) -> dict[str, Any]:
    return {
        "values": list(values),
        "mean": statistics.mean(values),
        "spread": statistics.stdev(values) if len(values) > 1 else 0.0,
    }


def _processors() -> int:
    affinity = getattr(os, "sched_getaffinity", None)  # not on macOS
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def main(argv: Sequence[str] | None = None) -> None:
    """The command line.

    Args:
        argv: Arguments; None for the process's.
    """
    parser = argparse.ArgumentParser(prog="python -m frozenllm.vision2d.demo", description=__doc__)
    parser.add_argument("--runs", type=Path, default=Path("runs/demo"), help="folder for everything (%(default)s)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="seeds of the runs (0 1 2)")
    parser.add_argument("--epochs", type=int, help="instead of the recipe's")
    parser.add_argument("--jobs", type=int, default=min(4, _processors()), help="runs at the same time (%(default)s)")
    parser.add_argument("--no-layers", action="store_true", help="leave out the sweep over the language model's blocks")
    options = parser.parse_args(argv)
    start = time.perf_counter()
    with errors_in_a_sentence():
        summary = run_demo(
            options.runs, options.seeds, epochs=options.epochs, jobs=options.jobs, layers=not options.no_layers
        )
    print(f"\n{summary['table']}\n")
    print(f"{time.perf_counter() - start:.0f} s; open {options.runs / REPORT}")


if __name__ == "__main__":
    main()
