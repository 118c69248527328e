"""Preprocessed samples on disk: shards that are mapped into memory, with a checksum per sample.

``<folder>/cache.json`` says what the samples were made of; ``shard-00000.safetensors`` and so on hold them, agents,
lanes and vectors one sample after the other. Sample i of a cache is sample i of the data set it was made of, broken
ones included: these keep their sentence.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from frozenllm.core.training import BrokenSample, TolerantDataset
from frozenllm.motion.data.centring import Window, empty_sample
from frozenllm.motion.shards import Shard, shard_name, unpack

FORMAT = 1
INDEX = "cache.json"


class CachedScenes(TolerantDataset):
    """The samples of a cache, the same as those it was made of.

    Args:
        folder: Where the cache is.
        data: Name of the data set that is expected.
        split: Its split.
        window: What a sample is expected to hold.
        train: See `frozenllm.core.training.TolerantDataset`.
        on_error: See there.

    Raises:
        ValueError: There is no cache, it is not complete, or it holds something else.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        data: str,
        split: str,
        window: Window,
        *,
        train: bool = False,
        on_error: str = "raise",
    ) -> None:
        self.folder = Path(folder)
        self.window = window
        self.index = read_index(self.folder)
        check_index(self.folder, self.index, data, split, window)
        if not self.index["complete"]:
            raise ValueError(f"{self.folder} is not complete: run python -m frozenllm.motion.preprocess again.")
        for number, size in enumerate(self.index["bytes"]):
            path = self.folder / shard_name(number)
            if not path.is_file() or path.stat().st_size != size:
                raise ValueError(
                    f"{path} is missing or has another size than when it was written: run python -m "
                    "frozenllm.motion.preprocess again."
                )
        super().__init__(self.index["samples"], train=train, on_error=on_error)
        self._shards: dict[int, Shard] = {}

    @property
    def names(self) -> tuple[str, ...]:
        """One per sample, as of the data set that the cache was made of; reads the names of every file."""
        shards = (self._shard(start)[0] for start in range(0, self.size, self.index["shard_size"]))
        return tuple(name for shard in shards for name in shard.words["names"])

    def __getstate__(self) -> dict[str, Any]:
        """Without the open files, which each process maps for itself."""
        return {**self.__dict__, "_shards": {}}

    def _shard(self, index: int) -> tuple[Shard, int]:
        number, row = divmod(index, self.index["shard_size"])
        if number not in self._shards:
            self._shards[number] = Shard(self.folder / shard_name(number))
        return self._shards[number], row

    def read(self, index: int) -> dict[str, Any]:
        """The sample at an index, see `frozenllm.motion.data.centre`.

        Raises:
            BrokenSample: It was broken when the cache was made, or is damaged now.
        """
        shard, row = self._shard(index)
        return unpack(shard.entry(row))

    def describe(self, index: int) -> str:
        """The cache's file, and the sample's row in it."""
        number, row = divmod(index, self.index["shard_size"])
        return f"{self.folder / shard_name(number)}: row {row}"

    def placeholder(self, index: int) -> dict[str, Any]:
        """See `frozenllm.motion.data.dataset.Scenes.placeholder`."""
        try:
            shard, row = self._shard(index)
            name = shard.words["names"][row]
        except BrokenSample:  # the whole file
            name = ""
        return empty_sample(self.window, name)


def read_index(folder: Path) -> dict[str, Any]:
    """What a cache says of itself.

    Raises:
        ValueError: There is no cache, or its description cannot be read.
    """
    try:
        index = json.loads((folder / INDEX).read_text())
    except FileNotFoundError as error:
        raise ValueError(
            f"{folder} holds no cache: make it with python -m frozenllm.motion.preprocess and the overrides of the "
            "training command, or set data.cache to null."
        ) from error
    except (OSError, ValueError) as error:
        raise ValueError(f"{folder / INDEX} cannot be read ({error}): remove the folder, preprocess again.") from error
    if not isinstance(index, dict) or index.get("format") != FORMAT:
        raise ValueError(f"{folder} holds a cache of another format: remove the folder and preprocess again.")
    return index


def check_index(folder: Path, index: Mapping[str, Any], data: str, split: str, window: Window) -> None:
    """That a cache holds what is asked for.

    Raises:
        ValueError: It does not; the sentence names what differs.
    """
    expected = {"data": data, "split": split, **window.settings()}
    found = {"data": index["data"], "split": index["split"], **index["window"]}
    differing = [f"{key} {found.get(key)} instead of {v}" for key, v in expected.items() if found.get(key) != v]
    if differing:
        raise ValueError(f"{folder} was made with {', '.join(differing)}: name another data.cache or preprocess again.")
