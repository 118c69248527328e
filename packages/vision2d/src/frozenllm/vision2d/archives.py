"""Images inside tar files: a data set in one tar, and WebDataset's shards.

Both are indexed once and then read at random, so that order, augmentation seeds and resumed runs are those of a folder
of the same images. Only positions are kept: every image is read through a file opened for it, which forked workers can
share where one open file would be read from several places at once.
"""

from __future__ import annotations

import io
import json
import logging
import os
import tarfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from timm.data.readers.img_extensions import get_img_extensions
from timm.data.readers.reader import Reader
from timm.data.readers.targets import get_field, has_field
from timm.utils.misc import natural_key

logger = logging.getLogger(__name__)


class MemberReader(Reader):
    """Images at known places in files, and their classes.

    Args:
        archives: The files.
        members: One ``(archive, offset, size, name)`` per image; the archive by its number.
        targets: Class index of every image.

    Attributes:
        targets: Class index of every image, ``(N,)`` int64.
    """

    def __init__(self, archives: list[Path], members: list[tuple[int, int, int, str]], targets: list[int]) -> None:
        super().__init__()
        self.archives = archives
        self.targets = np.asarray(targets, dtype=np.int64)
        # Arrays, not lists of objects: a million objects are copied page by page into every forked worker.
        self._places = np.array([member[:3] for member in members], dtype=np.int64).reshape(-1, 3)
        self._names = np.array([member[3].encode() for member in members], dtype=np.bytes_)

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[io.BytesIO, int]:
        """The image's bytes as a file, and its class index.

        Raises:
            OSError: The archive has become shorter.
        """
        archive, offset, size = self._places[index].tolist()
        with open(self.archives[archive], "rb", buffering=0) as file:
            file.seek(offset)
            data = file.read(size)
        if len(data) < size:
            raise OSError(f"the archive ends after {len(data)} of its {size} bytes")
        return io.BytesIO(data), int(self.targets[index])

    def _filename(self, index: int, basename: bool = False, absolute: bool = False) -> str:
        name = self._names[index].decode()
        if basename:
            return os.path.basename(name)
        return f"{self.archives[self._places[index, 0]]}:{name}" if absolute else name


class TarReader(MemberReader):
    """A data set in one uncompressed tar file, as the official code has it: members ``<x>/<class>/<file>``.

    Images come in the order of a folder with the same content. Members of another depth, and files that are no images
    by their extension, are left out and counted in the log.

    Args:
        root: The tar file.

    Attributes:
        classes: Names of the archive's classes in sorted order.
        class_to_idx: Class indices by name: at first places in that order.

    Raises:
        ValueError: The file is no uncompressed tar, is cut short, or holds no such member.
    """

    def __init__(self, root: str | os.PathLike[str]) -> None:
        self.root = Path(root)
        extensions = get_img_extensions(as_set=True)
        found: list[tuple[str, str, int, int]] = []
        left_out = 0
        for member in tar_members(self.root):
            parts = member.name.removeprefix("./").split("/")
            if len(parts) == 2 and member.name.startswith("./"):
                parts = ["."] + parts  # packed from inside the folder: the dot is the first part
            if len(parts) == 3 and os.path.splitext(parts[-1])[1].lower() in extensions and parts[-1][0] != ".":
                found.append((parts[1], member.name, member.offset_data, member.size))
            else:
                left_out += 1
        if not found:
            raise ValueError(f"{self.root} holds no images named <folder>/<class>/<file>.")
        if left_out:
            logger.warning("%s: left out %d files that are not <folder>/<class>/<image>.", self.root, left_out)
        self.classes = sorted({name for name, *_ in found})
        self.class_to_idx = {name: number for number, name in enumerate(self.classes)}
        found.sort(key=lambda f: (natural_key(f[1]), f[1]))
        members = [(0, offset, size, name) for _, name, offset, size in found]
        super().__init__([self.root], members, [self.class_to_idx[label] for label, *_ in found])

    def renumber(self, class_to_idx: Mapping[str, int]) -> None:
        """Number the classes in another way; every class of the archive must be among the given ones."""
        self.targets = np.array([class_to_idx[name] for name in self.classes], dtype=np.int64)[self.targets]
        self.class_to_idx = dict(class_to_idx)


