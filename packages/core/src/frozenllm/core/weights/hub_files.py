"""Tensor files of a hub repository: safetensors by byte ranges, ``.bin`` by whole shards."""

from __future__ import annotations

import json
import struct
import warnings
from collections.abc import Callable, Collection, Iterable
from contextlib import suppress
from math import prod
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import constants, get_hf_file_metadata, hf_hub_download, hf_hub_url, try_to_load_from_cache
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, LocalEntryNotFoundError
from torch import Tensor

from frozenllm.core.weights.files import DTYPES, PickleFile, ShardedFiles
from frozenllm.core.weights.ranges import Piece, RemoteFile, download, join_ranges
from frozenllm.core.weights.sources import TensorFiles, TensorInfo

_LONGEST_HEADER = 100_000_000  # as in the safetensors library


def repository_file(repository: str, name: str, revision: str | None = None) -> Path:
    """A small file of a repository, from the hub or its cache; a hub that does not answer is not asked for long.

    huggingface_hub asks five more times where a file is not in its cache, for half a minute and for minutes where the
    network swallows packets. Here one request (of at most ``HF_HUB_ETAG_TIMEOUT`` seconds) tells that it is not there.

    Args:
        repository: ``org/name``.
        name: Path of the file in the repository.
        revision: Branch, tag or commit; None means the default branch.

    Raises:
        TransportError: The hub cannot be reached, and the file is not in the cache.
        HfHubHTTPError: The hub refused, or there is no such file.
    """
    cached = isinstance(try_to_load_from_cache(repository, name, revision=revision), str)
    if not (cached or constants.HF_HUB_OFFLINE):
        with suppress(HfHubHTTPError):  # hf_hub_download says more
            get_hf_file_metadata(hf_hub_url(repository, name, revision=revision), timeout=constants.HF_HUB_ETAG_TIMEOUT)
    return Path(hf_hub_download(repository, name, revision=revision))


class RemoteSafetensors(TensorFiles):
    """A safetensors file on the hub: its header is read at once, tensors are read from downloaded pieces.

    Args:
        remote: The file.

    Raises:
        ValueError: It is damaged or something else.
        HfHubHTTPError: The server refused.
    """

    def __init__(self, remote: RemoteFile) -> None:
        self.where, self.remote = remote.where, remote
        self.pieces: list[Piece] = []
        (length,) = struct.unpack("<Q", remote.read(0, 8))
        size = remote.size or 0
        self._start = 8 + length
        if length > _LONGEST_HEADER or self._start > size:
            raise ValueError(f"{self.where}: not a safetensors file, or a damaged one.")
        try:
            header = json.loads(remote.read(8, self._start))
            header.pop("__metadata__", None)
            self._entries = {name: _checked_entry(entry, size - self._start) for name, entry in header.items()}
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise ValueError(f"{self.where}: the header of the safetensors file is damaged ({error}).") from error

    def names(self) -> Collection[str]:
        return self._entries.keys()

    def info(self, name: str) -> TensorInfo:
        if name not in self._entries:
            raise ValueError(f"{self.where}: tensor {name} is missing.")
        dtype, shape, _, _ = self._entries[name]
        return TensorInfo(self.where, name, shape, dtype)

    def span(self, name: str) -> tuple[int, int]:
        """First byte of a tensor in the file, and the byte after its last one."""
        _, _, start, stop = self._entries[name]
        return self._start + start, self._start + stop

    def plan(self, names: Iterable[str], folder: Path) -> list[Piece]:
        """The pieces that hold these tensors, to be downloaded into a folder before the tensors are read."""
        ranges = join_ranges(self.span(name) for name in names)
        file = self.remote.name.replace("/", "_")
        self.pieces = [Piece(self.remote, *span, folder / f"{file}.{span[0]}-{span[1]}") for span in ranges]
        return self.pieces

    def read(self, name: str) -> Tensor:
        info = self.info(name)
        start, stop = self.span(name)
        data = bytearray(stop - start)
        found = 0
        for piece in self.pieces:
            first, last = max(start, piece.start), min(stop, piece.stop)
            if first < last:
                with piece.path.open("rb") as file:
                    file.seek(first - piece.start)
                    found += file.readinto(memoryview(data)[first - start : last - start])
        if found != len(data):
            raise ValueError(f"{self.where}: tensor {name} was not received completely.")
        return torch.frombuffer(data, dtype=info.dtype).view(info.shape)


