"""The command line of every domain: ``python -m frozenllm.<domain>.train``."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from mmengine.registry import build_from_cfg
from omegaconf import DictConfig, open_dict

from frozenllm.core.training.composition import CONFIG_ERRORS, VERSION_BASE, check_types, one_sentence, with_recipe
from frozenllm.core.training.guard import FrozenBlockChanged
from frozenllm.core.training.registry import mistake_in
from frozenllm.core.training.run import evaluate, train

_DEBUG = "HYDRA_FULL_ERROR"
_OWN_DEBUG = "FROZENLLM_FULL_ERROR"  # what the user set the former to
_NAME_LIMIT = 120


def run_cli(
    package: str,
    argv: Sequence[str] | None = None,
    config: str = "config",
    job: Callable[[DictConfig], Any] | None = None,
) -> None:
    """Compose a domain's config from command-line overrides and run it; exits with status 1 on a user's error.

    Args:
        package: Importable package with the domain's config files.
        argv: Arguments, Hydra's flags among them (``-m`` sweeps, ``--cfg job`` shows the config); None for the
            process's own.
        config: Name of the config file to start from.
        job: What to do with the config, for other commands than training: a function that handles its errors with
            `failure`. None for `run_job`.
    """
    program, own = sys.argv[0], os.environ.get(_DEBUG)
    sys.argv = [program, *(sys.argv[1:] if argv is None else argv)]
    os.environ[_DEBUG] = "1"  # Hydra hands errors on instead of printing them
    os.environ[_OWN_DEBUG] = own or "0"
    try:
        hydra.main(config_path=f"pkg://{package}", config_name=config, version_base=VERSION_BASE)(job or run_job)()
    except Exception as error:
        sys.exit(report(error, own == "1"))
    finally:
        del os.environ[_DEBUG], os.environ[_OWN_DEBUG]
        if own is not None:
            os.environ[_DEBUG] = own


def run_tool(package: str, toy: Callable[[], Any], argv: Sequence[str] | None = None) -> None:
    """The command line of a training tool: its toy run where nothing else is asked for, else `run_cli`.

    Args:
        package: See `run_cli`.
        toy: The comparison on the domain's toy data.
        argv: Overrides in Hydra's grammar; None for the process's arguments.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments:
        run_cli(package, arguments)
        return
    with errors_in_a_sentence():
        toy()


def run_job(cfg: DictConfig) -> float | None:
    """One job: called by Hydra, also by its launchers in other processes.

    Returns:
        The best value of the metric ``best``, which Hydra's sweepers may optimise.
    """
    state = HydraConfig.get()
    cfg = with_recipe(cfg, state.runtime.choices.get("recipe"))
    if state.mode == RunMode.MULTIRUN:
        with open_dict(cfg):
            cfg.name = f"{cfg.name}/{job_name(state.job.override_dirname)}"
            cfg.sweep = list(state.overrides.task)  # tables tell the runs of a sweep apart by them
    try:
        check_types(cfg, _package(state), state.overrides.task, state.runtime.choices)
        if cfg.eval_only:
            evaluate(cfg)
            return None
        result = train(cfg)
    except Exception as error:
        raise failure(error) from error
    return result.best["value"] if result.best else None


def _package(state: Any) -> str:
    """The config package that the command line started from."""
    return next(source.path for source in state.runtime.config_sources if source.provider == "main")


def failure(error: BaseException) -> SystemExit:
    """Report a job's error; to be raised in its place, since Hydra would put a line of its own before the sentence."""
    return SystemExit(report(error, os.environ.get(_OWN_DEBUG) == "1"))


@contextmanager
def errors_in_a_sentence(*, goes_on: bool = False) -> Iterator[None]:
    """What a command does inside ends with one sentence and status 1 where the user can mend it.

    For commands without a config; `run_cli` and `run_tool` do it for those that have one.

    Args:
        goes_on: The command goes on where it was when it is given again: said to a user who stops it.
    """
    try:
        yield
    except KeyboardInterrupt:
        if not goes_on:
            raise
        sys.exit("stopped: the same command goes on where it was")
    except Exception as error:
        sentence = None if os.environ.get(_DEBUG) == "1" else users_error(error)
        if sentence is None and isinstance(error, OSError) and (error.filename or error.errno == errno.ENOSPC):
            sentence = f"{error.filename or 'The disk'}: {error.strerror}."
        if sentence is None:
            raise
        sys.exit(f"error: {sentence}")


def report(error: BaseException, full: bool) -> int:
    """Print an error, as a sentence where the user can mend it; returns the exit status.

    Args:
        error: The error.
        full: Print the traceback in any case (HYDRA_FULL_ERROR=1).
    """
    sys.stdout.flush()
    sentence = None if full else users_error(error)
    if sentence is None:
        traceback.print_exception(error)
    else:
        print(f"error: {sentence}", file=sys.stderr)
    return 1


def job_name(overrides: str) -> str:
    """A folder name for one job of a sweep, from its overrides."""
    name = re.sub(r"[^\w.,=+-]", "", overrides)
    if len(name) > _NAME_LIMIT:
        name = f"{name[:_NAME_LIMIT]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"
    return name


def users_error(error: BaseException) -> str | None:
    """The sentence to print for an error that the user can mend; None for one of ours, which needs its traceback."""
    if isinstance(error, CONFIG_ERRORS):
        return one_sentence(error)
    frames = list(traceback.walk_tb(error.__traceback__))
    origin = frames[-1][0].f_globals.get("__name__", "") if frames else ""
    if isinstance(error, ValueError) and origin.startswith("hydra."):
        return f"The command line cannot be read ({str(error).splitlines()[0].removesuffix('.')})."
    if isinstance(error, FrozenBlockChanged | ImportError):
        return str(error)
    if not isinstance(error, ValueError):
        return mistake_in(error) if origin == build_from_cfg.__module__ else None
    if re.match(r"Caught \w+ in DataLoader worker", str(error)):
        return _workers_sentence(str(error))
    return str(error) if origin.startswith("frozenllm.") else None


def _workers_sentence(text: str) -> str | None:
    """The sentence of an error that a loader's worker raised: torch hands on its traceback as the message."""
    files = re.findall(r'^\s*File "([^"]+)"', text, flags=re.MULTILINE)
    if not files or "frozenllm" not in Path(files[-1]).parts:
        return None
    return re.split(r"\n(?:[\w.]+\.)?(?:ValueError|BrokenSample): ", text)[-1].strip()
