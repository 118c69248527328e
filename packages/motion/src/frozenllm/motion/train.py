"""Training and evaluation of motion forecasting: ``python -m frozenllm.motion.train [overrides]``.

Without arguments it trains a small VectorNet on toy traffic in the format of Argoverse 2, alone and with the frozen
bundled block, on a CPU in about two minutes, and prints both beside constant velocity.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from torch import nn

from frozenllm.core.training import (
    DATASETS,
    FUNCTIONS,
    HOST_AND_LAYER,
    METRICS,
    MODELS,
    ArmResult,
    call_with_options,
    compare,
    compose_config,
    run_tool,
)
from frozenllm.motion import constant_velocity
from frozenllm.motion.data import argoverse1, argoverse2, collate_scenes, toy_argoverse1, toy_argoverse2
from frozenllm.motion.metrics import MotionMetric
from frozenllm.motion.models import MMTransformer, VectorNet
from frozenllm.motion.task import MotionTask

CONFIG = "frozenllm.motion.conf"
METRIC = "motion/minADE6"
SHOWN = ("minFDE6", "minADE6", "MR6", "minFDE1", "minADE1", "MR1")
TOY = ["recipe=traffic", "runs=runs/toy", "runtime.console=false"]


def build_vectornet(*, llm: Mapping[str, Any] | None = None, **options: Any) -> nn.Module:
    """`VectorNet`, from the config group ``model``.

    Args:
        llm: The config group ``llm``; None for the host alone.
        **options: Arguments of `VectorNet`.

    Raises:
        ValueError: An option is unknown or not possible.
    """
    return _build(VectorNet, llm, options)


def build_mmtransformer(*, llm: Mapping[str, Any] | None = None, **options: Any) -> nn.Module:
    """`MMTransformer`, from the config group ``model``.

    Args:
        llm: The config group ``llm``; None for the host alone.
        **options: Arguments of `MMTransformer`.

    Raises:
        ValueError: An option is unknown or not possible.
    """
    return _build(MMTransformer, llm, options)


_WHOLE = ("horizon", "modes", "dim", "width", "subgraph_layers", "heads", "hidden", "layers", "position_dim")


def _build(host: Callable[..., nn.Module], llm: Mapping[str, Any] | None, options: Mapping[str, Any]) -> nn.Module:
    for name in (name for name in _WHOLE if name in options):
        value = options[name]
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"model.{name} must be a whole number from 1, not {value!r}.")
    rest = options.get("global_layers", 0)
    if isinstance(rest, bool) or not isinstance(rest, int) or rest < 0:
        raise ValueError(f"model.global_layers must be a whole number from 0, not {rest!r}.")
    scale = options.get("position_scale", 1.0)
    if isinstance(scale, bool) or not isinstance(scale, int | float) or not 0 < scale < float("inf"):
        raise ValueError(f"model.position_scale must be a number above 0, not {scale!r}.")
    if options.get("dim", 0) % options.get("heads", 1):
        raise ValueError(f"model.dim={options['dim']} is not a multiple of model.heads={options['heads']}.")
    return call_with_options(host, options, "the config group model", llm=llm)


MODELS.register_module("vectornet", module=build_vectornet)
MODELS.register_module("mmtransformer", module=build_mmtransformer)
MODELS.register_module("MotionTask", module=MotionTask)
DATASETS.register_module("argoverse1", module=argoverse1)
DATASETS.register_module("argoverse2", module=argoverse2)
DATASETS.register_module("toy_argoverse1", module=toy_argoverse1)
DATASETS.register_module("toy_argoverse2", module=toy_argoverse2)
FUNCTIONS.register_module("scenes", module=collate_scenes)
METRICS.register_module("MotionMetric", module=MotionMetric)


def toy() -> None:
    """The host alone beside the host with the frozen layer, and constant velocity beside both, on the toy data."""
    overrides = [*TOY, f"data.cache={_toy_cache(compose_config(CONFIG, TOY))}"]
    results = compare(CONFIG, HOST_AND_LAYER, overrides=overrides)
    baseline = constant_velocity.evaluate(_data(compose_config(CONFIG, overrides), "val"))
    print()
    print(beside(baseline, results), flush=True)


def beside(baseline: Mapping[str, float], results: Sequence[ArmResult]) -> str:
    """A table of arms (means over seeds) under constant velocity; metres, and miss rates in per cent.

    Args:
        baseline: What `frozenllm.motion.constant_velocity.evaluate` gives.
        results: What `frozenllm.core.training.compare` gives.
    """
    rows = [("arm", *SHOWN, "trainable", "frozen", "step")]
    rows.append(("constant velocity", *(_figure(name, baseline[name]) for name in SHOWN), "0", "0", "-"))
    for result in results:
        figures = [_figure(name, result.mean(f"motion/{name}")) for name in SHOWN]
        step = result.step_seconds
        took = f"{1000 * step:.0f} ms" if step else "-"
        rows.append((result.arm, *figures, f"{result.trainable:,}", f"{result.frozen:,}", took))
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = [
        "  ".join(
            [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        )
        for row in rows
    ]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])


def _figure(name: str, value: float) -> str:
    return f"{100 * value:.0f} %" if name.startswith("MR") else f"{value:.2f}"


def _data(cfg: DictConfig, role: str, **changes: Any) -> Any:
    settings: dict[str, Any] = OmegaConf.to_container(cfg.data[role], resolve=True)  # type: ignore[assignment]
    return DATASETS.build({**settings, **changes})


def _toy_cache(cfg: DictConfig) -> Path:
    """The toy scenarios' samples, cached beside them: reading maps at every epoch would take longer than training.

    The test split too, so that a submission can be written from the runs as they are.
    """
    from frozenllm.motion.preprocess import write_cache

    folder = None
    for split in ("train", "val", "test"):
        scenes = _data(cfg, "val", cache=None, split=split)
        folder = scenes.folder.parent.with_name(f"{scenes.folder.parent.name}-samples")
        write_cache(scenes, folder / split, "argoverse2", split, progress=False)
    assert folder is not None
    return folder


main = partial(run_tool, CONFIG, toy)
"""The command line; takes overrides in Hydra's grammar, or None for the process's. Without any, `toy` runs."""


if __name__ == "__main__":
    main()
