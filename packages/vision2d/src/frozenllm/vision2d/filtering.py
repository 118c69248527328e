"""The information-filtering study on several arms: ``python -m frozenllm.vision2d.filtering``.

Without arguments it trains a host alone, with the frozen bundled block, and with a frozen random block (the control
that the paper lacks) on a toy ImageNet-S, studies each, and compares them image by image, in about three minutes on two
cores. ``python -m frozenllm.vision2d.filtering RUN RUN [RUN]`` compares finished runs, the first of which is the
baseline, on their own images or on ImageNet-S (``--masks ROOT``).
"""

from __future__ import annotations

import argparse
import concurrent.futures
import json
import multiprocessing
import os
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from frozenllm.core.training import compose_config, errors_in_a_sentence, folder_of_run, train
from frozenllm.vision2d.arms import Arm, compare_arms, draw, report_text
from frozenllm.vision2d.masks import TokenRule
from frozenllm.vision2d.measures import measure
from frozenllm.vision2d.study import OPTIONS, describe
from frozenllm.vision2d.toy_imagenet_s import write_toy_imagenet_s
from frozenllm.vision2d.train import CONFIG

ARMS: dict[str, list[str]] = {
    "host alone": ["llm=none"],
    "frozen block": ["llm=bundled"],
    "random block": ["llm=random", "llm.seed=${runtime.seed}"],  # another random block for every seed
}
FILE = "filtering.json"


def filtering(
    runs: Mapping[str, Sequence[Path]],
    folder: Path,
    *,
    masks: str | Path | None = None,
    rule: str = "majority",
    limit: int | None = None,
    samples: int = 6,
    weights: str = "auto",
    on_error: str | None = None,
) -> str:
    """Study runs and compare them.

    Args:
        runs: Arm -> its runs, one a seed; the first arm is the baseline.
        folder: Gets ``filtering.json``, ``filtering.txt`` and the figures; every run folder gets its study.
        masks: Root of ImageNet-S; None for the runs' own images.
        rule: See `frozenllm.vision2d.masks.TokenRule`.
        limit: At most so many images, spread evenly.
        samples: Images in each study.
        weights: See `frozenllm.core.training.read_run`.
        on_error: See `frozenllm.vision2d.measures.measure`.

    Returns:
        The table.

    Raises:
        ValueError: See `frozenllm.vision2d.measures.measure`; or the runs do not have the same images, or no masks.
    """
    arms = []
    for name, paths in runs.items():
        measured = []
        for path in paths:
            found = measure(path, masks=masks, rule=rule, limit=limit, weights=weights, on_error=on_error)
            describe(found, rule, samples).save(folder_of_run(path))
            measured.append(found)
        arms.append(Arm(name, measured))
    comparison = compare_arms(arms)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        text = report_text(comparison, rule)
        (folder / "filtering.txt").write_text(text + "\n", encoding="utf-8")
        (folder / FILE).write_text(json.dumps(asdict(comparison), indent=1) + "\n", encoding="utf-8")
        for file, picture in draw(comparison).items():
            picture.save(folder / file)
    except OSError as error:
        raise ValueError(f"The folder {folder} cannot be written ({error.strerror}): name another one.") from error
    return text


