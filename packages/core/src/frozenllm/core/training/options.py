"""Options from a config handed to a builder: one that the builder does not know is a mistake in the config."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import torch

T = TypeVar("T")
_REFUSALS = (TypeError, ValueError, AssertionError, RuntimeError, ZeroDivisionError)


def built_by_config(build: Callable[[], T]) -> T:
    """Build a model; what a library says of options that it cannot take becomes a sentence.

    Raises:
        ValueError: In the place of an error from outside this project. One of ours goes through as it is.
    """
    try:
        return build()
    except _REFUSALS as error:
        if _is_ours(error):
            raise
        raise ValueError(
            f"The model cannot be built from these options ({_said(error)}): check the config group model, or see "
            "where with HYDRA_FULL_ERROR=1."
        ) from error


def first_batch(compute: Callable[[], T]) -> T:
    """What a model makes of its first batch: sizes that do not go together show here.

    Raises:
        ValueError: In the place of any other error of torch or a library. One of ours goes through as it is.
    """
    try:
        return compute()
    except torch.OutOfMemoryError as error:
        raise ValueError(
            f"The first batch does not fit into the GPU's memory ({_said(error)}): lower data.batch_size or "
            "data.val_batch_size."
        ) from error
    except (*_REFUSALS, LookupError) as error:
        if isinstance(error, ValueError) and _is_ours(error):
            raise
        raise ValueError(
            f"The model cannot take the first batch ({_said(error)}): check that the config groups model, data and "
            "task go together, or see where with HYDRA_FULL_ERROR=1."
        ) from error


def _is_ours(error: BaseException) -> bool:
    last = [frame for frame, _ in traceback.walk_tb(error.__traceback__)][-1]
    return last.f_globals.get("__name__", "").partition(".")[0] == __name__.partition(".")[0]


def _said(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")


def call_with_options(
    build: Callable[..., T], options: Mapping[str, Any], hint: str, /, *given: Any, **fixed: Any
) -> T:
    """Call ``build(*given, **fixed, **options)``.

    Args:
        build: A class or function.
        options: What the config says, for example under ``model``.
        hint: Where the known options are described, to end the sentence ``The model has no option 'x': see ...``.
        given: Arguments by position that are not the config's.
        fixed: Arguments by name that are not the config's.

    Raises:
        ValueError: ``build`` has no such option. A `TypeError` about anything else goes through.
    """
    try:
        return build(*given, **fixed, **options)
    except TypeError as error:
        option = str(error).rpartition("unexpected keyword argument ")[2].strip("'")
        if option not in options:  # an error of our own
            raise
        raise ValueError(f"The model has no option {option!r}: see {hint} for those it has.") from error
