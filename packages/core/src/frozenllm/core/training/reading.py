"""How samples are read: under a seed of their own, within a time, and so that a fault knows whose it is."""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import FrameType
from typing import Any

import torch
from torch.utils.data import Dataset, get_worker_info

from frozenllm.core.training.registry import DATASETS
from frozenllm.core.training.seeding import derive_seed, seed_host
from frozenllm.core.training.tolerant import BrokenSample

logger = logging.getLogger(__name__)

SampleKey = tuple[int, int, int]
"""(epoch, index, repeat): what the sampler yields and the data set receives."""

ROLES = {"train": "training", "val": "validation", "test": "test"}
_SLOTS = 512  # workers of one loader
_PID, _INDEX, _SINCE = range(3)
_IDLE = -1.0
_TIMERS = hasattr(signal, "setitimer")  # not on Windows


@DATASETS.register_module()
class SeededDataset(Dataset):
    """A data set whose items are read under a seed of their own.

    Args:
        dataset: A map-style data set, or its config. Its method ``describe(index)``, if it has one, says which file a
            sample is.
        seed: The run's seed.
        role: ``"train"``, ``"val"`` or ``"test"``; keeps their random numbers apart.
        timeout: Seconds that reading a sample may take; None for any time. A longer one is a broken sample
            (`BrokenSample`); code that does not let itself be interrupted is ended with its worker (`Watch`).

    Raises:
        ValueError: The data set is empty, or the time is not positive.
    """

    def __init__(
        self, dataset: Dataset | Mapping[str, Any], seed: int, role: str, timeout: float | None = None
    ) -> None:
        if timeout is not None and not timeout > 0:
            raise ValueError(f"runtime.sample_timeout must be a positive number of seconds or null, not {timeout}.")
        self.dataset = DATASETS.build(dict(dataset)) if isinstance(dataset, Mapping) else dataset
        self.seed = seed
        self.role = role
        self.timeout = timeout
        # What each worker reads: in shared memory, where it outlives the worker.
        self._table = torch.full((_SLOTS, 3), _IDLE, dtype=torch.float64).share_memory_()
        if not len(self.dataset):  # type: ignore[arg-type]
            raise ValueError(f"The data set for {role} is empty: {dataset}.")

    @property
    def metainfo(self) -> dict[str, Any]:
        """mmengine's description of the data set; empty where the data set has none."""
        return getattr(self.dataset, "metainfo", {})

    def __len__(self) -> int:
        return len(self.dataset)  # type: ignore[arg-type]

    def __getitem__(self, key: SampleKey) -> dict[str, Any]:
        """The sample as a dict with ``inputs`` and ``targets``, whatever form the data set gives.

        Raises:
            BrokenSample: It cannot be read, or not in time.
        """
        epoch, index, repeat = key
        worker = get_worker_info()
        row = self._table[worker.id % _SLOTS if worker else 0]
        row.copy_(torch.tensor([os.getpid(), index, time.monotonic()], dtype=torch.float64))
        seed_host(derive_seed(self.seed, self.role, epoch, index, repeat))
        try:
            with time_limit(self.timeout, row):
                sample = self.dataset[index]
        except BrokenSample as error:
            name = self.name(index, unless_in=str(error))
            raise BrokenSample(f"{name[0].upper()}{name[1:]}: {error}") from error
        except ValueError:
            raise
        except Exception:
            logger.error("Reading %s failed.", self.name(index))
            raise
        row[_INDEX] = _IDLE
        if isinstance(sample, Mapping):
            return dict(sample)
        inputs, targets = sample
        return {"inputs": inputs, "targets": targets}

    def describe(self, index: int) -> str:
        """A sample's file, or what else tells where it is; empty where the data set does not know."""
        describe = getattr(self.dataset, "describe", None)
        return describe(index) if describe is not None else ""

    def name(self, index: int, unless_in: str = "") -> str:
        """Words for a sample: its number, the data it belongs to, and `describe`, unless some text holds that."""
        file = self.describe(index)
        known = f" ({file})" if file and file not in unless_in else ""
        return f"sample {index} of the {ROLES.get(self.role, self.role)} data{known}"

    def read_by(self, pids: Sequence[int]) -> str | None:
        """`name` of what one of these processes was reading last; None if none of them was reading."""
        rows = [row for row in self._table.tolist() if int(row[_PID]) in pids and row[_INDEX] != _IDLE]
        return self.name(int(rows[0][_INDEX])) if rows else None

    def overdue(self, seconds: float) -> list[tuple[int, str]]:
        """Processes that have been reading one sample for longer, with its `name`."""
        now = time.monotonic()
        late = [row for row in self._table.tolist() if row[_INDEX] != _IDLE and now - row[_SINCE] > seconds]
        return [(int(row[_PID]), self.name(int(row[_INDEX]))) for row in late]


@contextlib.contextmanager
def time_limit(seconds: float | None, row: torch.Tensor) -> Iterator[None]:
    """Interrupt what is inside after some time; again and again, should it go on with something else.

    Args:
        seconds: None for no limit. There is none either in threads other than the main one, which get no signals, and
            on Windows.
        row: Of the table of what is read: its clock starts anew.

    Raises:
        BrokenSample: It took longer.
    """
    if seconds is None or not _TIMERS or threading.current_thread() is not threading.main_thread():
        yield
        return
    reading = True

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        if reading:
            row[_SINCE] = time.monotonic()
            raise BrokenSample(f"reading took longer than runtime.sample_timeout={seconds:g} s.")

    handler = signal.signal(signal.SIGALRM, interrupt)
    started = time.monotonic()
    left, interval = signal.setitimer(signal.ITIMER_REAL, seconds, seconds)
    try:
        yield
    finally:
        reading = False
        # Another timer of this process goes on as if nothing had been.
        signal.setitimer(signal.ITIMER_REAL, max(left - (time.monotonic() - started), 1e-3) if left else 0, interval)
        signal.signal(signal.SIGALRM, signal.SIG_DFL if handler is None else handler)


class Watch:
    """Ends workers that hang in code which does not let itself be interrupted; a context.

    The training process learns of it as of any worker's death, and finds the reason in `killed`.

    Args:
        datasets: Gives what the workers read.
        seconds: The limit for a sample; None for none. A worker is ended some time after it.
    """

    def __init__(self, datasets: Callable[[], Sequence[SeededDataset]], seconds: float | None) -> None:
        self.datasets = datasets
        self.seconds = seconds
        self.killed: dict[int, str] = {}
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, name="frozenllm-watch", daemon=True)

    def __enter__(self) -> Watch:
        if self.seconds is not None:
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        if self._thread.ident is not None:
            self._thread.join()

    def _run(self) -> None:
        assert self.seconds is not None
        patience = 1.5 * self.seconds + 1
        while not self._end.wait(min(self.seconds / 2, 5.0)):
            for pid, name in [late for data in self.datasets() for late in data.overdue(patience)]:
                if pid in {worker.pid for worker in multiprocessing.active_children()}:
                    self.killed[pid] = name
                    os.kill(pid, signal.SIGKILL)