class ShardReader(MemberReader):
    """Samples of WebDataset shards: members of a tar that share a name up to its first dot.

    Args:
        shards: Local tar files.
        input_key: Extensions of the image, separated by semicolons.
        target_key: Name of the class index in the sample's ``.json``; None for the number in its ``.cls``. Samples
            whose index is negative have no label and are left out.

    Raises:
        ValueError: A shard is missing or damaged, or a sample has no image or no class.
    """

    def __init__(self, shards: list[Path], input_key: str = "jpg;jpeg;png;webp", target_key: str | None = None) -> None:
        self.extensions = input_key.lower().split(";")
        self.target_key = target_key
        members, targets = [], []
        for number, shard in enumerate(shards):
            for key, sample in self._samples(shard):
                image = next((sample[ext] for ext in self.extensions if ext in sample), None)
                if image is None:
                    raise ValueError(f"{shard}: sample {key} has no image ({', '.join(self.extensions)}).")
                target = self._target(shard, key, sample)
                if target >= 0:
                    members.append((number, image[0], image[1], f"{key}.{image[2]}"))
                    targets.append(target)
        if not members:
            raise ValueError(f"{shards[0] if shards else 'The list of shards'} holds no labelled samples.")
        super().__init__(shards, members, targets)

    def _samples(self, shard: Path) -> Iterator[tuple[str, dict[str, Any]]]:
        """Members by extension: places of images, bytes of labels."""
        label = "json" if self.target_key else "cls"
        key, sample = None, {}
        with open(shard, "rb") if shard.is_file() else io.BytesIO() as file:
            for member in tar_members(shard):
                folder, _, base = member.name.rpartition("/")
                stem, _, extension = base.partition(".")
                if not stem:
                    continue  # hidden files
                this = f"{folder}/{stem}" if folder else stem
                if key is not None and this != key:
                    yield key, sample
                    sample = {}
                key = this
                if extension.lower() == label:
                    file.seek(member.offset_data)
                    sample[label] = file.read(member.size)
                else:
                    sample[extension.lower()] = (member.offset_data, member.size, extension)
            if key is not None:
                yield key, sample

    def _target(self, shard: Path, key: str, sample: Mapping[str, Any]) -> int:
        label = "json" if self.target_key else "cls"
        try:
            text = sample[label]
            if self.target_key:
                fields = json.loads(text)
                return int(get_field(fields, self.target_key) if has_field(fields, self.target_key) else "")
            return int(text)
        except (KeyError, ValueError, TypeError) as error:
            where = f"a number {self.target_key} in its .json" if self.target_key else "a number in its .cls"
            raise ValueError(f"{shard}: sample {key} has no class: {where} is missing.") from error


def tar_members(path: Path) -> Iterator[tarfile.TarInfo]:
    """The regular files in an uncompressed tar, with their positions.

    Raises:
        ValueError: There is no such file, or it is no uncompressed tar, or it is cut short.
    """
    if not path.is_file():
        raise ValueError(f"There is no tar file at {path}.")
    logger.info("Indexing %s.", path)
    try:
        with tarfile.open(path, "r:") as archive:
            for member in archive:
                archive.members.clear()  # it keeps every member otherwise: a gigabyte for ImageNet
                if member.isreg() and not member.issparse():
                    yield member
    except (tarfile.ReadError, OverflowError) as error:  # the second from a length of thousands of digits
        cause = "it is cut short" if "unexpected end" in str(error) else "it is damaged, or compressed: unpack it first"
        raise ValueError(f"{path} cannot be read as an uncompressed tar file: {cause}.") from error
