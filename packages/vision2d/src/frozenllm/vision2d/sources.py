"""Where images come from: folders and tar files, and by name what timm's readers reach beyond them.

`open_reader` returns map-style readers only: the engine's order, seeds and exact resume need every image to have an
index. timm's streaming readers have none, so WebDataset's shards are indexed (`archives.ShardReader`) and data sets
that only stream are refused.
"""

from __future__ import annotations

import importlib.util
import io
import os
from pathlib import Path
from typing import Any

import numpy as np
from timm.data.readers import create_reader
from timm.data.readers.reader import Reader

from frozenllm.vision2d.archives import ShardReader, TarReader

_LIBRARIES = {"hfds": "datasets", "wds": "webdataset"}


def open_reader(
    root: str | None, split: str, *, source: str | None = None, num_classes: int | None = None, **options: Any
) -> Reader:
    """A reader of images and class indices.

    Args:
        root: Folder with ``<split>/<class>/*`` or ``<split>.tar``; for ``wds/`` the shards' folder; for ``hfds/``
            where downloads are kept (None: the library's choice).
        split: Name of the part.
        source: None for folders and tar files; ``"hfds/<repository or folder>"`` for Hugging Face datasets;
            ``"wds/"`` for WebDataset shards, whose ``split`` is a name in ``_info.json`` or a pattern such as
            ``"train-{0000..0099}.tar"``.
        num_classes: Upper bound of the class indices, checked; None for any.
        **options: ``input_key`` and ``target_key`` of timm's readers, for a ``source``.

    Raises:
        ValueError: The data is missing, empty or has too many classes, or the source is unknown.
        ImportError: The source needs a library that is not installed.
    """
    kind, slash, name = (source or "").partition("/")
    kind = kind.lower()
    if source and (not slash or kind not in _LIBRARIES):
        raise ValueError(
            f"The data source {source!r} is unknown: leave it out for folders and tar files, or give hfds/<name> or "
            "wds/. Sources that only stream (hfids/, tfds/) cannot be resumed and are not read."
        )
    given = {key: value for key, value in options.items() if value is not None}
    if not source:
        if given:
            raise ValueError(f"{', '.join(given)} is for data with a source (hfds/ or wds/), not for folders.")
        return _local_reader(root, split, num_classes)
    library = _LIBRARIES[kind]
    if importlib.util.find_spec(library) is None:
        raise ImportError(f"{source} needs {library}, not installed here: pip install 'frozenllm-vision2d[readers]'.")
    reader = _hub_reader(name, root, split, given) if kind == "hfds" else _shard_reader(root, split, given)
    _check_targets(reader.targets, f"{source} ({split})", num_classes)
    return reader


def class_names(base: Path, split: str) -> list[str] | None:
    """Sorted names of the classes of ``<base>/<split>`` or ``<base>/<split>.tar``; None where neither exists."""
    folder, archive = base / split, base / f"{split}.tar"
    if folder.is_dir():
        return sorted(path.name for path in folder.iterdir() if path.is_dir() and path.name[0] != ".")
    return TarReader(archive).classes if archive.is_file() else None


def _local_reader(root: str | None, split: str, num_classes: int | None) -> Reader:
    if not root:
        raise ValueError(f"No data folder is given: set data.root to the folder that holds {split}/ (or {split}.tar).")
    base = Path(root).expanduser()
    if not base.is_dir():
        raise ValueError(f"The data folder {base} does not exist: set data.root to the folder that holds {split}/.")
    folder, archive = base / split, base / f"{split}.tar"
    if not folder.is_dir() and not archive.is_file():
        raise ValueError(f"The data folder {base} holds neither {split}/ nor {split}.tar.")
    if folder.is_dir():
        found = class_names(base, split) or []
        numbers = _class_numbers(base, split, found, num_classes)
        return folder_reader(folder, numbers)
    reader = TarReader(archive)
    reader.renumber(_class_numbers(base, split, reader.classes, num_classes))
    return reader


def folder_reader(folder: Path, class_to_idx: dict[str, int]) -> Reader:
    """timm's reader of ``<folder>/<class>/*``.

    Raises:
        ValueError: There are no images.
    """
    try:
        return create_reader("", root=str(folder), class_map=class_to_idx)
    except RuntimeError as error:  # timm's report of a folder without images
        raise ValueError(f"{folder} holds no images in subfolders named after their classes.") from error


