"""Folders of toy data, which the domains write in the formats of the real data: they appear whole or not at all."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

MANIFEST = "toy.json"
"""File in the folder that says what was written, and with which settings."""


def toy_root() -> Path:
    """The folder of all toy data: below ``$XDG_CACHE_HOME`` or ``~/.cache``."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "frozenllm" / "toy"


def default_root(name: str, manifest: Mapping[str, Any]) -> Path:
    """Where toy data goes when no folder is named: a folder of `toy_root`, by manifest."""
    digest = hashlib.sha256(json.dumps(dict(manifest), sort_keys=True).encode()).hexdigest()
    return toy_root() / f"{name}-{digest[:8]}"


def named_root(root: str | os.PathLike[str] | None) -> Path | None:
    """A folder of toy data that somebody named, in a config or on a command line: a mistyped one is not made.

    Args:
        root: The folder; None for `default_root`.

    Raises:
        ValueError: It is not there.
    """
    if root is None:
        return None
    folder = Path(root).expanduser()
    if not folder.exists():
        raise ValueError(
            f"There is no folder {folder}: make it for toy data to be written there, or name none for the user's cache."
        )
    return folder


def write_once(
    root: str | os.PathLike[str] | None, name: str, manifest: Mapping[str, Any], write: Callable[[Path], None]
) -> Path:
    """Write a folder unless it is there already; also when several processes ask for it at the same time.

    Args:
        root: The folder; None for `default_root`.
        name: What the data is called, for `default_root`.
        manifest: What tells these data from others, a ``format`` number among it; kept in the folder.
        write: Fills the folder it is given.

    Returns:
        The folder.

    Raises:
        ValueError: The folder holds something else, or cannot be written; or the manifest's ``train``, ``val``,
            ``test`` or ``seed`` is no count.
    """
    _check_counts(manifest)
    root = Path(root).expanduser() if root is not None else default_root(name, manifest)
    if _is_written(root, manifest):
        return root
    try:
        root.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=f".{root.name}-", dir=root.parent))
    except OSError as error:
        raise ValueError(f"Toy data cannot be written to {root} ({error.strerror}): name another folder.") from error
    try:
        write(scratch)
        (scratch / MANIFEST).write_text(json.dumps(dict(manifest), indent=2) + "\n")
        scratch.chmod(0o755)  # mkdtemp makes folders that only their owner can read
        try:
            scratch.rename(root)
        except OSError:  # the folder is there and not empty: another process was faster, or it holds something else
            if not _is_written(root, manifest):
                raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return root


def _check_counts(manifest: Mapping[str, Any]) -> None:
    for name, least in (("train", 1), ("val", 1), ("test", 0), ("seed", 0)):
        value = manifest.get(name, least)
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise ValueError(f"The toy data's {name} must be a whole number from {least}, not {value!r}.")


def _is_written(root: Path, manifest: Mapping[str, Any]) -> bool:
    if not root.exists():
        return False
    try:
        found = json.loads((root / MANIFEST).read_text())
    except (OSError, ValueError):
        found = None
    if found == json.loads(json.dumps(dict(manifest))):
        return True
    if found is None and root.is_dir() and not any(root.iterdir()):
        return False
    if found is not None:
        raise ValueError(f"{root} holds toy data written with other settings: name another folder, or remove this one.")
    what = "holds something else" if root.is_dir() else "is something else"
    raise ValueError(f"{root} {what} than toy data: name another folder, or the recipe that these data are for.")
