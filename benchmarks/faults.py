"""Training runs that are killed again and again, in every domain: do they end with the bits of a run that was not?

    python benchmarks/faults.py --json runs/bench/faults.json       # 10 kills for each tool: minutes on two cores
    python benchmarks/faults.py --tools motion --kills 2            # a try

Every tool trains at toy width with a checkpoint every second iteration. A run of its own is left alone; others are
killed with SIGKILL and started anew with ``resume=true``, until they are finished. Kills take turns: at a moment drawn
from the time that the whole run took, and while a checkpoint is being written, when its temporary file has appeared.
At the end all that a run leaves is compared with the undisturbed run: last.pt (weights, optimizer, average, schedule,
figures), best.pt, metrics.jsonl and summary.json, without what the clock wrote.

Processes are forked from a server that has imported the libraries, so that a life costs no import.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from importlib import import_module
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

COMMON = ["runtime.console=false", "runtime.plots=false", "runtime.device=cpu", "runtime.threads=1"]
COMMON += ["runtime.checkpoint.every_iters=2", "runtime.checkpoint.every_epochs=1", "runtime.val_interval=1"]
COMMON += ["runtime.log_interval=3", "schedule.warmup_epochs=0.5", "llm=bundled"]
METER = ["model.image_encoder={data}/encoders/clip", "model.text_encoder={data}/encoders/roberta"]
METER += ["model.width=32", "model.heads=2", "model.layers=1", "runtime.precision=fp32"]
AVERAGE = "optim.ema={{decay:0.9,evaluate:ema}}"
# Tool -> (module, overrides). Moving averages, accumulation and workers take turns: each is state that could be lost.
TOOLS: dict[str, tuple[str, list[str]]] = {
    "vision2d": (
        "frozenllm.vision2d.train",
        ["recipe=digits", "data.root={data}/digits", "model.depth=1", "model.embed_dim=16", "data.batch_size=96",
         "schedule.epochs=2", "runtime.workers=1", AVERAGE],
    ),
    "video": (
        "frozenllm.video.train",
        ["recipe=moving_digits", "data.root={data}/video", "+data.toy.train_videos=24", "+data.toy.val_videos=8",
         "model.hidden_size=16", "model.num_hidden_layers=1", "model.num_attention_heads=1", "data.batch_size=4",
         "schedule.epochs=4", "runtime.workers=0"],
    ),
    "pointcloud": (
        "frozenllm.pointcloud.train",
        ["recipe=shapes", "data.root={data}/shapes", "model.depth=1", "model.embed_dim=24", "model.num_groups=6",
         "model.group_size=8", "model.encoder_dim=16", "data.num_points=48", "data.batch_size=32", "schedule.epochs=2",
         "optim.accumulate=2", "runtime.workers=0"],
    ),
    "motion": (
        "frozenllm.motion.train",
        ["recipe=traffic", "data.root={data}/traffic", "data.toy.train=48", "data.toy.val=12", "data.toy.test=4",
         "model.dim=16", "model.width=8", "model.hidden=16", "data.batch_size=8", "data.radius=40",
         "schedule.epochs=4", "runtime.workers=1"],
    ),
    "vqa": (
        "frozenllm.vqa.train",
        ["task=vqa", "recipe=toy_vqa", "data.root={data}/vqa", "data.batch_size=16", "schedule.epochs=1",
         "data.answers.min_count=2", "runtime.workers=0", AVERAGE, *METER],
    ),
    "retrieval": (
        "frozenllm.vqa.train",
        ["task=retrieval", "recipe=toy_retrieval", "data.root={data}/flickr", "data.batch_size=8",
         "data.val_batch_size=6", "schedule.epochs=2", "runtime.workers=0", "data.randaug=true", *METER],
    ),
    "sqa3d": (
        "frozenllm.vqa.train",
        ["recipe=sqa3d_llama", "model=sqa3d_toy", "data.root={data}/rooms", "model.width=16", "model.heads=2",
         "model.pool_out=16", "data.num_points=96", "data.batch_size=16", "data.val_batch_size=64", "schedule.epochs=2",
         "schedule.milestones=[1]", "runtime.workers=1", "runtime.precision=fp32"],
    ),
}  # fmt: skip


@dataclass
class Outcome:
    """What a tool went through.

    Attributes:
        tool: Its name.
        kills: Lives that ended by SIGKILL.
        writing: Of these, in the writing of a checkpoint: its temporary file was left, or it lacked a name.
        runs: Runs that were killed on their way and finished.
        iterations: Iterations of a run.
        differences: What differs from the undisturbed run, over all runs.
    """

    tool: str
    kills: int = 0
    writing: int = 0
    runs: int = 0
    iterations: int = 0
    differences: list[str] = field(default_factory=list)


def train(module: str, argv: list[str], log: str) -> None:
    """A life: the tool's command line in this process, which prints into a file."""
    for stream in (1, 2):
        os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND), stream)
    multiprocessing.set_start_method(None, force=True)  # as in a process that was not forked
    import_module("torch").set_num_threads(1)
    import_module(module).main(argv)


