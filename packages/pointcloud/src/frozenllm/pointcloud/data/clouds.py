"""Labelled point clouds in memory: what both data sets become, whole or in two parts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from frozenllm.core.training import UNREADABLE, BrokenSample, TolerantDataset

__all__ = ["PARTS", "PointClouds", "holdout"]

PARTS = ("all", "fit", "heldout")
"""Parts of a data set: all of it; what is trained on where some is held out; what is held out."""


class PointClouds(TolerantDataset):
    """Clouds and their classes; a sample is ``{"inputs": (N, 3) float32, "targets": int, "index": int}``.

    Args:
        clouds: Arrays ``(N, 3)``, all with as many points.
        labels: Class of each, ``(S,)``.
        where: What the clouds were read from, for messages.
        num_classes: Upper bound of the classes.
        part: One of `PARTS`.
        share: Share of every class that is held out.
        split_seed: Chooses what is held out; the same for both parts.
        normalize: Move every cloud to its mean and scale it into the unit sphere.
        train: See `TolerantDataset`.
        on_error: See `TolerantDataset`.

    Raises:
        ValueError: A class is out of range, the clouds differ in size or are empty, or an option is unknown.
    """

    def __init__(
        self,
        clouds: Sequence[np.ndarray] | np.ndarray,
        labels: np.ndarray,
        *,
        where: str,
        num_classes: int,
        part: str = "all",
        share: float = 0.1,
        split_seed: int = 0,
        normalize: bool = False,
        train: bool = False,
        on_error: str = "raise",
    ) -> None:
        if len(clouds) == 0:
            raise ValueError(f"{where}: holds no clouds.")
        if len(clouds) != len(labels):
            raise ValueError(f"{where}: holds {len(clouds)} clouds, but {len(labels)} classes.")
        wrong = np.flatnonzero((labels < 0) | (labels >= num_classes))
        if len(wrong):
            raise ValueError(
                f"{where}: cloud {wrong[0]} is of class {labels[wrong[0]]}, but classes go from 0 to {num_classes - 1}."
            )
        sizes = {cloud.shape for cloud in clouds}
        if len(sizes) > 1 or next(iter(sizes))[-1] != 3:
            found = ", ".join(str(size) for size in sorted(sizes)[:3])
            raise ValueError(f"{where}: clouds must all be of one shape (points, 3), not {found}.")
        if next(iter(sizes))[0] == 0:
            raise ValueError(f"{where}: its clouds have no points.")
        self.chosen = holdout(labels, part, share, split_seed)
        if len(self.chosen) == 0:
            raise ValueError(f"{where}: holding out {share:g} of {len(labels)} clouds leaves the part {part} empty.")
        super().__init__(len(self.chosen), train=train, on_error=on_error)
        self.clouds, self.labels = clouds, labels
        self.where, self.normalize = where, normalize

    @property
    def targets(self) -> np.ndarray:
        """Class of every sample."""
        return self.labels[self.chosen]

    def read(self, index: int) -> dict[str, Any]:
        """See `PointClouds`.

        Raises:
            BrokenSample: A coordinate is not finite, or all points are one where the cloud is to be scaled.
        """
        place = int(self.chosen[index])
        cloud = np.asarray(self.clouds[place], dtype=np.float32)
        if not np.isfinite(cloud).all():
            raise BrokenSample(f"{self.where}: cloud {place} has coordinates that are not finite.")
        if self.normalize:
            cloud = cloud - cloud.mean(axis=0)
            radius = np.sqrt((cloud**2).sum(axis=1).max())
            if radius == 0:
                raise BrokenSample(f"{self.where}: all points of cloud {place} are one, which cannot be scaled.")
            cloud = cloud / radius
        return {"inputs": torch.tensor(cloud), "targets": int(self.labels[place]), "index": index}

    def describe(self, index: int) -> str:
        """The file, and the cloud's place in it."""
        return f"{self.where}: cloud {self.chosen[index]}"

    def placeholder(self, index: int) -> dict[str, Any]:
        """A cloud of zeros."""
        return {"inputs": torch.zeros(self.clouds[0].shape), "targets": UNREADABLE, "index": index}


def holdout(labels: np.ndarray, part: str, share: float, seed: int) -> np.ndarray:
    """Indices of a part, in order; every class gives the same share, rounded, and keeps at least one sample.

    Raises:
        ValueError: The part is unknown, or the share is not between 0 and 1.
    """
    if part not in PARTS:
        raise ValueError(f"part must be one of {', '.join(PARTS)}, not {part!r}.")
    if part == "all":
        return np.arange(len(labels))
    if not isinstance(share, int | float) or not 0 < share < 1:
        raise ValueError(f"The share that is held out must be between 0 and 1, not {share!r}.")
    generator = np.random.default_rng(seed)
    out = np.zeros(len(labels), dtype=bool)
    for label in np.unique(labels):
        members = generator.permutation(np.flatnonzero(labels == label))
        out[members[: min(round(share * len(members)), len(members) - 1)]] = True
    return np.flatnonzero(out if part == "heldout" else ~out)
