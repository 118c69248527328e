"""From the composed config to the plain dict that mmengine's runner is built from."""

from __future__ import annotations

import importlib
import importlib.util
import uuid
from collections.abc import Mapping
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from torch import nn

from frozenllm.core.training.options import built_by_config
from frozenllm.core.training.registry import FUNCTIONS, MODELS, SCOPE

_TRACKERS = {"tensorboard": "TensorboardVisBackend", "wandb": "WandbVisBackend"}


def import_registrations(cfg: DictConfig) -> None:
    """Import the modules that register what the config names."""
    for module in cfg.imports:
        importlib.import_module(module)


def llm_arguments(llm: Mapping[str, Any], precision: str) -> dict[str, Any] | None:
    """The ``llm`` group as `frozenllm.core.build_llm_layer` takes it.

    Args:
        llm: The group. Its ``dtype: auto`` follows the precision: frozen weights are stored in the type they are
            computed in, since casting 200 million of them at every step costs as much as the rest of a small batch.
            Trained weights stay in float32.
        precision: ``runtime.precision``.

    Returns:
        The arguments, or None for no layer.
    """
    if llm["kind"] == "none":
        return None
    half = {"bf16": "bfloat16", "fp16": "float16"}.get(precision)
    auto = None if llm.get("trainable") else half
    return {**llm, "dtype": auto if llm.get("dtype") == "auto" else llm.get("dtype")}


def model_settings(cfg: DictConfig) -> dict[str, Any]:
    """The ``model`` group with the ``llm`` group in it; what the model itself says about its layer wins."""
    plain = OmegaConf.to_container(cfg, resolve=True)
    assert isinstance(plain, dict)
    model = dict(plain["model"])
    own = model.pop("llm", None) or {}
    arguments = llm_arguments(plain["llm"], plain["runtime"]["precision"])
    return {**model, "llm": None if arguments is None else {**arguments, **own}}


def build_model(cfg: DictConfig) -> nn.Module:
    """The plain module that a config describes, without a task around it."""
    import_registrations(cfg)
    settings = model_settings(cfg)
    builder = MODELS.get(settings["type"])
    if builder is None:
        raise ValueError(f"There is no model type {settings['type']!r}: check model.type, and the config's imports.")
    return built_by_config(lambda: builder(**{key: value for key, value in settings.items() if key != "type"}))


def global_batch(cfg: DictConfig, world_size: int) -> int:
    """Samples per update, over all processes and accumulated iterations."""
    return cfg.data.batch_size * world_size * cfg.optim.accumulate


def scaled_lr(cfg: DictConfig, world_size: int) -> float:
    """``optim.lr``, times global batch over ``optim.lr_batch`` where that is given (linear scaling).

    Raises:
        ValueError: The rate is not positive.
    """
    reference = cfg.optim.lr_batch
    if cfg.optim.lr <= 0:
        raise ValueError(f"optim.lr must be positive, not {cfg.optim.lr}.")
    return cfg.optim.lr * (global_batch(cfg, world_size) / reference if reference else 1.0)