def write_data(folder: str) -> None:
    """The toy data that has no size to be asked for in a config, and folders for the rest, which training writes."""
    for name in ("digits", "video", "shapes", "traffic"):
        Path(folder, name).mkdir(parents=True)
    toy = import_module("frozenllm.vqa.toy")
    toy.write_vqa(Path(folder, "vqa"), train=120, val=40, test=6)
    toy.write_flickr(Path(folder, "flickr"), train=24, val=6, test=8)
    toy.write_encoders(Path(folder, "encoders"), width=32)
    toy.write_rooms(Path(folder, "rooms"), train=8, val=4, test=2, per_room=24)


def life(module: str, argv: list[str], log: Path) -> BaseProcess:
    """Start a process; see `train`."""
    process = multiprocessing.get_context("forkserver").Process(target=train, args=(module, argv, str(log)))
    process.start()
    return process


def wait_for_write(process: BaseProcess, folder: Path, count: int) -> None:
    """Return when the temporary file of a checkpoint has appeared for the ``count``-th time, or the process ended."""
    there = False
    while process.is_alive():
        now = folder.is_dir() and any(name.endswith(".tmp") for name in os.listdir(folder))
        count -= now and not there
        there = now
        if count <= 0:
            return
        time.sleep(0.0003)


def in_writing(folder: Path) -> bool:
    """Whether a killed run left a checkpoint that was being written, or had not all its names yet."""
    numbered = sorted(folder.glob("iter_*.pt"))
    last = folder / "last.pt"
    halves = any(name.endswith(".tmp") for name in os.listdir(folder)) if folder.is_dir() else False
    return halves or bool(numbered and not (last.exists() and last.samefile(numbered[-1])))


def differences(a: Any, b: Any, where: str) -> Iterator[str]:
    """Where two nested values are not equal bit for bit."""
    import torch

    if type(a) is not type(b):
        yield f"{where}: {type(a).__name__} against {type(b).__name__}"
    elif isinstance(a, torch.Tensor):
        if a.dtype != b.dtype or not torch.equal(a, b):
            yield where
    elif isinstance(a, dict):
        if a.keys() != b.keys():
            yield f"{where}: other keys"
        for key in a.keys() & b.keys():
            yield from differences(a[key], b[key], f"{where}/{key}")
    elif isinstance(a, list | tuple):
        if len(a) != len(b):
            yield f"{where}: {len(a)} against {len(b)} entries"
        for place, (x, y) in enumerate(zip(a, b, strict=False)):
            yield from differences(x, y, f"{where}/{place}")
    elif a != b:
        yield f"{where}: {a} against {b}"


def left(folder: Path) -> dict[str, Any]:
    """What a run left behind, without what the clock and its name make of it."""
    import torch

    result: dict[str, Any] = {}
    for name in ("last", "best"):
        path = folder / "checkpoints" / f"{name}.pt"
        if path.exists():
            result[name] = torch.load(path, weights_only=True)
            del result[name]["meta"]["config"]
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    result["history"] = [{k: v for k, v in line.items() if not k.endswith("_seconds")} for line in lines]
    summary = json.loads((folder / "summary.json").read_text())
    result["summary"] = {key: summary[key] for key in ("metrics", "test", "best", "epochs", "iterations", "finished")}
    result["files"] = sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())
    return result


