"""What stops a run from outside: disks that are full, workers that die, samples that hang, losses that are not finite.

Each ends the run with one sentence that says what failed, and which checkpoint it can go on from.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch.utils.data import DataLoader

from frozenllm.core.training import checkpoint as files
from frozenllm.core.training.reading import SeededDataset, Watch

if TYPE_CHECKING:
    from frozenllm.core.training.engine import Engine


class RunStopped(ValueError):
    """A run that could not go on; the message is one sentence."""


class CannotWrite(ValueError):
    """A file of the run folder cannot be written; the message names it and why, without an end."""


class NotFinite(ValueError):
    """A loss or a weight is infinite or no number; the message says where, without an end."""


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Around what writes a file of the run folder.

    Raises:
        CannotWrite: The system refuses.
    """
    try:
        yield
    except OSError as error:
        raise CannotWrite(f"{path} cannot be written ({error.strerror or error})") from error


@contextlib.contextmanager
def explained(engine: Engine) -> Iterator[None]:
    """Around training or evaluation: turns faults into sentences, and ends the loaders' workers.

    Raises:
        RunStopped: Something outside the program failed.
    """
    limit = engine.options["sample_timeout"]
    with Watch(lambda: _tables(engine), limit) as watch:
        try:
            yield
        except Exception as error:
            with deaf_to_workers():
                sentence = _sentence(engine, error, watch.killed, limit)
                end_workers(engine)
            if sentence is None:
                raise
            raise RunStopped(sentence) from error
        finally:
            with deaf_to_workers():
                end_workers(engine)


def _sentence(engine: Engine, error: Exception, killed: dict[int, str], limit: float | None) -> str | None:
    """What to say of a fault; None for errors of other kinds."""
    if isinstance(error, CannotWrite):
        return f"{error}: {where(engine)}; make room there and continue with resume=true."
    if isinstance(error, NotFinite):
        advice = "lower optim.lr, set optim.clip_grad or look at these samples, and continue with resume=true"
        return f"{error}: {where(engine)}; {advice}."
    # torch says that a worker died, or a batch cannot be fetched any more from the process that made it.
    if isinstance(error, RuntimeError | OSError | EOFError) and (dead := dead_workers(engine)):
        return f"{_of_workers(engine, dead, killed, limit)}: {where(engine)}; continue with resume=true."
    return None


@contextlib.contextmanager
def deaf_to_workers() -> Iterator[None]:
    """Without torch's handler for the end of children, which raises anew for a worker that is known to be dead."""
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "SIGCHLD"):
        yield
        return
    handler = signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL if handler is None else handler)


def where(engine: Engine) -> str:
    """Where a run stands, and what it can go on from."""
    if engine._train_loop is None:
        return "the evaluation stopped"
    numbered = files.checkpoints(engine.folder / "checkpoints")
    last = f"the last good checkpoint is {numbered[-1]}" if numbered else "no checkpoint had been written yet"
    return f"training stopped, and {last}"


def end_workers(engine: Engine) -> None:
    """End the workers of all loaders.

    They are kept from epoch to epoch, and otherwise until the garbage collector finds their loader: in a process with
    several runs that may be a worker of a later run, which was forked with the loader in its memory, and which then
    complains that it "can only test a child process".
    """
    for loader in _loaders(engine):
        iterator: Any = loader._iterator
        if iterator is not None:
            iterator._shutdown_workers()
            loader._iterator = None


def dead_workers(engine: Engine) -> dict[int, int]:
    """Process -> exit status of the loaders' workers that ended before their time; waits a moment for one to show."""
    for _ in range(20):
        iterators: list[Any] = [loader._iterator for loader in _loaders(engine) if loader._iterator is not None]
        workers = [worker for iterator in iterators for worker in iterator._workers]
        dead = {worker.pid: worker.exitcode for worker in workers if worker.exitcode not in (None, 0)}
        if dead or not workers:
            return dead
        time.sleep(0.05)
    return {}


def _loaders(engine: Engine) -> list[DataLoader]:
    loops = (engine._train_loop, engine._val_loop, engine._test_loop)
    return [loop.dataloader for loop in loops if isinstance(getattr(loop, "dataloader", None), DataLoader)]  # type: ignore[union-attr]


def _tables(engine: Engine) -> list[SeededDataset]:
    return [loader.dataset for loader in _loaders(engine) if isinstance(loader.dataset, SeededDataset)]


def _of_workers(engine: Engine, dead: dict[int, int], killed: dict[int, str], limit: float | None) -> str:
    for pid in dead:
        if pid in killed:
            return f"Reading {killed[pid]} took longer than runtime.sample_timeout={limit:g} s, and did not let go"
    named = [what for data in _tables(engine) if (what := data.read_by(list(dead)))]
    reading = f"while it read {named[0]}" if named else "between two samples"
    pid, status = next(iter(dead.items()))
    how = f"was ended by {signal.Signals(-status).name}" if status < 0 else f"ended with status {status}"
    return (
        f"A worker that reads data died (process {pid} {how}) {reading}, for lack of memory perhaps (then fewer "
        "runtime.workers help)"
    )


def remove_halves(folder: Path) -> None:
    """Delete what a killed run left half written; only where no other run can be writing."""
    for half in folder.glob(".*.tmp"):
        with contextlib.suppress(OSError):
            os.unlink(half)