class RemoteShards(ShardedFiles):
    """Several files of a repository, each opened when one of its tensors is needed.

    Args:
        index: The downloaded ``*.index.json``.
        open_file: Opens a file of the repository by name.
    """

    def __init__(self, index: Path, open_file: Callable[[str], TensorFiles]) -> None:
        super().__init__(index, PickleFile)
        self._open_file = open_file

    def open_shard(self, shard: str, tensor: str) -> TensorFiles:
        return self._open_file(shard)

    def plan(self, names: Iterable[str], folder: Path) -> list[Piece]:
        """As `RemoteSafetensors.plan`, over all shards."""
        by_shard: dict[int, tuple[TensorFiles, list[str]]] = {}
        for name in names:
            shard = self.shard(name)
            by_shard.setdefault(id(shard), (shard, []))[1].append(name)
        pieces: list[Piece] = []
        for shard, held in by_shard.values():
            if isinstance(shard, RemoteSafetensors):
                pieces += shard.plan(held, folder)
        return pieces


class HubFiles(TensorFiles):
    """The weights of a repository at one commit; nothing is asked of the hub before it is needed.

    Args:
        repository: ``org/name``.
        commit: Full hash of the commit.
    """

    def __init__(self, repository: str, commit: str) -> None:
        self.where = f"{repository}@{commit[:12]}"
        self._repository, self._commit = repository, commit
        self._opened: TensorFiles | None = None

    def names(self) -> Collection[str]:
        return self._files().names()

    def info(self, name: str) -> TensorInfo:
        return self._files().info(name)

    def read(self, name: str) -> Tensor:
        return self._files().read(name)

    def fetch(self, names: Iterable[str], folder: Path) -> None:
        """Download tensors, so that they can be read.

        Args:
            names: The tensors.
            folder: Collects the pieces of safetensors files; those of an interrupted download are kept and completed.

        Raises:
            ValueError: The server sent something else than was asked for.
            HfHubHTTPError: The server refused.
        """
        files = self._files()
        if isinstance(files, RemoteSafetensors | RemoteShards):
            download(files.plan(names, folder), f"Downloading from {self._repository}")

    def _files(self) -> TensorFiles:
        if self._opened is None:
            self._opened = self._open()
        return self._opened

    def _open(self) -> TensorFiles:
        if (index := self._small_file("model.safetensors.index.json")) is not None:
            return RemoteShards(index, self._safetensors)
        try:
            return self._safetensors("model.safetensors")
        except EntryNotFoundError:
            pass
        if (index := self._small_file("pytorch_model.bin.index.json")) is not None:
            return RemoteShards(index, self._whole_bin)
        try:
            return self._whole_bin("pytorch_model.bin")
        except EntryNotFoundError as error:
            raise ValueError(
                f"{self.where}: has a config.json but no weights that can be read; expected model.safetensors or "
                "pytorch_model.bin, or their *.index.json."
            ) from error

    def _safetensors(self, name: str) -> RemoteSafetensors:
        return RemoteSafetensors(RemoteFile(self._repository, name, self._commit))

    def _whole_bin(self, name: str) -> PickleFile:
        """Pickles cannot be read in part: the file goes to the hub's own cache as a whole."""
        if not isinstance(try_to_load_from_cache(self._repository, name, revision=self._commit), str):
            size = get_hf_file_metadata(hf_hub_url(self._repository, name, revision=self._commit)).size or 0
            warnings.warn(
                f"{self.where}: has no safetensors, and a .bin file cannot be read in part: downloading all "
                f"{size / 1e9:.2f} GB of {name}.",
                stacklevel=2,
            )
        return PickleFile(Path(hf_hub_download(self._repository, name, revision=self._commit)))

    def _small_file(self, name: str) -> Path | None:
        try:
            return Path(hf_hub_download(self._repository, name, revision=self._commit))
        except LocalEntryNotFoundError:  # not reachable, which says nothing about the file
            raise
        except EntryNotFoundError:
            return None


def _checked_entry(entry: dict[str, Any], size: int) -> tuple[torch.dtype, tuple[int, ...], int, int]:
    """(dtype, shape, start, stop) of a header's entry, after a check that they fit together and into the file."""
    # Types that are not in the list (4- and 6-bit floats) are refused later, as bytes.
    dtype, shape = DTYPES.get(entry["dtype"]), tuple(entry["shape"])
    start, stop = entry["data_offsets"]
    if not all(isinstance(n, int) and n >= 0 for n in (*shape, start, stop)) or not start <= stop <= size:
        raise ValueError(f"data_offsets {entry['data_offsets']} in {size} bytes")
    if dtype is not None and prod(shape) * dtype.itemsize != stop - start:
        raise ValueError(f"shape {shape} in {stop - start} bytes")
    return dtype or torch.uint8, shape, start, stop
