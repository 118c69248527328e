"""The values of a config: what every domain's groups take, checked before anything is built or written.

The keys that a domain adds are checked where they are used; an unknown key is Hydra's to refuse.
"""

from __future__ import annotations

import math
import multiprocessing
from collections.abc import Callable, Mapping
from typing import Any

from omegaconf import DictConfig, OmegaConf

_Check = Callable[[Any], bool]
_Rule = tuple[_Check, str]


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _whole(least: int) -> _Rule:
    return lambda value: _is_whole(value) and value >= least, f"a whole number from {least}"


def _either(*rules: _Rule) -> _Rule:
    return lambda value: any(check(value) for check, _ in rules), " or ".join(wanted for _, wanted in rules)


_NULL: _Rule = (lambda value: value is None, "null")
_FLAG: _Rule = (lambda value: isinstance(value, bool), "true or false")
_GROUP: _Rule = (lambda value: isinstance(value, dict), "a group of keys")
_NUMBER: _Rule = (_is_number, "a number")
_POSITIVE: _Rule = (lambda value: _is_number(value) and value > 0, "a number above 0")
_FROM_ZERO: _Rule = (lambda value: _is_number(value) and value >= 0, "a number from 0")
_SEED: _Rule = (lambda value: _is_whole(value) and 0 <= value < 2**32, "a whole number from 0 to 4294967295")
_SHARE: _Rule = (lambda value: _is_number(value) and 0 <= value < 1, "a number from 0 to below 1")
_LAYERS: _Rule = (
    lambda value: isinstance(value, list) and bool(value) and all(_is_whole(layer) for layer in value),
    "a list of layers such as [31]",
)
_STARTS = multiprocessing.get_all_start_methods()
_START: _Rule = (lambda value: value in _STARTS, " or ".join(_STARTS))
_TEXT: _Rule = (lambda value: isinstance(value, str) and bool(value.strip()), "text that is not empty")
_NUMBERS: _Rule = (lambda value: isinstance(value, list) and all(map(_is_number, value)), "a list of numbers")
_METRICS: _Rule = (
    lambda value: isinstance(value, list) and bool(value) and all(isinstance(m, dict) and "type" in m for m in value),
    "a list of metrics, each with a type",
)
_DATA: _Rule = (lambda value: isinstance(value, dict) and "type" in value, "a group of keys, type among them")
_NAME: _Rule = (
    lambda value: _is_number(value) or (isinstance(value, str) and _stays(value)),
    "a folder's name, or several with / between them",
)

_GROUPS = ("model", "data", "task", "llm", "optim", "schedule", "runtime")
_RULES: dict[str, _Rule] = {
    **dict.fromkeys(_GROUPS, _GROUP),
    "name": _NAME,
    "metrics": _METRICS,
    **dict.fromkeys(("resume", "overwrite", "eval_only"), _FLAG),
    **dict.fromkeys(("data.train", "data.val"), _DATA),
    "data.test": _either(_DATA, _NULL),
    **dict.fromkeys(("data.batch_size", "data.repeats"), _whole(1)),
    "data.val_batch_size": _either(_whole(1), _NULL),
    **{f"data.{role}.limit": _either(_whole(1), _NULL) for role in ("train", "val", "test")},
    "data.drop_last": _FLAG,
    "model.drop_path_rate": _SHARE,
    **dict.fromkeys(("model.grad_checkpointing", "model.freeze_host"), _FLAG),
    **dict.fromkeys(("llm.source", "llm.path", "llm.revision"), _either(_TEXT, _NULL)),
    "llm.layers": _either(_LAYERS, _NULL),
    "llm.seed": _SEED,
    "llm.lora_rank": _either(_whole(1), _NULL),
    "llm.lora_alpha": _either(_POSITIVE, _NULL),
    **dict.fromkeys(("llm.trainable", "llm.checkpoint_activations"), _FLAG),
    "optim.lr": _NUMBER,  # its sign: `settings.scaled_lr`
    "optim.weight_decay": _FROM_ZERO,
    **dict.fromkeys(("optim.lr_batch", "optim.layer_decay"), _either(_POSITIVE, _NULL)),
    **dict.fromkeys(("optim.adapter_lr_mult", "optim.no_decay_lr_mult"), _FROM_ZERO),
    "optim.clip_grad": _either(_FROM_ZERO, _GROUP, _NULL),
    "optim.clip_grad.value": _POSITIVE,
    "optim.accumulate": _whole(1),
    "optim.ema": _either(_GROUP, _NULL),
    "optim.ema.decay": _SHARE,
    "schedule.epochs": _whole(1),
    **{f"schedule.{key}": _FROM_ZERO for key in ("warmup_epochs", "warmup_lr", "min_lr", "delay", "gamma")},
    **{f"schedule.{key}": _FLAG for key in ("scale_ends", "shift", "per_epoch")},
    "schedule.milestones": _NUMBERS,
    "runtime.seed": _SEED,
    "runtime.precision": (lambda value: value in ("fp32", "bf16", "fp16"), "fp32, bf16 or fp16"),
    "runtime.workers": _whole(0),
    "runtime.worker_start": _START,
    "runtime.sample_timeout": _either(_POSITIVE, _NULL),
    "runtime.timeout_minutes": _POSITIVE,
    **dict.fromkeys(("runtime.log_interval", "runtime.val_interval"), _whole(1)),
    **dict.fromkeys(("runtime.threads", "runtime.stop_after"), _either(_whole(1), _NULL)),
    **{f"runtime.{key}": _FLAG for key in ("pin_memory", "deterministic", "sync_bn", "find_unused_parameters")},
    **{f"runtime.{key}": _FLAG for key in ("console", "plots", "tensorboard")},
    **dict.fromkeys(("runtime.compile", "runtime.wandb"), _either(_FLAG, _GROUP)),
    **dict.fromkeys(("runtime.checkpoint.every_epochs", "runtime.checkpoint.keep"), _whole(1)),
    "runtime.checkpoint.every_iters": _whole(0),
}
_MISSING: Any = object()


def check_values(cfg: DictConfig) -> None:
    """Refuse a config with a value of the wrong type, or out of range.

    Args:
        cfg: Resolved. Keys that it lacks are not looked at.

    Raises:
        ValueError: There is one; the sentence names its key, what it takes and what was given.
    """
    plain: Any = OmegaConf.to_container(cfg)
    for key, (check, wanted) in _RULES.items():
        value = _at(plain, key)
        if value is not _MISSING and not check(value):
            raise ValueError(f"{key} must be {wanted}, not {value!r}.")


def _at(value: Any, key: str) -> Any:
    for part in key.split("."):
        if not isinstance(value, Mapping) or part not in value:
            return _MISSING
        value = value[part]
    return value


def _stays(name: str) -> bool:
    """Whether a name leads into a folder and not out of it."""
    parts = name.removesuffix("/").split("/")  # a sweep over recipes alone ends in one
    return all(part.strip() not in ("", ".", "..") for part in parts) and "\0" not in name