def _class_numbers(base: Path, split: str, found: list[str], num_classes: int | None) -> dict[str, int]:
    """Class numbers: the places of the training part's names in sorted order, where there is a training part."""
    known = found
    # A tar with all classes needs no other: indexing train.tar takes a while.
    if split != "train" and ((base / "train").is_dir() or len(found) != num_classes):
        train = class_names(base, "train")
        if train is not None:
            unknown = sorted(set(found) - set(train))
            if unknown:
                raise ValueError(f"{base / split} has classes that {base / 'train'} lacks: {', '.join(unknown[:5])}.")
            known = train
    if num_classes is not None and len(known) > num_classes:
        raise ValueError(f"{base / split} has {len(known)} classes, but num_classes is {num_classes}.")
    return {name: number for number, name in enumerate(known)}


def _shard_reader(root: str | None, split: str, options: dict[str, Any]) -> Reader:
    from timm.data.readers.reader_wds import ReaderWds

    if not root:
        raise ValueError("No data folder is given: set data.root to the folder that holds the shards.")
    base = Path(root).expanduser()
    if not base.is_dir():
        raise ValueError(f"The data folder {base} does not exist: set data.root to the folder that holds the shards.")
    try:
        listed = ReaderWds(str(base), split=split, is_training=False)  # knows splits and patterns
    except (RuntimeError, KeyError, TypeError) as error:
        raise ValueError(
            f"{base} has no shards for the part {split!r}: give one of the splits in its _info.json, or a pattern "
            "such as train-{0000..0099}.tar."
        ) from error
    info = listed.split_info
    remote = [name for name in info.filenames if "://" in name or name.startswith("pipe:")]
    if remote:
        raise ValueError(f"The shard {remote[0]} is not a local file: download the shards first.")
    shards = [base / name for name in info.filenames]
    options.setdefault("target_key", info.alt_label or None)
    reader = ShardReader(shards, **options)
    if info.num_samples and info.num_samples != len(reader):
        raise ValueError(
            f"The shards of {split!r} in {base} hold {len(reader)} labelled samples instead of {info.num_samples}: one "
            "of them is incomplete."
        )
    return reader


class HubReader(Reader):
    """timm's reader of a Hugging Face data set, with names for its images and with its labels at hand.

    Args:
        reader: timm's.
        title: What the data set is called in messages.

    Attributes:
        targets: Class index of every image, ``(N,)`` int64.
    """

    def __init__(self, reader: Any, title: str) -> None:
        super().__init__()
        self._reader = reader
        self._title = title
        self.class_to_idx = reader.class_to_idx
        self.targets = np.asarray(reader.dataset[reader.label_key][:], dtype=np.int64)

    def __len__(self) -> int:
        return len(self._reader)

    def __getitem__(self, index: int) -> tuple[io.IOBase, int]:
        """The image's bytes as a file, and its class index.

        Raises:
            OSError: The data set has no bytes for it.
        """
        try:
            return self._reader[index]
        except (AssertionError, TypeError) as error:  # timm's answers to a null
            raise OSError("the data set has no image there") from error

    def _filename(self, index: int, basename: bool = False, absolute: bool = False) -> str:
        image = self._reader.dataset[index][self._reader.image_key] or {}
        path = image.get("path") or ""
        return os.path.basename(path) if basename else f"{self._title}[{index}]" + (f" ({path})" if path else "")


def _hub_reader(name: str, root: str | None, split: str, options: dict[str, Any]) -> Reader:
    from datasets.exceptions import DatasetsError
    from timm.data.readers.reader_hfds import ReaderHfds

    title = f"hfds/{name} ({split})"
    try:
        return HubReader(ReaderHfds(name, root=root, split=split, **options), title)
    except (DatasetsError, OSError, ValueError, KeyError, TypeError) as error:
        reason = str(error).strip().splitlines()[0].rstrip(".") if str(error).strip() else type(error).__name__
        raise ValueError(f"{title} cannot be read: {reason}.") from error


def _check_targets(targets: np.ndarray, title: str, num_classes: int | None) -> None:
    if not len(targets):
        raise ValueError(f"{title} holds no images.")
    if targets.min() < 0:
        raise ValueError(f"{title} has images without labels: choose a labelled part.")
    if num_classes is not None and targets.max() >= num_classes:
        raise ValueError(f"{title} has {targets.max() + 1} classes, but num_classes is {num_classes}.")
