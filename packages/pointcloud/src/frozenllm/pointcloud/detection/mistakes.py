"""Mistakes in configs and options that mmengine passes over, or answers with a traceback."""

from __future__ import annotations

import argparse
import contextlib
import difflib
import inspect
import pickle
import re
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mmengine.config import Config, DictAction

# Keys of a config that mmengine's runner reads besides its arguments.
_READ_BY_RUNNER = (
    "activation_checkpointing", "auto_scale_lr", "compile", "detect_anomalous_params", "efficient_conv_bn_eval",
    "find_unused_parameters", "model_wrapper_cfg", "sync_bn",
)  # fmt: skip


class Options(DictAction):
    """``--cfg-options``; mmengine's own fails where a value is missing."""

    def __call__(self, parser: argparse.ArgumentParser, namespace: Any, values: Any, option_string: Any = None) -> None:
        """See `argparse.Action`."""
        for value in values:
            if "=" not in value:
                parser.error(f"--cfg-options takes KEY=VALUE, not {value!r}")
        super().__call__(parser, namespace, values, option_string)


def check_keys(cfg: Config, options: dict[str, Any]) -> None:
    """Refuse options whose first key nothing reads: mmengine takes any, and forgets those that it does not know.

    Raises:
        ValueError: There is one.
    """
    from mmengine.runner import Runner

    known = {*cfg, *inspect.signature(Runner.__init__).parameters, *_READ_BY_RUNNER}
    for key in options:
        first = key.partition(".")[0]
        if first not in known:
            near = difflib.get_close_matches(first, known, n=1)
            raise ValueError(f"There is no config key {first!r}{f': did you mean {near[0]!r}?' if near else '.'}")


def check_start(cfg: Config) -> None:
    """See that the checkpoint that a config starts from is there.

    Raises:
        ValueError: It is not.
    """
    start = cfg.get("load_from")
    if start and "://" not in str(start) and not Path(start).is_file():
        raise ValueError(f"There is no checkpoint at {start}.")


@contextlib.contextmanager
def mistakes_in(cfg: Config) -> Iterator[None]:
    """Say in one sentence what mmengine finds wrong with a config's names, which it says in a traceback.

    Raises:
        ValueError: In the place of its errors.
    """
    try:
        yield
    except (TypeError, KeyError) as error:
        said = str(error.args[0]) if error.args else ""
        option = said.rpartition("unexpected keyword argument ")[2].strip("'")
        if option in _keys(cfg._cfg_dict):
            raise ValueError(f"The config has an option that nothing takes: {said}.") from error
        if re.match(r"\S+ is not in the \S+ registry", said):
            raise ValueError(f"The config names a type that is not known: {said.partition('. ')[0]}.") from error
        raise
    except ValueError as error:  # of a loader: a batch size or a number of workers that is none
        last = [frame for frame, _ in traceback.walk_tb(error.__traceback__)][-1]
        if last.f_globals.get("__name__", "").startswith("torch.utils.data."):
            raise ValueError(f"The config has a loader that cannot be: {str(error).rstrip('.')}.") from error
        raise
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{cfg.get('load_from')}: is not a checkpoint, or holds other things than tensors and plain values."
        ) from error


def _keys(value: Any) -> set[str]:
    return {str(key) for key, _ in entries(value)}.union(*(_keys(entry) for _, entry in entries(value)))


def entries(value: Any) -> Iterator[tuple[Any, Any]]:
    """Keys and values of a dict, places and values of a list; of anything else, none."""
    if isinstance(value, dict):
        yield from list(value.items())
    elif isinstance(value, list):
        yield from enumerate(list(value))
