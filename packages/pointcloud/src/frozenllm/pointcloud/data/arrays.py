"""Reading pickles of numpy arrays without running what they hold."""

from __future__ import annotations

import io
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["load_arrays"]


def _latin1(text: str, encoding: str = "latin1") -> bytes:
    """How protocols before 3 spell bytes."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"bytes encoded as {encoding}")
    return text.encode("latin1")


def _empty() -> bytes:
    """How the same protocols spell empty bytes: as a call of ``bytes``."""
    return b""


_MULTIARRAY = np.zeros(0).__reduce__()[0]  # numpy's own maker of arrays, whatever module it is in
_FROM_BUFFER = np.zeros(1).__reduce_ex__(5)[0]
_SCALAR = np.float64(0).__reduce__()[0]
_ALLOWED: dict[tuple[str, str], Callable[..., Any]] = {
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("_codecs", "encode"): _latin1,
    ("__builtin__", "bytes"): _empty,
    ("builtins", "bytes"): _empty,
    **{
        (f"numpy.{core}.{module}", name): function
        for core in ("core", "_core")
        for module, name, function in (
            ("multiarray", "_reconstruct", _MULTIARRAY),
            ("multiarray", "scalar", _SCALAR),
            ("numeric", "_frombuffer", _FROM_BUFFER),
        )
    },
}


class _ArrayUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ALLOWED:
            raise pickle.UnpicklingError(" ".join(f"{module}.{name}".split()))
        return _ALLOWED[module, name]


def load_arrays(path: str | os.PathLike[str]) -> Any:
    """Read a pickle that holds lists, tuples, dicts, numbers, strings and numpy arrays of numbers, and nothing else.

    Raises:
        ValueError: The file is missing or damaged, or names anything else; that is not run.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            return _ArrayUnpickler(io.BufferedReader(file)).load()  # type: ignore[arg-type]
    except pickle.UnpicklingError as error:
        named = str(error)
        if "." in named and " " not in named:
            raise ValueError(
                f"{path}: refused, it holds {named}, not numpy arrays alone: it could run code."
            ) from error
        raise ValueError(f"{path}: is damaged or not a pickle ({named.splitlines()[0][:120]}).") from error
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror}).") from error
    except (EOFError, ValueError, TypeError, KeyError, IndexError, AttributeError, MemoryError, OverflowError) as error:
        said = (str(error) or type(error).__name__).splitlines()[0][:120]
        raise ValueError(f"{path}: is damaged or not a pickle ({said}).") from error
