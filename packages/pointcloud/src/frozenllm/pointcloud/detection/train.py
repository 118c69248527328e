"""Training and evaluation of 3D detectors: ``python -m frozenllm.pointcloud.detection.train CONFIG [options]``.

Configs are mmengine's, run by mmdet3d's own runner, data sets, heads, losses and metrics. Without arguments it trains a
small VoteNet on toy rooms, alone and with the frozen bundled block.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmengine.config import Config

from frozenllm.core.block import llm_blocks
from frozenllm.core.training import ArmResult, RunResult, errors_in_a_sentence, print_table
from frozenllm.pointcloud.detection import config_path, configs
from frozenllm.pointcloud.detection.extra import require_mmdet3d
from frozenllm.pointcloud.detection.mistakes import Options, check_keys, check_start, entries, mistakes_in
from frozenllm.pointcloud.detection.toy_kitti import write_kitti
from frozenllm.pointcloud.detection.toy_scannet import write_scannet

RUNS = Path("runs/detection")
TOY = {"kitti": write_kitti, "scannet": write_scannet}
ARMS = {"host alone": "toy_votenet", "+ frozen bundled block": "toy_votenet_frozenllm"}
METRIC = "mAP_0.25"


def load_config(
    config: str, *, data_root: str | os.PathLike[str] | None = None, options: dict[str, Any] | None = None
) -> Config:
    """Read a config and name its data.

    Args:
        config: A shipped config's name (`configs`) or a file.
        data_root: Takes the place of the config's ``data_root``, wherever it occurs. None leaves it, but for toy
            configs: their data is then in the user's cache.
        options: Further values, with dotted keys as for mmengine's ``--cfg-options``.

    Returns:
        The config, with ``work_dir`` set to ``runs/detection/<name>`` if it has none.

    Raises:
        ImportError: mmdet3d or mmcv's operators are missing.
        ValueError: There is no such config, it is damaged, or an option has a key that nothing reads.
    """
    require_mmdet3d()
    path = Path(config) if config.endswith(".py") else config_path(config)
    if not path.is_file():
        raise ValueError(f"There is no config file {config}; shipped ones are {', '.join(configs())}.")
    try:
        cfg = Config.fromfile(path)
    except SyntaxError as error:
        raise ValueError(f"{path} is not a config: {error.msg} (line {error.lineno}).") from error
    if "model" not in cfg:
        raise ValueError(f"{path} is not a detector's config: it has no model.")
    toy = cfg.get("toy_data")
    if data_root is None and toy is not None:
        data_root = TOY[toy]()  # written where it is missing
    if data_root is not None:
        if "data_root" not in cfg:
            raise ValueError(f"{path.name} has no data_root to replace.")
        # In place, not through mmengine's merging, which would lose what is inside lists.
        _replace(cfg._cfg_dict, str(cfg.data_root).rstrip("/"), str(data_root).rstrip("/"))
    check_keys(cfg, options or {})
    cfg.merge_from_dict(options or {})
    if cfg.get("work_dir") is None:
        cfg.work_dir = str(RUNS / path.stem)
    return cfg


def prepare_data(cfg: Config) -> None:
    """Write toy data where a toy config's is missing, and see that all annotation files are there.

    Raises:
        ValueError: One is missing.
    """
    toy = cfg.get("toy_data")
    for loader in ("train_dataloader", "val_dataloader", "test_dataloader"):
        dataset = cfg.get(loader, {}).get("dataset")
        while dataset is not None and "dataset" in dataset:  # RepeatDataset and other wrappers
            dataset = dataset["dataset"]
        if not dataset or "ann_file" not in dataset:
            continue
        path = Path(dataset.get("data_root") or "") / dataset["ann_file"]
        if toy in TOY and not path.exists():
            TOY[toy](cfg.data_root)
        if not path.exists():
            raise ValueError(
                f"There is no annotation file {path}: prepare the data as mmdet3d's documentation says, "
                "or name its folder with --data-root."
            )


def train(cfg: Config, *, overwrite: bool = False) -> RunResult:
    """Train what a config describes, through mmengine's runner.

    Args:
        cfg: From `load_config`. With ``cfg.resume`` the run in its ``work_dir`` goes on.
        overwrite: Start anew in a folder that holds a run.

    Returns:
        Figures of the run; ``summary.json`` in its folder holds the same.

    Raises:
        ValueError: The data or the checkpoint to start from is missing, or the folder holds a run already.
    """
    from mmengine.runner import Runner

    prepare_data(cfg)
    check_start(cfg)
    if (Path(cfg.work_dir) / "last_checkpoint").exists() and not (cfg.get("resume") or overwrite):
        raise ValueError(f"{cfg.work_dir} holds a run already: continue it with --resume, or replace it: --overwrite.")
    begin = time.perf_counter()
    runner = Runner.from_cfg(cfg)
    model = runner.train()
    scalars = runner.message_hub.log_scalars
    steps = [float(value) for value in scalars["train/time"].data[0]] if "train/time" in scalars else []
    result = RunResult(
        run_dir=str(cfg.work_dir),
        seed=runner.seed,
        metrics={
            name.removeprefix("val/"): float(values.current())
            for name, values in scalars.items()
            if name.startswith("val/") and name not in ("val/time", "val/data_time")
        },
        trainable=sum(p.numel() for p in model.parameters() if p.requires_grad),
        frozen=sum(b.numel() for _, block in llm_blocks(model) for b in block.buffers()),
        epochs=runner.epoch,
        iterations=runner.iter,
        step_seconds=statistics.median(steps) if steps else None,
        seconds=time.perf_counter() - begin,
        finished=True,
    )
    if runner.rank == 0:
        (Path(cfg.work_dir) / "summary.json").write_text(json.dumps(dataclasses.asdict(result), indent=2) + "\n")
    return result


def evaluate(cfg: Config, checkpoint: str | os.PathLike[str]) -> dict[str, float]:
    """Evaluate a checkpoint on the config's test data.

    Raises:
        ValueError: The data or the checkpoint is missing, or the checkpoint is of another model or block.
    """
    from mmengine.runner import Runner

    prepare_data(cfg)
    if not Path(checkpoint).is_file():
        raise ValueError(f"There is no checkpoint at {checkpoint}.")
    cfg.load_from, cfg.resume = str(checkpoint), False
    return Runner.from_cfg(cfg).test()


def toy() -> None:
    """The small VoteNet alone beside the one with the frozen layer, on the toy rooms."""
    results = []
    for arm, config in ARMS.items():
        print(f"== {arm}", flush=True)
        cfg = load_config(config, options={"work_dir": str(RUNS / "toy" / config), "log_level": "WARNING"})
        result = train(cfg, overwrite=True)
        result.metrics = {name: 100 * value for name, value in result.metrics.items()}  # in per cent
        results.append(ArmResult(arm, [result]))
    print_table(results, METRIC)


def main(argv: Sequence[str] | None = None) -> None:
    """The command line.

    Args:
        argv: Arguments; None for the process's. Without any, `toy` runs.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    with errors_in_a_sentence():
        if arguments:
            _run(_parser().parse_args(arguments))
        else:
            toy()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="train_detector.py", description="Train or evaluate a 3D detector.")
    parser.add_argument("config", help=f"a file, or one of {', '.join(configs())}")
    parser.add_argument("--data-root", help="the data's folder, in the place of the config's")
    parser.add_argument("--work-dir", help="the run's folder (default: runs/detection/<config>)")
    parser.add_argument(
        "--resume", nargs="?", const="auto", help="continue the run, from its newest checkpoint or this"
    )
    parser.add_argument("--overwrite", action="store_true", help="start anew in a folder that holds a run")
    parser.add_argument("--load-from", help="a checkpoint to start from, such as the host's alone")
    parser.add_argument("--eval-only", metavar="CHECKPOINT", help="evaluate a checkpoint on the test data")
    parser.add_argument("--launcher", choices=("none", "pytorch", "slurm", "mpi"), default="none")
    parser.add_argument("--cfg-options", nargs="+", action=Options, metavar="KEY=VALUE", help="other values")
    return parser


def _run(options: argparse.Namespace) -> None:
    given = {"launcher": options.launcher, **(options.cfg_options or {})}
    if options.work_dir is not None:
        given["work_dir"] = options.work_dir
    if options.load_from is not None:
        given["load_from"] = options.load_from
    if options.resume is not None:
        given.update(resume=True, load_from=None if options.resume == "auto" else options.resume)
    cfg = load_config(options.config, data_root=options.data_root, options=given)
    if cfg.launcher == "pytorch" and "RANK" not in os.environ:
        raise ValueError("--launcher pytorch is for processes that torchrun starts: torchrun --nproc_per_node=8 ...")
    with mistakes_in(cfg):
        if options.eval_only is None:
            train(cfg, overwrite=options.overwrite)
        else:
            metrics = evaluate(cfg, options.eval_only)
            print(json.dumps({name: float(value) for name, value in metrics.items()}, indent=2))


def _replace(value: Any, old: str, new: str) -> None:
    """Replace a folder at the beginning of every path in a config, in place."""
    for key, entry in entries(value):
        if isinstance(entry, str) and (entry == old or entry.startswith(f"{old}/")):
            value[key] = new + entry[len(old) :]
        else:
            _replace(entry, old, new)


if __name__ == "__main__":
    main()
