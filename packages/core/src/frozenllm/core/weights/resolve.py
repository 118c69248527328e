"""From what a user names as a source to a reader of it."""

from __future__ import annotations

import difflib
import os
import re
import warnings
from importlib import resources
from pathlib import Path

from frozenllm.core.weights.block_file import BlockFile
from frozenllm.core.weights.files import open_tensor_files, read_json
from frozenllm.core.weights.gguf import GGUFModel
from frozenllm.core.weights.meta import MetaCheckpoint
from frozenllm.core.weights.official import SUFFIXES, OfficialCheckpoint
from frozenllm.core.weights.sources import BlockSource
from frozenllm.core.weights.transformers_layout import TransformersModel

BUNDLED = "bundled"
ACCEPTED = (
    "a folder in transformers' layout (config.json), a folder of Meta's (consolidated.*.pth, params.json), a block "
    "file (.safetensors), a GGUF file (.gguf), a checkpoint of the official release (.pth), a repository on the hub "
    f'(org/name or org/name@revision), or "{BUNDLED}"'
)

_FILES = (".safetensors", ".gguf", ".pth", ".pt", ".bin", ".json")  # names with these endings are never repositories


def open_source(
    source: str | os.PathLike[str], revision: str | None = None, num_heads: int | None = None
) -> BlockSource:
    """Open a source of block weights; reads headers and configs only.

    Args:
        source: A folder, a block file, a checkpoint of the official release, ``"bundled"``, or a repository on the
            hub, ``"org/name"`` or ``"org/name@revision"``; a folder or file of that name comes first.
        revision: For hub repositories; ignored elsewhere, with a warning.
        num_heads: Query heads, for official checkpoints, which do not say; not used elsewhere.

    Returns:
        Its reader.

    Raises:
        ValueError: There is no such source, or it cannot be used; one sentence.
    """
    name = os.fspath(source)
    if not name:
        raise ValueError(f"The source of the block is empty; give {ACCEPTED}.")
    path = Path(name).expanduser()
    repository = None if name == BUNDLED or path.exists() else hub_name(name)
    if repository is not None:
        return _open_repository(*repository, revision)
    if revision is not None:
        warnings.warn(f"revision={revision!r} is ignored: {name} is not a hub repository.", stacklevel=3)
    if name == BUNDLED:
        return _open_bundled()
    if path.is_dir():
        return _open_folder(path)
    if path.is_file():
        return _open_file(path, num_heads)
    raise ValueError(_unknown(name))


def hub_name(name: str) -> tuple[str, str | None] | None:
    """Repository and revision of ``org/name`` or ``org/name@revision``; None for anything else, such as a path."""
    match = re.fullmatch(r"([A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?:@(.+))?", name)
    if match is None or Path(match[1]).suffix in _FILES:
        return None
    return match[1], match[2]


def _open_repository(repository: str, in_name: str | None, revision: str | None) -> BlockSource:
    from frozenllm.core.weights.hub import HubModel  # huggingface_hub takes a moment to import

    if in_name is not None and revision is not None and in_name != revision:
        raise ValueError(
            f"{repository}@{in_name}: names another revision than revision={revision!r}; give one of them."
        )
    return HubModel(repository, in_name or revision)


def _open_bundled() -> BlockSource:
    folder = resources.files("frozenllm.core.weights") / BUNDLED
    if not isinstance(folder, Path):
        raise ValueError("The bundled model cannot be read from inside a zip archive; install the package unpacked.")
    if not (folder / "config.json").is_file():
        raise ValueError(f"{folder}: the bundled model is missing; is frozenllm-core installed completely?")
    return TransformersModel(BUNDLED, read_json(folder / "config.json"), open_tensor_files(folder))


def _open_folder(path: Path) -> BlockSource:
    source = os.path.abspath(path)
    try:
        entries = sorted(entry.name for entry in path.iterdir())
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror}).") from error
    if not entries:
        raise ValueError(f"{path}: the folder is empty; expected config.json and weights, or consolidated.00.pth.")
    has_meta = any(name.startswith("consolidated.") and name.endswith(".pth") for name in entries)
    has_own = any(name.startswith(("model.safetensors", "pytorch_model.bin")) for name in entries)
    if "config.json" in entries and (has_own or not has_meta):
        return TransformersModel(source, read_json(path / "config.json"), open_tensor_files(path))
    if has_meta:
        return MetaCheckpoint(source, path)
    shown = ", ".join(entries[:5]) + (", ..." if len(entries) > 5 else "")
    raise ValueError(f"{path}: neither config.json nor consolidated.00.pth is among its files ({shown}).")


def _open_file(path: Path, num_heads: int | None) -> BlockSource:
    if path.suffix == ".safetensors":
        return BlockFile(path)
    if path.suffix == ".gguf":
        return GGUFModel(os.path.abspath(path), path)
    if path.suffix in SUFFIXES:
        return OfficialCheckpoint(path, num_heads)
    raise ValueError(f"{path}: is neither a folder nor a block file (.safetensors); give {ACCEPTED}.")


def _unknown(name: str) -> str:
    if difflib.get_close_matches(name.lower(), [BUNDLED], cutoff=0.75):
        return f'There is no source {name!r}; did you mean "{BUNDLED}"?'
    return f"{name}: no such file or folder; a source of block weights is {ACCEPTED}."
