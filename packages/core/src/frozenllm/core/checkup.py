"""Trying out what is installed: the checks behind ``frozenllm doctor``.

A package lists its checks in a module ``checks`` of its own (``CHECKS = (Check(...), ...)``); they are found by walking
the namespace. All of them run in another process, so that a library that crashes or hangs is a line of the report.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import json
import os
import pkgutil
import queue
import signal
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TextIO

WORKS, MISSING, BROKEN = "works", "missing", "broken"
TIME_LIMIT = 120.0
"""Seconds that one check may take."""


@dataclass(frozen=True)
class Check:
    """One part, and how to try it.

    Attributes:
        name: What is tried; an extra's name in brackets first, as in ``"[gguf] blocks from GGUF files"``.
        attempt: Uses the part, and says in some words what it found; raises where the part does not work.
        fix: What to do then, in one line.
        optional: The modules that an extra brings: without one of them the part is missing, which is no fault. Empty
            for what the package cannot do without.
    """

    name: str
    attempt: Callable[[], str]
    fix: str
    optional: tuple[str, ...] = ()


@dataclass(frozen=True)
class Outcome:
    """What became of a check.

    Attributes:
        package: The package it belongs to, such as ``"video"``.
        name: The check's name.
        status: `WORKS`, `MISSING` (an extra that is not installed) or `BROKEN`.
        detail: What was found, or what went wrong.
        fix: What to do; empty if it works.
    """

    package: str
    name: str
    status: str
    detail: str
    fix: str


def installed() -> list[str]:
    """Packages of this project that can be imported, core first."""
    import frozenllm

    names = sorted(info.name for info in pkgutil.iter_modules(frozenllm.__path__) if info.ispkg)
    return sorted(names, key=lambda name: name != "core")


def checks_of(package: str) -> list[Check]:
    """The checks of a package: its requirements, and those that it lists itself."""
    distribution, module = f"frozenllm-{package}", f"frozenllm.{package}.checks"
    again = f"pip install --upgrade {distribution}"
    found = [Check("its requirements", lambda: _requirements(distribution), again)]
    try:
        return [*found, *importlib.import_module(module).CHECKS]
    except Exception as error:
        if isinstance(error, ModuleNotFoundError) and error.name == module:
            return found
        problem = error
    return [*found, Check(f"import frozenllm.{package}", lambda: _fail(problem), again)]


def run(check: Check, package: str) -> Outcome:
    """Try one part, in this process."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return Outcome(package, check.name, WORKS, check.attempt(), "")
    except Exception as error:  # whatever a library raises is what the user wants to see
        missing = isinstance(error, ModuleNotFoundError) and error.name in check.optional
        detail = f"{error.name} is not installed" if missing else _sentence(error)  # type: ignore[attr-defined]
        return Outcome(package, check.name, MISSING if missing else BROKEN, detail, check.fix)


def examine(command: Sequence[str] | None = None, limit: float = TIME_LIMIT) -> Iterator[Outcome]:
    """Try everything that is installed, in processes of their own; outcomes come as they are known.

    Args:
        command: What runs the checks from a given number on, which is appended: this module by default.
        limit: Seconds that one check may take.
    """
    command = command or [sys.executable, "-m", "frozenllm.core.checkup"]
    start: int | None = 0
    while start is not None:
        start = yield from _one_process([*command, str(start)], limit)


def _one_process(command: Sequence[str], limit: float) -> Generator[Outcome, None, int | None]:
    """Outcomes of one process; returns the number of the check to go on from after a crash, None at the end."""
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    lines: queue.Queue[str | None] = queue.Queue()
    threading.Thread(target=_read, args=(process.stdout, lines), daemon=True).start()
    current: dict[str, Any] = {"number": 0, "package": "core", "name": "start of the checks", "fix": ""}
    try:
        while True:
            try:
                line = lines.get(timeout=limit if current["fix"] else TIME_LIMIT)  # the start takes as long as it takes
            except queue.Empty:
                process.kill()
                return (yield from _failed(current, f"no answer in time ({limit:.0f} seconds)"))
            if line is None:
                return (yield from _failed(current, f"the process {_end(process.wait())}"))
            message = json.loads(line)
            if message == "end":
                return None
            if "status" in message:
                yield Outcome(**message)
            else:
                current = message
    finally:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


def _failed(current: dict[str, Any], detail: str) -> Generator[Outcome, None, int | None]:
    yield Outcome(current["package"], current["name"], BROKEN, detail, current["fix"])
    return current["number"] + 1 if current["fix"] else None  # without a fix, no check had begun


def _end(status: int) -> str:
    if status >= 0:
        return f"ended with status {status}"
    return f"crashed ({signal.Signals(-status).name})"


def _read(stream: TextIO, lines: queue.Queue[str | None]) -> None:
    try:
        for line in stream:
            lines.put(line)
    except ValueError:  # closed
        pass
    lines.put(None)


def _fail(error: Exception) -> str:
    raise error


def _sentence(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0].strip()}" if lines else type(error).__name__


def _requirements(distribution: str) -> str:
    unmet, count = _unmet(distribution, "")
    if unmet:
        raise RuntimeError("; ".join(unmet))
    return f"{count} installed, in versions that {distribution} allows"


def _unmet(distribution: str, extra: str) -> tuple[list[str], int]:
    """What a distribution asks for and does not find, with what siblings' extras ask for; and how many it asks for."""
    from packaging.requirements import Requirement

    unmet, count = [], 0
    for requirement in map(Requirement, importlib.metadata.requires(distribution) or ()):
        if requirement.marker and not requirement.marker.evaluate({"extra": extra}):
            continue
        if extra and not (requirement.marker and "extra" in str(requirement.marker)):
            continue  # asked for without the extra already
        count += 1
        try:
            version = importlib.metadata.version(requirement.name)
        except importlib.metadata.PackageNotFoundError:
            unmet.append(f"{requirement.name} is not installed")
            continue
        if not requirement.specifier.contains(version, prereleases=True):
            unmet.append(f"{requirement.name}{requirement.specifier} is needed, {version} is installed")
        if requirement.name.startswith("frozenllm-"):
            for name in requirement.extras:
                more, number = _unmet(requirement.name, name)
                unmet, count = unmet + more, count + number
    return unmet, count


def main(argv: Sequence[str]) -> None:
    """Run all checks from a given number on, and print each as JSON: what begins, then how it ended."""
    start = int(argv[0])
    with os.fdopen(os.dup(1), "w") as out, open(os.devnull, "w") as nothing:
        os.dup2(nothing.fileno(), 1)  # whatever libraries print
        os.dup2(nothing.fileno(), 2)
        number = 0
        for package in installed():
            for check in checks_of(package):
                if number >= start:
                    begins = {"number": number, "package": package, "name": check.name, "fix": check.fix}
                    print(json.dumps(begins), file=out, flush=True)
                    print(json.dumps(run(check, package).__dict__), file=out, flush=True)
                number += 1
        print(json.dumps("end"), file=out, flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
