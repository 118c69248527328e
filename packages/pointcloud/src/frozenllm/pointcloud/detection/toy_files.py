"""Folders of toy scenes: written once, whole or not at all."""

from __future__ import annotations

import argparse
import json
import os
import pickle
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

MANIFEST = "toy.json"


def write_once(root: str | os.PathLike[str], manifest: Mapping[str, Any], write: Callable[[Path], None]) -> Path:
    """Make a folder by writing aside and renaming; one that is there with the same settings stays as it is.

    Args:
        root: The folder.
        manifest: The settings, kept in the folder.
        write: Writes the files into the folder that it is given.

    Returns:
        The folder.

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
        (scratch / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n")
        scratch.chmod(0o755)  # mkdtemp makes folders that only their owner can read
        try:
            scratch.rename(root)
        except OSError:  # another process was faster, or the folder holds something else
            if not _is_written(root, manifest):
                raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return root


def write_infos(path: Path, dataset: str, categories: Mapping[str, int], data_list: list[dict[str, Any]]) -> None:
    """An annotation file as mmdet3d's data sets read it (format 1.1)."""
    metainfo = {"categories": dict(categories), "dataset": dataset, "info_version": "1.1"}
    with open(path, "wb") as file:
        pickle.dump({"metainfo": metainfo, "data_list": data_list}, file)


def main(write: Callable[..., Path], description: str) -> None:
    """The command line of a toy data set."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("root", help="the folder to write")
    parser.add_argument("--train", type=int, default=16, help="number of training scenes")
    parser.add_argument("--val", type=int, default=4, help="number of validation scenes")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    print(write(options.root, train=options.train, val=options.val, seed=options.seed))


def _is_written(root: Path, manifest: Mapping[str, Any]) -> bool:
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
    held = "toy scenes written with other settings" if found is not None else "something else than toy scenes"
    raise ValueError(f"{root} holds {held}: name another folder, or remove this one.")
