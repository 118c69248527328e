"""Folders of toy data, which appear whole or not at all."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

MANIFEST = "toy.json"


def default_root(name: str, manifest: Mapping[str, object]) -> Path:
    """Where toy data goes when no folder is named: below ``$XDG_CACHE_HOME`` or ``~/.cache``."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    parts = [f"{key}{value}" for key, value in manifest.items() if key != "data"]
    return cache / "frozenllm" / "toy" / "-".join([name, *parts])


def write_once(root: str | os.PathLike[str], manifest: Mapping[str, object], write: Callable[[Path], None]) -> Path:
    """Writes a folder unless it is there already; also when several processes ask for it at the same time.

    Args:
        root: The folder.
        manifest: What tells these data from others; kept in the folder.
        write: Fills the folder it is given.

    Raises:
        ValueError: The folder holds something else.
    """
    root = Path(root)
    if _is_written(root, manifest):
        return root
    root.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{root.name}-", dir=root.parent))
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


def _is_written(root: Path, manifest: Mapping[str, object]) -> bool:
    if not root.exists():
        return False
    try:
        found = json.loads((root / MANIFEST).read_text())
    except (OSError, ValueError):
        found = None
    if found == dict(manifest):
        return True
    if found is None and root.is_dir() and not any(root.iterdir()):
        return False
    held = "toy data written with other settings" if found is not None else "something else than toy data"
    raise ValueError(f"{root} holds {held}: name another folder, or remove this one.")
