"""Blocks from a repository on the hub, by byte ranges: a layer of LLaMA-7B costs 405 MB, not 13.5 GB.

The config tells what a layer is, the headers of the safetensors files tell where its bytes are, and only these are
fetched. They end up as a block file in the cache, under repository, commit and layers, so that the next time nothing
but the commit is asked of the hub. Endpoint, token, offline mode and time limits are those of huggingface_hub.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import warnings
from contextlib import suppress
from pathlib import Path

from huggingface_hub import constants
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from huggingface_hub.file_download import repo_folder_name
from huggingface_hub.utils import WeakFileLock

from frozenllm.core.weights.block_file import BlockFile, write_block_file
from frozenllm.core.weights.contents import read_contents
from frozenllm.core.weights.files import read_json
from frozenllm.core.weights.hub_errors import explained
from frozenllm.core.weights.hub_files import HubFiles, repository_file
from frozenllm.core.weights.sources import BlockSource
from frozenllm.core.weights.transformers_layout import TransformersModel

CACHE_VARIABLE = "FROZENLLM_CACHE"
_LONGEST_NAME = 100


def cache_root() -> Path:
    """The folder that downloaded blocks are kept in."""
    root = os.environ.get(CACHE_VARIABLE)
    return Path(root).expanduser() if root else Path(constants.HF_HOME) / "frozenllm"


def check_hub(repository: str) -> None:
    """Ask the hub once, before a library is called that would ask again and again where there is none.

    Args:
        repository: ``org/name``.

    Raises:
        ValueError: The hub cannot be reached, and nothing of the repository is in the cache. Whatever else is wrong
            with it is the library's to say.
    """
    others = (HfHubHTTPError, LocalEntryNotFoundError, HFValidationError)
    with explained(repository, None, "config.json"), suppress(*others):
        if not (Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=repository, repo_type="model")).is_dir():
            repository_file(repository, "config.json")


class HubModel(TransformersModel):
    """A model on the hub.

    Args:
        repository: ``org/name``.
        revision: Branch, tag or commit; None means the default branch.

    Raises:
        ValueError: There is no such repository or revision, it may not be read, or it is not a model that can be read.
    """

    def __init__(self, repository: str, revision: str | None = None) -> None:
        with explained(repository, revision, "config.json"):
            config = repository_file(repository, "config.json", revision)
        commit = config.parent.name  # the hub's cache keeps files under snapshots/<commit>/
        self._hub_files = HubFiles(repository, commit)
        super().__init__(repository, read_json(config), self._hub_files, commit)
        self.kind = f"hub repository, {self.kind}"
        self._commit = commit

    def localize(self, layers: tuple[int, ...]) -> BlockSource:
        """The block file of these layers, from the cache or by downloading them.

        Raises:
            ValueError: The hub cannot be reached, refused, or sent something else; or the layers cannot be used.
        """
        path = self.cache_path(layers)
        cached = self._cached(path)
        if cached is None:
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                with WeakFileLock(path.with_suffix(".lock")):
                    # Another process may have brought it while this one waited.
                    cached = self._cached(path) or self._bring(layers, path)
            except OSError as error:
                if not error.filename:
                    raise
                raise ValueError(f"{error.filename}: the cache cannot be written ({error.strerror}).") from error
        cached.kind = f"{self.kind}, cached in {path}"
        return cached

    def cache_path(self, layers: tuple[int, ...]) -> Path:
        """Where the block file of these layers is kept."""
        name = "-".join(map(str, layers))
        if len(name) > _LONGEST_NAME:
            name = hashlib.sha256(name.encode()).hexdigest()
        return cache_root() / self.source.replace("/", "--") / self._commit / f"layers-{name}.safetensors"

    def _cached(self, path: Path) -> BlockFile | None:
        if not path.is_file():
            return None
        try:
            return BlockFile(path, self.source, self._commit)
        except ValueError as error:
            warnings.warn(f"{error} Downloading the block again.", stacklevel=2)
            return None

    def _bring(self, layers: tuple[int, ...], path: Path) -> BlockFile:
        parts = path.with_suffix(".parts")
        names = ", ".join(map(str, layers))
        with explained(self.source, self._commit[:12], f"layer {names}"):
            wanted = {part.name for layer in layers for part in self.tensors(layer).parts.values()}
            wanted |= {part.name for part in self.final_norm().parts.values()}
            parts.mkdir(exist_ok=True)
            self._hub_files.fetch(sorted(wanted), parts)
            whole = TransformersModel(self.source, self.config, self._hub_files, self._commit, self.family)
            write_block_file(read_contents(whole, layers), path)
        shutil.rmtree(parts)
        return BlockFile(path, self.source, self._commit)
