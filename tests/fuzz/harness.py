"""Feeds damaged files to a reader, in a process of its own: a crash or a hang is a finding, and not the end."""

from __future__ import annotations

import gc
import hashlib
import multiprocessing
import random
import resource
import signal
import sys
import tempfile
import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from mutations import damage_bytes, damage_json, damage_lines

DAMAGE = {
    "bytes": (damage_bytes,),
    "json": (damage_bytes, damage_json, damage_json),
    "lines": (damage_bytes, damage_lines),
}
MEMORY = 12 << 30  # address space of a child: a size in a damaged header must not be believed


@dataclass(frozen=True)
class Reader:
    """A reader of outside files.

    Attributes:
        name: ``"<package>: <what>"``.
        write: Fills an empty folder with valid files, and names the one to damage.
        read: Reads what lies in the folder, given that file; raises ValueError, in one line, for what is damaged.
        check: Raises AssertionError where an accepted result is not sound; it sees what the valid file gave, too.
        form: ``"bytes"``, ``"json"`` or ``"lines"``: the kinds of damage.
    """

    name: str
    write: Callable[[Path], Path]
    read: Callable[[Path], Any]
    check: Callable[[Any, Any], None]
    form: str = "bytes"


@dataclass
class Outcome:
    """What a reader did with many damaged files.

    Attributes:
        inputs: How many.
        refused: With a ValueError of one line.
        accepted: Read, and sound.
        findings: Everything else: seed and what happened.
    """

    inputs: int = 0
    refused: int = 0
    accepted: int = 0
    findings: list[tuple[int, str]] = field(default_factory=list)


def fuzz(reader: Reader, seeds: range, *, seconds: float = 20.0, limit: int = 20) -> Outcome:
    """Feed one damaged file per seed.

    Args:
        reader: The reader.
        seeds: One input each; the same seed gives the same damage.
        seconds: Time for one input; beyond it the reader hangs.
        limit: Stop after so many findings.
    """
    outcome, todo = Outcome(), list(seeds)
    context = multiprocessing.get_context("fork")
    while todo and len(outcome.findings) < limit:
        ours, theirs = context.Pipe(duplex=False)
        child = context.Process(target=_child, args=(reader, todo, theirs))
        child.start()
        theirs.close()
        try:
            _collect(outcome, todo, ours, seconds, limit)
        except EOFError:
            child.join()
            outcome.findings.append((todo.pop(0), f"the process died with exit code {child.exitcode}"))
            outcome.inputs += 1
        except TimeoutError:
            outcome.findings.append((todo.pop(0), f"no answer within {seconds:.0f} seconds"))
            outcome.inputs += 1
        finally:
            child.kill()
            child.join()
            ours.close()
    return outcome


def _collect(outcome: Outcome, todo: list[int], pipe: Connection, seconds: float, limit: int) -> None:
    while True:
        if not pipe.poll(seconds * (6 if not outcome.inputs else 1)):  # the first answer comes after imports
            raise TimeoutError
        verdict, text = pipe.recv()
        if verdict == "broken":
            raise RuntimeError(f"The valid file itself was not read:\n{text}")
        if verdict == "end":
            return
        seed = todo.pop(0)
        outcome.inputs += 1
        if verdict == "finding":
            outcome.findings.append((seed, text))
            if len(outcome.findings) >= limit:
                return
        else:
            setattr(outcome, verdict, getattr(outcome, verdict) + 1)


def _child(reader: Reader, seeds: list[int], pipe: Connection) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    warnings.simplefilter("ignore")
    sys.stderr = sys.stdout = open("/dev/null", "w")  # noqa: SIM115 - libraries complain about what they are fed
    with tempfile.TemporaryDirectory() as scratch:
        try:
            path = reader.write(Path(scratch))
            valid = path.read_bytes()
            expected = reader.read(path)
            reader.check(expected, expected)
        except BaseException:
            pipe.send(("broken", traceback.format_exc()))
            return
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
        for seed in seeds:
            rng = random.Random(f"{reader.name} {seed}")
            replaced = path.with_name(f"{path.name}.damaged")
            replaced.write_bytes(rng.choice(DAMAGE[reader.form])(valid, rng))
            replaced.replace(path)  # a new file each time: the old one may be mapped
            pipe.send(_try(reader, path, expected))
        pipe.send(("end", ""))


def _try(reader: Reader, path: Path, expected: Any) -> tuple[str, str]:
    try:
        reader.check(reader.read(path), expected)
        return "accepted", ""
    except ValueError as error:
        if type(error) is ValueError or type(error).__module__.startswith("frozenllm."):
            lines = str(error).strip().splitlines()
            return ("refused", "") if len(lines) == 1 else ("finding", f"a message of {len(lines)} lines: {error}")
        return "finding", _last_lines(error)
    except BaseException as error:
        return "finding", _last_lines(error)
    finally:
        gc.collect(0)


def _last_lines(error: BaseException) -> str:
    return "".join(traceback.format_exception(error)[-4:]).strip()


def digest(value: Any) -> str:
    """A hash of a nested value with tensors and arrays, to compare what two reads gave."""
    import numpy as np

    def plain(item: Any) -> Any:
        if hasattr(item, "numpy"):
            item = item.detach().float().numpy()
        if isinstance(item, np.ndarray):
            return (item.shape, hashlib.sha256(np.ascontiguousarray(item).tobytes()).hexdigest())
        if isinstance(item, dict):
            return {key: plain(entry) for key, entry in item.items()}
        return [plain(entry) for entry in item] if isinstance(item, list | tuple) else item

    return hashlib.sha256(repr(plain(value)).encode()).hexdigest()


def summary(findings: list[tuple[int, str]]) -> Counter[str]:
    """Findings by their last line."""
    return Counter(text.splitlines()[-1][:160] for _, text in findings)
