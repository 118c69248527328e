"""What the toy scene sets share: annotation files in mmdet3d's format, and a command line."""

from __future__ import annotations

import argparse
import pickle
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any


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