def engine_settings(
    cfg: DictConfig,
    folder: str,
    device: torch.device,
    strategy: str,
    world_size: int,
    load_from: str | None = None,
    resume: bool = False,
) -> dict[str, Any]:
    """A dict of mmengine's shape, for `Engine.from_cfg`.

    Args:
        cfg: Resolved config.
        folder: Run folder.
        device: This process's device.
        strategy: ``"none"``, ``"ddp"`` or ``"fsdp"``.
        world_size: Number of processes.
        load_from: Checkpoint to start from.
        resume: Continue that checkpoint's run, instead of starting with its weights.

    Raises:
        ValueError: Settings that do not go together.
    """
    plain: dict[str, Any] = OmegaConf.to_container(cfg)  # type: ignore[assignment]
    runtime, data, optim = plain["runtime"], plain["data"], plain["optim"]
    precision = runtime["precision"]
    if precision == "fp16" and (device.type == "cpu" or strategy == "fsdp"):
        raise ValueError("runtime.precision=fp16 needs a GPU, and runtime.strategy other than fsdp: use bf16.")
    if plain["test_checkpoint"] not in ("last", "best"):
        raise ValueError(f"test_checkpoint must be last or best, not {plain['test_checkpoint']!r}.")
    if plain["test_checkpoint"] == "best" and plain["best"] is None and data["test"]:
        raise ValueError("test_checkpoint=best needs a metric that picks it: give best=..., or test_checkpoint=last.")
    if optim["ema"] and strategy == "fsdp":
        raise ValueError("optim.ema does not go with runtime.strategy=fsdp: use ddp, or optim.ema=null.")

    validates = {
        "val_dataloader": _loader(plain, "val"),
        "val_evaluator": plain["metrics"],
        "val_cfg": {"type": "ValLoop"},
    }
    if data["test"]:
        validates |= {
            "test_dataloader": _loader(plain, "test"),
            "test_evaluator": plain["metrics_test"] or plain["metrics"],
            "test_cfg": {"type": "TestLoop"},
        }
    ddp = strategy == "ddp"
    hooks: list[dict[str, Any]] = []
    trains: dict[str, Any] = {}
    if not plain["eval_only"]:
        hooks = [{"type": "Reseed"}, {"type": "FrozenGuard"}, {"type": "FiniteGuard"}, _saver(plain)]
        trains = _training(plain, precision, scaled_lr(cfg, world_size))
    if optim["ema"] and (trains or optim["ema"].get("evaluate") == "ema"):
        hooks.append({"type": "EMA", **optim["ema"]})
    name = f"{plain['recipe']}-{plain['name']}-{uuid.uuid4().hex[:8]}"
    return {
        **validates,
        **trains,
        "model": {**plain["task"], "model": model_settings(cfg), "precision": precision},
        "work_dir": folder,
        "default_scope": SCOPE,
        "experiment_name": name,  # mmengine keeps loggers and the like in one table per process, by this name
        "default_hooks": {
            "logger": {"type": "Journal", "interval": runtime["log_interval"], "plots": runtime["plots"]},
            **dict.fromkeys(("runtime_info", "timer", "sampler_seed", "checkpoint")),
        },
        "custom_hooks": hooks,
        "visualizer": {"type": "Visualizer", "vis_backends": _trackers(runtime, folder, name)},
        "launcher": "none" if strategy == "none" else "pytorch",
        "env_cfg": {"mp_cfg": {"mp_start_method": runtime["worker_start"], "opencv_num_threads": 0}},
        "model_wrapper_cfg": {"find_unused_parameters": runtime["find_unused_parameters"]} if ddp else {},
        "randomness": {"seed": runtime["seed"], "deterministic": runtime["deterministic"]},
        "load_from": load_from,
        "resume": resume,
        "engine": {
            "device": str(device),
            "strategy": strategy,
            "sync_bn": runtime["sync_bn"],
            "compile": runtime["compile"],
            "console": runtime["console"],
            "sample_timeout": runtime["sample_timeout"],
        },
        "engine_meta": {
            "config": OmegaConf.to_yaml(cfg),
            "world_size": world_size,
            "batch_size": data["batch_size"],
            "accumulate": optim["accumulate"],
        },
    }


def _loader(plain: dict[str, Any], role: str) -> dict[str, Any]:
    data, runtime, optim = plain["data"], plain["runtime"], plain["optim"]
    train = role == "train"
    batch_size = data["batch_size"] if train else data["val_batch_size"] or data["batch_size"]
    sampler: dict[str, Any] = {"type": "EpochSampler", "shuffle": train}
    if train:
        sampler |= {"batch_size": batch_size, "accumulate": optim["accumulate"]}
        sampler |= {"drop_last": data["drop_last"], "repeats": data["repeats"]}
    workers = runtime["workers"]
    return {
        "dataset": {
            "type": "SeededDataset",
            "dataset": data[role],
            "seed": runtime["seed"],
            "role": role,
            "timeout": runtime["sample_timeout"],
        },
        "sampler": sampler,
        "batch_size": batch_size,
        "num_workers": workers,
        "persistent_workers": workers > 0,
        "pin_memory": runtime["pin_memory"] and torch.cuda.is_available(),
        "collate_fn": {"type": _collate(data["collate"])},
    }


