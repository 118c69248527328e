"""One set of images: how it is opened, classified and counted, and where its counts are kept."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import distributed
from torch.utils.data import DataLoader, Dataset, Subset
from torchvision import transforms

from frozenllm.core.training.folder import write_text
from frozenllm.core.training.task import AUTOCAST
from frozenllm.vision2d.archives import TarReader
from frozenllm.vision2d.data import ImageDataset, make_transform
from frozenllm.vision2d.robustness.models import Candidate
from frozenllm.vision2d.robustness.scores import Counts
from frozenllm.vision2d.robustness.sets import EvalSet, check_classes, class_indices
from frozenllm.vision2d.sources import folder_reader

SETS_FOLDER = "sets"
_FORMAT = 1


class Crop:
    """The central square of an image that is at least that large (ImageNet-C's images are cropped, never resized).

    Args:
        size: Width in pixels.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self._crop = transforms.CenterCrop(size)

    def __call__(self, image: Any) -> Any:
        """The square.

        Raises:
            ValueError: The image is smaller.
        """
        if min(image.size) < self.size:
            raise ValueError(
                f"An image of ImageNet-C has {image.size[0]} x {image.size[1]} pixels, fewer than the model's "
                f"{self.size}: these images are cropped, never resized."
            )
        return self._crop(image)


class Remembered:
    """Results of finished sets, one file each, by everything that they depend on.

    Args:
        folder: Where the files are.
        candidate: The model, whose identity is part of what they depend on.
    """

    def __init__(self, folder: Path, candidate: Candidate) -> None:
        self.folder = folder
        keys = ("kind", "model", "sha256", "weights", "precision", "num_heads", "llm_heads")
        self._model = {key: candidate.identity[key] for key in keys if candidate.identity.get(key) is not None}
        self._transform = candidate.transform

    def path(self, part: EvalSet) -> Path:
        """The file of a set."""
        depends = {"format": _FORMAT, "set": part.name, "data": str(part.path.resolve())}
        text = json.dumps({**depends, "model": self._model, "transform": self._transform}, sort_keys=True)
        key = hashlib.sha256(text.encode()).hexdigest()[:12]
        return self.folder / f"{part.name.replace('/', '.')}-{key}.json"

    def read(self, part: EvalSet, on_error: str = "skip", partial: bool = True) -> Counts | None:
        """A set's counts; None if it has not been evaluated, or under a policy less strict: it may be whole by now."""
        try:
            found = json.loads(self.path(part).read_text())["counts"]
            counts = Counts(**{f.name: int(found[f.name]) for f in fields(Counts)})
        except (OSError, ValueError, KeyError, TypeError):  # not there, or not ours: evaluate
            return None
        too_few = (counts.unreadable and on_error == "raise") or (counts.missing_classes and not partial)
        return None if too_few else counts

    def write(self, part: EvalSet, counts: Counts) -> None:
        """Keep a set's counts; the file appears whole or not at all."""
        record = {"set": part.name, "data": str(part.path), "model": self._model, "counts": asdict(counts)}
        write_text(self.path(part), json.dumps(record, indent=2) + "\n")


def open_set(part: EvalSet, options: dict[str, Any], on_error: str, partial: bool) -> tuple[ImageDataset, int]:
    """A set's images with their indices among the 1000 classes, and how many of its classes have none.

    Args:
        part: The set.
        options: The model's transform for clean images.
        on_error: See `ImageDataset`.
        partial: Accept that classes are missing.

    Raises:
        ValueError: The set holds no images, or other classes than it should.
    """
    numbers = class_indices()
    if part.path.is_dir():
        reader = folder_reader(part.path, numbers)
        targets = [target for _, target in reader.samples]
    else:
        reader = TarReader(part.path)
        check_classes(part, reader.classes, partial)
        reader.renumber(numbers)
        targets = reader.targets
    there = set(np.unique(targets).tolist())
    missing = [wnid for wnid in part.wnids if numbers[wnid] not in there]
    check_classes(part, [wnid for wnid in part.wnids if wnid not in missing], partial)  # folders without images
    transform = make_transform(options, train=False)
    if part.corrupted:
        size = options.get("input_size", 224)
        size = size[-1] if isinstance(size, Sequence) else size
        after = [t for t in transform.transforms if isinstance(t, transforms.Normalize)]
        transform = transforms.Compose([Crop(size), transforms.ToTensor(), *after])
    return ImageDataset(reader, transform, on_error=on_error), len(missing)


@torch.no_grad()
def evaluate_set(
    candidate: Candidate,
    dataset: ImageDataset,
    classes: Sequence[str],
    device: torch.device,
    *,
    batch_size: int,
    workers: int,
    progress: Any = None,
) -> Counts:
    """Classify a set's images; several processes classify a share each, and all get the counts of the whole.

    Args:
        candidate: The model, on the device.
        dataset: Images and indices among the 1000 classes.
        classes: The set's wnids: only these may be predicted.
        device: Where the model is.
        batch_size: Images at a time, in each process.
        workers: Processes that load.
        progress: Called with the number of images done after every batch, with several processes a guess from the
            own share.

    Raises:
        ValueError: Not one image could be read, or the model's scores are not finite.
    """
    numbers = class_indices()
    allowed = torch.tensor([numbers[wnid] for wnid in classes], device=device) if len(classes) < len(numbers) else None
    dtype = AUTOCAST.get(candidate.identity["precision"])
    share = own_share(dataset)
    loader = DataLoader(
        share, batch_size=batch_size, num_workers=workers, pin_memory=device.type == "cuda", shuffle=False
    )
    counts, failure = Counts(), None
    try:
        for images, targets in loader:
            with torch.autocast(device.type, dtype=dtype, enabled=dtype is not None):
                logits = candidate.model(images.to(device, non_blocking=True))
            counts.add(logits, targets.to(device, non_blocking=True), allowed)
            if progress is not None:
                progress((counts.images + counts.unreadable) * len(dataset) // len(share))
    except ValueError as error:  # raised below: other processes wait for this one's counts
        failure = error
    counts, failures = sum_over_processes(counts, failure is not None, device)
    if failure is not None:
        raise failure
    if failures:
        raise ValueError("Another process could not go on: its own error says why.")
    if not counts.images:
        raise ValueError("Not one image of the evaluated set could be read.")
    return counts


def own_share(dataset: Dataset) -> Dataset:
    """The part of a data set that this process evaluates: a contiguous one, so that archives are read in order."""
    if not distributed.is_initialized():
        return dataset
    rank, world, size = distributed.get_rank(), distributed.get_world_size(), len(dataset)
    return Subset(dataset, range(rank * size // world, (rank + 1) * size // world))


def sum_over_processes(counts: Counts, failed: bool, device: torch.device) -> tuple[Counts, int]:
    """The counts of all processes together, and how many of them failed."""
    if not distributed.is_initialized():
        return counts, int(failed)
    totals = torch.tensor([*(getattr(counts, field.name) for field in fields(Counts)), int(failed)], device=device)
    distributed.all_reduce(totals)
    *summed, failures = totals.tolist()
    return Counts(*summed), failures
