"""What happens to samples that cannot be read: raise, or count, log and go on."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from typing import Any

import torch
from torch.utils.data import Dataset

logger = logging.getLogger(__name__)

UNREADABLE = -1
"""Target of a stand-in for an unreadable sample in evaluation; `Accuracy` and `CrossEntropy` leave it out."""

_MAX_REPLACEMENTS = 100


class BrokenSample(ValueError):
    """A sample cannot be read; the message is one sentence that names the file and what is wrong with it."""


class TolerantDataset(Dataset, ABC):
    """Map-style data set whose single samples may be broken.

    Subclasses give `read`, `placeholder` if they are evaluated, and `describe` if they know their samples' files. Any
    other error than `BrokenSample` goes through.

    Args:
        size: Number of samples.
        train: Training data: a broken sample is replaced by the next readable one, so that batches keep their size. In
            evaluation `placeholder` stands in for it.
        on_error: ``"raise"`` or ``"skip"``, for broken samples. Skipped ones are logged once each and counted in
            `num_unreadable`.

    Raises:
        ValueError: The policy is unknown.
    """

    def __init__(self, size: int, *, train: bool = False, on_error: str = "raise") -> None:
        if on_error not in ("raise", "skip"):
            raise ValueError(f"on_error must be raise or skip, not {on_error!r}.")
        self.size = size
        self.train = train
        self.on_error = on_error
        # Shared with the loader's workers, each of which writes only what it finds.
        self._unreadable = torch.zeros(size, dtype=torch.bool).share_memory_()

    @abstractmethod
    def read(self, index: int) -> Any:
        """The sample at an index.

        Raises:
            BrokenSample: It cannot be read.
        """

    def placeholder(self, index: int) -> Any:
        """What stands in for a broken sample in evaluation: of a sample's shape, with the target `UNREADABLE`.

        Raises:
            ValueError: Here, for data sets that have nothing of the kind.
        """
        raise ValueError(
            f"Sample {index} cannot be read, and {type(self).__name__} has no stand-in for it in evaluation: repair or "
            "remove it, and set on_error to raise."
        )

    def describe(self, index: int) -> str:
        """The file of a sample, or what else tells where it is, for messages; empty if that is not known."""
        return ""

    def __len__(self) -> int:
        return self.size

    @property
    def num_unreadable(self) -> int:
        """Samples found broken so far, over all workers of this process."""
        return int(self._unreadable.sum())

    def __getitem__(self, index: int) -> Any:
        """The sample, or what the policy puts in its place.

        Raises:
            BrokenSample: It cannot be read, and the policy is to raise; or too many in a row cannot.
            IndexError: There is no such sample; this ends a loop over the data set.
        """
        if not -self.size <= index < self.size:
            raise IndexError(f"There are {self.size} samples, and none at {index}.")
        index %= self.size
        for step in range(min(_MAX_REPLACEMENTS, self.size) if self.train else 1):
            try:
                return self.read((index + step) % self.size)
            except BrokenSample as error:
                if self.on_error == "raise":
                    sentence = str(error).removesuffix(".")
                    raise BrokenSample(f"{sentence}; repair or remove it, or set on_error to skip.") from error
                self.note((index + step) % self.size, error)
                last = error
        if self.train:
            raise BrokenSample(f"{step + 1} samples in a row cannot be read; the last one: {last}")
        return self.placeholder(index)

    def note(self, index: int, error: BrokenSample) -> None:
        """Count a broken sample and log it, once."""
        if not self._unreadable[index]:
            self._unreadable[index] = True
            logger.warning("Skipped a sample: %s", error)
