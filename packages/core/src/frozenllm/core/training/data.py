"""Data sets and samplers whose random choices depend on (seed, epoch, sample) alone.

Persistent workers keep their generators across epochs, and a resumed run starts new workers; neither matters when every
sample is drawn under its own seed. The epoch travels to the workers inside the index.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sized
from typing import Any

import torch
from mmengine.dist import get_dist_info
from torch.utils.data import Dataset, Sampler

from frozenllm.core.training.registry import DATA_SAMPLERS, DATASETS
from frozenllm.core.training.seeding import derive_seed, seed_host

SampleKey = tuple[int, int, int]
"""(epoch, index, repeat): what the sampler yields and the data set receives."""


@DATASETS.register_module()
class SeededDataset(Dataset):
    """A data set whose items are read under a seed of their own.

    Args:
        dataset: A map-style data set, or its config.
        seed: The run's seed.
        role: ``"train"`` or ``"val"``; keeps their random numbers apart.
    """

    def __init__(self, dataset: Dataset | Mapping[str, Any], seed: int, role: str) -> None:
        self.dataset = DATASETS.build(dict(dataset)) if isinstance(dataset, Mapping) else dataset
        self.seed = seed
        self.role = role
        if not len(self.dataset):  # type: ignore[arg-type]
            raise ValueError(f"The data set for {role} is empty: {dataset}.")

    @property
    def metainfo(self) -> dict[str, Any]:
        """mmengine's description of the data set; empty where the data set has none."""
        return getattr(self.dataset, "metainfo", {})

    def __len__(self) -> int:
        return len(self.dataset)  # type: ignore[arg-type]

    def __getitem__(self, key: SampleKey) -> dict[str, Any]:
        """The sample as a dict with ``inputs`` and ``targets``, whatever form the data set gives."""
        epoch, index, repeat = key
        seed_host(derive_seed(self.seed, self.role, epoch, index, repeat))
        sample = self.dataset[index]
        if isinstance(sample, Mapping):
            return dict(sample)
        inputs, targets = sample
        return {"inputs": inputs, "targets": targets}


@DATA_SAMPLERS.register_module()
class EpochSampler(Sampler[SampleKey]):
    """Order of samples as a function of (seed, epoch), shared among processes, which can start in mid-epoch.

    Process r of W takes places r, r + W, ... of one order: the first ``batch_size * W`` places are the first global
    batch, as for one process with a batch W times as large.

    Args:
        dataset: Anything with a length.
        seed: The run's seed; the same in all processes.
        shuffle: Draw a new order every epoch.
        batch_size: Samples per process and iteration; used with ``drop_last``.
        accumulate: Iterations per update; used with ``drop_last``.
        drop_last: Leave out the samples that do not fill a whole update; otherwise samples from the start are added
            until all processes have equally many.
        repeats: Times that a sample appears in the pool an epoch is cut from (repeated augmentation). An epoch keeps
            its length, so it sees ``1 / repeats`` of the samples.

    Raises:
        ValueError: The data set does not fill one update.
    """

    def __init__(
        self,
        dataset: Sized,
        seed: int = 0,
        shuffle: bool = True,
        batch_size: int = 1,
        accumulate: int = 1,
        drop_last: bool = False,
        repeats: int = 1,
    ) -> None:
        if accumulate > 1 and shuffle and not drop_last:
            raise ValueError("optim.accumulate needs data.drop_last=true: an epoch must be a whole number of updates.")
        self.rank, self.world_size = get_dist_info()
        self.size = len(dataset)
        self.seed = seed
        self.shuffle = shuffle
        self.repeats = repeats
        self.epoch = 0
        self.start = 0
        if drop_last:
            update = batch_size * accumulate * self.world_size
            self.num_samples = self.size // update * batch_size * accumulate
            if not self.num_samples:
                raise ValueError(
                    f"The training data has {self.size} samples, but one update takes {update} "
                    f"(data.batch_size {batch_size} x {self.world_size} process(es) x optim.accumulate {accumulate})."
                )
        else:
            self.num_samples = -(-self.size // self.world_size)

    def set_epoch(self, epoch: int, start: int = 0) -> None:
        """Choose the next iteration's epoch, and how many samples of this process it leaves out at the front."""
        self.epoch = epoch
        self.start = start

    def __len__(self) -> int:
        """Samples of this process in a whole epoch."""
        return self.num_samples

    def __iter__(self) -> Iterator[SampleKey]:
        if self.shuffle:
            generator = torch.Generator().manual_seed(derive_seed(self.seed, "order", self.epoch))
            order = torch.randperm(self.size, generator=generator)
        else:
            order = torch.arange(self.size)
        for place in range(self.start, self.num_samples):
            at = place * self.world_size + self.rank
            yield self.epoch, int(order[at // self.repeats % self.size]), at % self.repeats