def torture(tool: str, module: str, overrides: list[str], kills: int, runs: Path, seed: int = 0) -> Outcome:
    """Kill a tool's runs, resume them, and compare.

    Args:
        tool: What it is called.
        module: Its module, with a ``main(argv)``.
        overrides: Of the config.
        kills: How often.
        runs: Where the runs go.
        seed: Chooses the moments.
    """
    outcome, draw = Outcome(tool), random.Random(f"{tool}/{seed}")
    argv = [*overrides, f"runs={runs}", "resume=true"]

    def start(name: str) -> tuple[BaseProcess, Path]:
        return life(module, [*argv, f"name={name}"], runs / f"{name}.log"), runs / f"{name}.log"

    def finished(process: BaseProcess, log: Path) -> bool:
        process.join(600)
        if process.exitcode not in (0, -9):
            raise RuntimeError(f"{tool} failed with status {process.exitcode}:\n{log.read_text()[-3000:]}")
        return process.exitcode == 0

    runs.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    if not finished(*start("whole")):
        raise RuntimeError(f"{tool} was killed by somebody else.")
    whole_seconds = time.monotonic() - began
    (folder,) = {path.parent for path in runs.glob("*/whole/summary.json")}
    whole = left(folder)
    outcome.iterations = whole["summary"]["iterations"]
    while outcome.kills < kills:
        outcome.runs += 1
        place = folder.with_name(f"killed{outcome.runs}")
        while True:
            process, log = start(place.name)
            if outcome.kills < kills:
                if outcome.kills % 2:
                    wait_for_write(process, place / "checkpoints", draw.randint(2, 5))
                    time.sleep(draw.random() * 0.004)  # a write takes some milliseconds
                else:
                    process.join(draw.uniform(0.1, 1.0) * whole_seconds)
                process.kill()
            if finished(process, log):
                break
            outcome.kills += 1
            outcome.writing += in_writing(place / "checkpoints")
        outcome.differences += differences(left(place), whole, f"{tool}/{place.name}")
        print(f"{tool}: {outcome.kills} kills, {len(outcome.differences)} differences", file=sys.stderr, flush=True)
    return outcome


def table(outcomes: list[Outcome]) -> str:
    """As Markdown."""
    lines = ["| tool | iterations | kills | in a checkpoint's writing | runs compared | differences |"]
    lines += ["| --- | ---: | ---: | ---: | ---: | ---: |"]
    rows = [(o.tool, o.iterations, o.kills, o.writing, o.runs, len(o.differences)) for o in outcomes]
    rows.append(("all", *(sum(row[i] for row in rows) for i in range(1, 6))))
    return "\n".join([*lines, *(f"| {' | '.join(map(str, row))} |" for row in rows)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tools", nargs="+", default=list(TOOLS), choices=list(TOOLS))
    parser.add_argument("--kills", type=int, default=10, help="for each tool")
    parser.add_argument("--seed", type=int, default=0, help="chooses the moments")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["frozenllm.core.training.run", *{TOOLS[tool][0] for tool in options.tools}])
    outcomes, failures = [], 0
    with tempfile.TemporaryDirectory() as scratch:
        data = f"{scratch}/data"
        writer = context.Process(target=write_data, args=(data,))
        writer.start()
        writer.join()
        for tool in options.tools:
            module, overrides = TOOLS[tool]
            overrides = [text.format(data=data) for text in (*overrides, *COMMON)]
            try:
                outcomes.append(torture(tool, module, overrides, options.kills, Path(scratch, tool), options.seed))
            except RuntimeError:
                traceback.print_exc()
                failures += 1
            if options.json:
                options.json.parent.mkdir(parents=True, exist_ok=True)
                options.json.write_text(json.dumps([asdict(outcome) for outcome in outcomes], indent=2) + "\n")
    print(table(outcomes))
    for outcome in outcomes:
        print(*outcome.differences, sep="\n", end="\n" * bool(outcome.differences))
    sys.exit(failures > 0 or any(outcome.differences for outcome in outcomes))


if __name__ == "__main__":
    main()
