"""What stops a run from outside: disks that are full, workers that die, samples that hang, losses that are not finite.

Each ends the run with one sentence that says what failed, and which checkpoint it can go on from.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch.utils.data import DataLoader

from frozenllm.core.training import checkpoint as files
from frozenllm.core.training.reading import SeededDataset, Watch

if TYPE_CHECKING:
    from frozenllm.core.training.engine import Engine

_DEAD_WORKER = re.compile(r"DataLoader worker \(pid\(?s?\)? ([\d, ]+)\) (.*?)[.\s]*(?:$|\. |\n)", re.DOTALL)


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
        except CannotWrite as error:
            raise RunStopped(f"{error}: {where(engine)}; make room there and continue with resume=true.") from error
        except NotFinite as error:
            advice = "lower optim.lr, set optim.clip_grad or look at these samples, and continue with resume=true"
            raise RunStopped(f"{error}: {where(engine)}; {advice}.") from error
        except RuntimeError as error:
            dead = _DEAD_WORKER.search(str(error))
            if dead is None:
                raise
            sentence = _of_workers(engine, dead, watch.killed, limit)
            raise RunStopped(f"{sentence}: {where(engine)}; continue with resume=true.") from error
        finally:
            end_workers(engine)


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


def _loaders(engine: Engine) -> list[DataLoader]:
    loops = (engine._train_loop, engine._val_loop, engine._test_loop)
    return [loop.dataloader for loop in loops if isinstance(getattr(loop, "dataloader", None), DataLoader)]  # type: ignore[union-attr]


def _tables(engine: Engine) -> list[SeededDataset]:
    return [loader.dataset for loader in _loaders(engine) if isinstance(loader.dataset, SeededDataset)]


def _of_workers(engine: Engine, dead: re.Match[str], killed: dict[int, str], limit: float | None) -> str:
    pids = [int(pid) for pid in re.findall(r"\d+", dead[1])]
    for pid in pids:
        if pid in killed:
            return f"Reading {killed[pid]} took longer than runtime.sample_timeout={limit:g} s, and did not let go"
    named = [what for data in _tables(engine) if (what := data.read_by(pids))]
    reading = f"while it read {named[0]}" if named else "between two samples"
    return (
        f"A worker that reads data died (process {pids[0]} {_reason(dead[2])}) {reading}, for lack of memory perhaps "
        "(then fewer runtime.workers help)"
    )


def _reason(text: str) -> str:
    return re.sub(r"^is ", "was ", " ".join(text.split()).split(". ")[0])


def remove_halves(folder: Path) -> None:
    """Delete what a killed run left half written; only where no other run can be writing."""
    for half in folder.glob(".*.tmp"):
        with contextlib.suppress(OSError):
            os.unlink(half)
