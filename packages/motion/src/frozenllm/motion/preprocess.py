"""Writes the cache that training reads: ``python -m frozenllm.motion.preprocess recipe=... data.cache=...``.

The overrides are those of the training command, so the samples are those that training asks for. A stopped run goes on
where it was; a run on a whole cache changes nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from frozenllm.core.training import BrokenSample, errors_in_a_sentence
from frozenllm.core.whole_files import write_text
from frozenllm.motion.cache import FORMAT, INDEX, CachedScenes, check_index, read_index
from frozenllm.motion.data.dataset import Scenes
from frozenllm.motion.shards import pack, shard_name, write_shard

SHARD_SIZE = 256
"""Samples per file: some 10 MB, and the most work that a stopped run loses."""


class _Packed(Dataset):
    """Samples as the cache stores them, or the sentence of what is wrong with one."""

    def __init__(self, scenes: Scenes) -> None:
        self.scenes = scenes

    def __len__(self) -> int:
        return len(self.scenes)

    def __getitem__(self, index: int) -> dict[str, Any] | str:
        try:
            return pack(self.scenes.read(index))
        except BrokenSample as error:
            return str(error)


def write_cache(
    scenes: Scenes,
    folder: str | os.PathLike[str],
    data: str,
    split: str,
    *,
    shard_size: int = SHARD_SIZE,
    workers: int = 0,
    progress: bool = True,
) -> list[str]:
    """Writes the samples of a data set, or what is missing of them.

    Args:
        scenes: The data set. Its policy says what happens to broken samples: with ``"raise"`` the first one ends the
            run, with ``"skip"`` the cache keeps its sentence, and reading it fails as reading the source would.
        folder: Where to; made if it is not there.
        data: Name of the data set, kept in the cache.
        split: Its split.
        shard_size: Samples per file.
        workers: Processes that read; 0 for this one.
        progress: Show a bar with the time that is left.

    Returns:
        The sentences of broken samples that were met now.

    Raises:
        BrokenSample: A sample is broken, and the policy is to raise.
        ValueError: The folder holds another cache, or something else.
    """
    if shard_size < 1:
        raise ValueError(f"A shard needs at least 1 sample, not {shard_size}.")
    if workers < 0:
        raise ValueError(f"The workers must be 0 or more, not {workers}.")
    folder = Path(folder)
    index = _begin(scenes, folder, data, split, shard_size)
    shards = range(-(-len(scenes) // shard_size))
    missing = [number for number in shards if not _is_whole(folder / shard_name(number), number, index)]
    order = [i for number in missing for i in _members(number, shard_size, len(scenes))]
    loader = DataLoader(
        _Packed(scenes),
        batch_size=None,
        sampler=order,
        num_workers=workers,
        collate_fn=_as_it_is,
        prefetch_factor=8 if workers else None,
    )
    broken: list[str] = []
    done = len(scenes) - len(order)
    with tqdm(total=len(scenes), initial=done, desc=f"{data} {split}", unit="scene", disable=not progress) as bar:
        samples = iter(loader)
        for number in missing:
            members, entries = _members(number, shard_size, len(scenes)), []
            for _ in members:
                entry = next(samples)
                if isinstance(entry, str):
                    if scenes.on_error == "raise":
                        sentence = entry.removesuffix(".")
                        raise BrokenSample(f"{sentence}; repair or remove it, or set data.on_error to skip.")
                    broken.append(entry)
                entries.append(entry)
                bar.update()
            write_shard(folder / shard_name(number), entries, [scenes.names[i] for i in members], scenes.window)
    index |= {"complete": True, "bytes": [(folder / shard_name(number)).stat().st_size for number in shards]}
    write_text(folder / INDEX, json.dumps(index, indent=1) + "\n")
    return broken


def _begin(scenes: Scenes, folder: Path, data: str, split: str, shard_size: int) -> dict[str, Any]:
    """The description of the cache that is there, or of a new one."""
    names = zlib.crc32("\n".join(scenes.names).encode())
    if (folder / INDEX).exists():
        index = read_index(folder)
        check_index(folder, index, data, split, scenes.window)
        if (index["samples"], index["names"]) != (len(scenes), names):
            raise ValueError(f"{folder} was made of other scenes: name another data.cache or remove this one.")
        if index["shard_size"] != shard_size:
            raise ValueError(f"{folder} has {index['shard_size']} samples per file, not {shard_size}.")
        return index
    if folder.exists() and any(folder.iterdir()):
        raise ValueError(f"{folder} holds something else than a cache: name another data.cache.")
    folder.mkdir(parents=True, exist_ok=True)
    index = {
        "format": FORMAT,
        "data": data,
        "split": split,
        "window": scenes.window.settings(),
        "samples": len(scenes),
        "names": names,
        "shard_size": shard_size,
        "complete": False,
    }
    write_text(folder / INDEX, json.dumps(index, indent=1) + "\n")
    return index


def _is_whole(path: Path, number: int, index: Mapping[str, Any]) -> bool:
    """Files appear whole; one that is there can only have been damaged since."""
    return path.exists() and (not index["complete"] or path.stat().st_size == index["bytes"][number])


def _members(number: int, shard_size: int, total: int) -> range:
    return range(number * shard_size, min((number + 1) * shard_size, total))


def _as_it_is(sample: Any) -> Any:
    return sample


def verify(cache: CachedScenes, progress: bool = True) -> list[str]:
    """Reads every sample of a cache; the sentences of those that are damaged, or were broken from the start."""
    found = []
    for i in tqdm(range(len(cache)), desc=str(cache.folder), unit="scene", disable=not progress):
        try:
            cache.read(i)
        except BrokenSample as error:
            found.append(str(error))
    return found


def main(argv: Sequence[str] | None = None) -> None:
    """The command line.

    Args:
        argv: Options, and overrides in Hydra's grammar; None for the process's arguments.
    """
    parser = argparse.ArgumentParser(
        prog="python -m frozenllm.motion.preprocess",
        description="Writes the samples that training reads. Give the overrides of the training command: "
        "recipe=... data.root=... data.cache=...",
    )
    parser.add_argument("--workers", type=int, default=0, help="processes that read (default: none but this one)")
    parser.add_argument("--shard-size", type=int, default=SHARD_SIZE, help="samples per file (default: %(default)s)")
    parser.add_argument("--splits", nargs="+", help="such as test (default: those that the data group has)")
    parser.add_argument("--verify", action="store_true", help="read what is there and check it, write nothing")
    parser.add_argument("overrides", nargs="*", help="recipe=... data.root=... data.cache=...")
    arguments = parser.parse_intermixed_args(sys.argv[1:] if argv is None else argv)
    with errors_in_a_sentence(goes_on=True):
        _run(arguments)


def _run(arguments: argparse.Namespace) -> None:
    from omegaconf import OmegaConf

    from frozenllm.core.training import DATASETS, compose_config
    from frozenllm.motion.train import CONFIG

    config = OmegaConf.to_container(compose_config(CONFIG, arguments.overrides).data, resolve=True)
    sources = {source["split"]: source for source in (config.get(k) for k in ("train", "val", "test")) if source}
    for split in arguments.splits or sources:
        source = sources.get(split, {**config["val"], "split": split})  # a benchmark's test split: for submissions
        cache = source.get("cache")
        if cache is None:
            raise ValueError("Say where the cache goes: data.cache=/path.")
        if arguments.verify:
            found = verify(DATASETS.build(source))
            print(f"{cache}/{split}: {len(found)} samples cannot be read.", *found, sep="\n  ")
            if found:
                raise SystemExit(1)
            continue
        scenes = DATASETS.build({**source, "cache": None})
        data = source["type"].removeprefix("toy_")
        broken = write_cache(
            scenes, Path(cache) / split, data, split, shard_size=arguments.shard_size, workers=arguments.workers
        )
        print(f"{cache}/{split}: {len(scenes)} samples.")
        if broken:
            print(f"{len(broken)} of them are broken and will be skipped:", *broken, sep="\n  ")


if __name__ == "__main__":
    main()
