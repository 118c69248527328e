"""The order of samples, which depends on (seed, epoch) alone.

Persistent workers keep their generators across epochs, and a resumed run starts new workers; neither matters when every
sample is drawn under its own seed (`SeededDataset`). The epoch travels to the workers inside the index.
"""

from __future__ import annotations

from collections.abc import Iterator, Sized

import torch
from mmengine.dist import get_dist_info
from torch.utils.data import Sampler

from frozenllm.core.training.reading import SampleKey
from frozenllm.core.training.reading import SeededDataset as SeededDataset
from frozenllm.core.training.registry import DATA_SAMPLERS
from frozenllm.core.training.seeding import derive_seed


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
        yield from self.keys(self.epoch, self.start)

    def keys(self, epoch: int, start: int = 0, count: int | None = None) -> Iterator[SampleKey]:
        """Samples of this process in an epoch.

        Args:
            epoch: The epoch.
            start: Samples that are left out at the front.
            count: How many then; None for all.
        """
        if self.shuffle:
            generator = torch.Generator().manual_seed(derive_seed(self.seed, "order", epoch))
            order = torch.randperm(self.size, generator=generator)
        else:
            order = torch.arange(self.size)
        for place in range(start, self.num_samples if count is None else min(start + count, self.num_samples)):
            at = place * self.world_size + self.rank
            yield epoch, int(order[at // self.repeats % self.size]), at % self.repeats