def _collate(name: str | None) -> str:
    """A collate function by a name that mmengine resolves: it looks in its own registry unless told the scope."""
    if name is None:
        return "default_collate"
    if FUNCTIONS.get(name) is None:
        raise ValueError(f"There is no collate function {name!r}: check data.collate, and the config's imports.")
    return name if "." in name else f"{SCOPE}.{name}"


def _clipping(limit: Any) -> dict[str, Any] | None:
    """mmengine's options for ``optim.clip_grad``: a norm, or ``{value: ...}`` for every entry by itself."""
    if isinstance(limit, Mapping):
        if set(limit) != {"value"}:
            raise ValueError(f"optim.clip_grad is a norm or {{value: ...}}, not {dict(limit)}.")
        return {"type": "value", "clip_value": limit["value"]}
    return {"max_norm": limit} if limit else None


def _training(plain: dict[str, Any], precision: str, lr: float) -> dict[str, Any]:
    optim, schedule, runtime = dict(plain["optim"]), dict(plain["schedule"]), plain["runtime"]
    grouping = ("layer_decay", "adapter_lr_mult", "no_decay", "no_decay_lr_mult", "groups")
    own = ("lr_batch", "clip_grad", "accumulate", "ema", *grouping)
    optimizer = {**{k: v for k, v in optim.items() if k not in own}, "lr": lr}
    accumulate, stop_after = optim["accumulate"], runtime["stop_after"]
    epochs, warmup_lr, min_lr = schedule.pop("epochs"), schedule.pop("warmup_lr"), schedule.pop("min_lr")
    peak = optim["lr"] if schedule.pop("scale_ends") else lr
    return {
        "train_dataloader": _loader(plain, "train"),
        "train_cfg": {
            "type": "TrainLoop",
            "max_epochs": epochs,
            "val_interval": runtime["val_interval"],
            "stop_after": stop_after and -(-stop_after // accumulate) * accumulate,
        },
        "optim_wrapper": {
            "type": "ScaledOptimWrapper" if precision == "fp16" else "EngineOptimWrapper",
            **({"dtype": "float16"} if precision == "fp16" else {}),
            "constructor": "GroupedOptimizer",
            "optimizer": optimizer,
            "paramwise_cfg": {k: optim[k] for k in grouping},
            "clip_grad": _clipping(optim["clip_grad"]),
            "accumulative_counts": accumulate,
        },
        "param_scheduler": [
            {
                "type": "WarmupSchedule",
                "convert_to_iter_based": True,
                "epochs": epochs,
                "warmup": schedule.pop("warmup_epochs"),
                # Factors, so that groups with rates of their own keep their proportions.
                "start": warmup_lr / peak,
                "end": min_lr / peak,
                "accumulate": accumulate,
                **schedule,
            }
        ],
    }


def _saver(plain: dict[str, Any]) -> dict[str, Any]:
    return {"type": "Saver", "best": plain["best"], "best_mode": plain["best_mode"], **plain["runtime"]["checkpoint"]}


def _trackers(runtime: dict[str, Any], folder: str, name: str) -> list[dict[str, Any]]:
    backends = []
    for package, backend in _TRACKERS.items():
        if not runtime[package]:
            continue
        if importlib.util.find_spec(package) is None:
            raise ValueError(f"runtime.{package}=true needs {package}: pip install 'frozenllm-core[{package}]'.")
        settings: dict[str, Any] = {"type": backend, "save_dir": f"{folder}/{package}"}
        if package == "wandb":
            options = runtime[package] if isinstance(runtime[package], dict) else {}
            settings["init_kwargs"] = {"project": "frozenllm", "name": name, **options}
        backends.append(settings)
    return backends