def train_arms(folder: Path, seeds: Sequence[int], epochs: int | None, jobs: int) -> dict[str, list[Path]]:
    """Train the toy arms.

    Args:
        folder: Of the runs.
        seeds: One run per arm and seed.
        epochs: Instead of the recipe's.
        jobs: Runs at the same time, each in a process and on a thread of its own.

    Returns:
        Arm -> run folders by seed.
    """
    write_toy_imagenet_s()  # once, before the processes ask for it
    plan = [(name, seed) for seed in seeds for name in ARMS]
    overrides = {
        (name, seed): [
            "recipe=toy_imagenet_s",
            f"runs={folder}",
            f"name={name.replace(' ', '-')}/seed{seed}",
            f"runtime.seed={seed}",
            "overwrite=true",
            "runtime.console=false",
            "runtime.plots=false",
            *ARMS[name],
            *([f"schedule.epochs={epochs}", f"schedule.warmup_epochs={min(1, epochs / 2)}"] if epochs else []),
        ]
        for name, seed in plan
    }
    found: dict[tuple[str, int], Path] = {}
    start = time.perf_counter()
    print(f"{len(plan)} runs, {jobs} at a time", flush=True)
    context = multiprocessing.get_context("spawn")  # a forked child would inherit torch's threads
    with concurrent.futures.ProcessPoolExecutor(jobs, mp_context=context) as pool:
        pending = {pool.submit(_train, overrides[key]): key for key in plan}
        try:
            for future in concurrent.futures.as_completed(pending):
                name, seed = pending[future]
                path, accuracy = future.result()
                found[name, seed] = Path(path)
                left = (time.perf_counter() - start) / len(found) * (len(plan) - len(found))
                print(f"[{len(found)}/{len(plan)}] {name}, seed {seed}: {accuracy:.1f} %, about {left:.0f} s left")
                sys.stdout.flush()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return {name: [found[name, seed] for seed in seeds] for name in ARMS}


def _train(overrides: list[str]) -> tuple[str, float]:
    result = train(compose_config(CONFIG, overrides))
    return result.run_dir, result.metrics["accuracy/top1"]


def _processors() -> int:
    affinity = getattr(os, "sched_getaffinity", None)  # not on macOS
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def _named(paths: Sequence[Path]) -> dict[str, list[Path]]:
    """Arms of runs that the user gives, one each, by the end of their paths that tells them apart."""
    folders = [folder_of_run(path) for path in paths]
    absolute = [folder.expanduser().absolute().parts for folder in folders]
    for count in range(1, max(len(parts) for parts in absolute) + 1):
        names = ["/".join(parts[-count:]) for parts in absolute]
        if len(set(names)) == len(names):
            return {name: [path] for name, path in zip(names, paths, strict=True)}
    raise ValueError("A run is given twice.")


def _check(options: argparse.Namespace) -> None:
    """Refuse what would be noticed only after the toy arms are trained.

    Raises:
        ValueError: An option makes no sense.
    """
    for name, least in (("jobs", 1), ("epochs", 1), ("limit", 1), ("seeds", 0)):
        value = getattr(options, name)
        for number in value if isinstance(value, list) else [value]:
            if number is not None and number < least:
                raise ValueError(f"--{name} must be {least} or more, not {number}.")
    for run in options.runs:
        if not run.expanduser().exists():
            raise ValueError(f"There is no run at {run}.")
    TokenRule(options.rule)
    if options.masks is not None and not Path(options.masks).expanduser().is_dir():
        raise ValueError(f"--masks: there is no folder {options.masks}.")


def main(argv: Sequence[str] | None = None) -> None:
    """The command line.

    Args:
        argv: Arguments; None for the process's.
    """
    parser = argparse.ArgumentParser(
        prog="python -m frozenllm.vision2d.filtering",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("runs", nargs="*", type=Path, help="finished runs, the baseline first (none: train toy arms)")
    parser.add_argument("--out", type=Path, default=Path("runs/filtering"), help="folder for everything (%(default)s)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="of the toy arms (0)")
    parser.add_argument("--epochs", type=int, help="of the toy arms, instead of the recipe's")
    parser.add_argument("--jobs", type=int, default=min(3, _processors()), help="toy runs at a time (%(default)s)")
    parser.add_argument("--limit", type=int, help="at most so many images, spread evenly")
    parser.add_argument("--weights", default="auto", choices=["auto", "raw", "ema"])
    for name, settings in OPTIONS.items():
        parser.add_argument(f"--{name}", **settings)
    options = parser.parse_args(argv)
    start = time.perf_counter()
    with errors_in_a_sentence():
        _check(options)
        runs = (
            _named(options.runs)
            if options.runs
            else train_arms(options.out, options.seeds, options.epochs, options.jobs)
        )
        text = filtering(
            runs,
            options.out,
            masks=options.masks,
            rule=options.rule,
            limit=options.limit,
            weights=options.weights,
            on_error=options.on_error,
        )
    print(f"\n{text}\n\n{time.perf_counter() - start:.0f} s; figures in {options.out}")


if __name__ == "__main__":
    main()
