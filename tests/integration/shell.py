"""What a page's command would do, found out without doing it.

Arguments go through the command's own parser, overrides through Hydra; nothing is trained, installed or downloaded.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import importlib.util
import inspect
import re
import runpy
import sys
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any
from unittest import mock

from pages import ROOT, words

from frozenllm.core.commands import COMMANDS

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

PLAIN = ("cd", "export", "git", "mkdir", "module", "source", "apt", "apt-get", "set")
"""Commands of others, of which nothing is checked."""
LAUNCHERS = ("srun", "torchrun")


class WrongCommand(Exception):
    """A command of a page that would not do what the page says."""


class _Parsed(BaseException):
    """Thrown out of a program once it has read its arguments; no handler of errors may take it."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.arguments = arguments


def check(line: str, compose: Callable[[str, str, list[str]], Any]) -> None:
    """Raise `WrongCommand` where a command line cannot be right.

    Args:
        line: The command.
        compose: Called with the package of a Hydra config, its name and the overrides.
    """
    line = re.sub(r"\$\([^)]*\)", "found", line)  # what another command finds out
    for part in re.split(r"\s(?:&&|\|)\s", line):
        parts = words(part)
        while parts and re.fullmatch(r"[A-Z_]+=.*", parts[0]):
            parts.pop(0)
        if parts:
            _check_program(parts, compose)


def _check_program(parts: list[str], compose: Callable[[str, str, list[str]], Any]) -> None:
    program, arguments = parts[0].removeprefix(".venv/bin/"), parts[1:]
    if program in LAUNCHERS:
        start = next((i for i, word in enumerate(arguments) if word.endswith(".py") or word == "-m"), None)
        python = next((i for i, word in enumerate(arguments) if word in ("python", "torchrun")), None)
        if python is not None:
            return _check_program(arguments[python:], compose)
        if start is None:
            return  # how pages speak of a launcher
        program, arguments = "python", arguments[start:]
    if program == "python":
        _check_python(arguments, compose)
    elif program == "frozenllm":
        if len(arguments) != 1 or arguments[0] not in COMMANDS:  # a command's name alone is how pages speak of it
            _parse("frozenllm.core.cli", arguments)
    elif program == "make":
        targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
        if unknown := [word for word in arguments if "=" not in word and word not in targets]:
            raise WrongCommand(f"the Makefile has no target {unknown[0]}")
    elif program in ("pip", "uv"):
        _check_extras(arguments)
    elif program == "pytest":
        _check_tests(arguments)
    elif program not in PLAIN:
        raise WrongCommand(f"{program} is not known here")


def _check_python(arguments: list[str], compose: Callable[[str, str, list[str]], Any]) -> None:
    if arguments[0] == "-c":
        compile(arguments[1], "-c", "exec")
    elif arguments[0] == "-m" and arguments[1] == "pytest":
        _check_tests(arguments[2:])
    elif arguments[0] == "-m" and arguments[1].startswith("frozenllm"):
        _run(arguments[1], arguments[2:], compose)
    elif arguments[0].endswith(".py") and "/" in arguments[0]:  # others' scripts lie where the reader is
        if not (ROOT / arguments[0]).is_file():
            raise WrongCommand(f"there is no {arguments[0]}")
        _run(arguments[0], arguments[1:], compose)
    elif arguments[0] != "-m" and not arguments[0].endswith(".py"):
        raise WrongCommand(f"python {arguments[0]} is not known here")


def _run(program: str, arguments: list[str], compose: Callable[[str, str, list[str]], Any]) -> None:
    """Start a program in this process, with what it would do taken out."""

    def hydra_main(config_path: str, config_name: str, version_base: str) -> Callable[..., Any]:
        package = config_path.removeprefix("pkg://")
        return lambda job: lambda: compose(package, config_name, sys.argv[1:])

    module = _module(program)
    parsed = None
    with contextlib.ExitStack() as changed:
        changed.enter_context(mock.patch("frozenllm.core.training.cli.hydra.main", hydra_main))
        for name in ("parse_args", "parse_intermixed_args"):
            changed.enter_context(mock.patch.object(argparse.ArgumentParser, name, _parse_and_leave(name)))
        changed.enter_context(mock.patch.object(sys, "argv", [program, *arguments]))
        changed.enter_context(
            mock.patch.object(sys, "path", [*sys.path, str(ROOT / "tools"), str(ROOT / "benchmarks")])
        )
        if inspect.isfunction(getattr(module, "toy", None)):
            changed.enter_context(_doing_nothing(module.toy))
        try:
            if module is None:
                runpy.run_path(str(ROOT / program), run_name="__main__")
            elif any(p.default is p.empty for p in inspect.signature(module.main).parameters.values()):
                runpy.run_path(str(module.__file__), run_name="__main__")
            else:
                module.main()
        except _Parsed as done:
            parsed = done.arguments
        except SystemExit as error:
            if error.code not in (0, None):
                raise WrongCommand(f"it ends with {error.code}") from error
    overrides = getattr(parsed, "overrides", None) or []
    if module is not None and overrides and all("=" in word for word in overrides):
        compose(".".join(module.__name__.split(".")[:2]) + ".conf", "config", list(overrides))


@contextlib.contextmanager
def _doing_nothing(function: Any) -> Iterator[None]:
    """A function without what it does, wherever it is held."""
    code = function.__code__
    function.__code__ = (lambda *_: None).__code__
    try:
        yield
    finally:
        function.__code__ = code


def _module(program: str) -> ModuleType | None:
    """The module whose ``main`` a program calls; None for a script that is one by itself."""
    if program.endswith(".py"):
        found = re.search(r"^from (frozenllm[\w.]+) import main$", (ROOT / program).read_text(), re.MULTILINE)
        return importlib.import_module(found[1]) if found else None
    spec = importlib.util.find_spec(program)
    if spec is None:
        raise WrongCommand(f"there is no module {program}")
    module = importlib.import_module(f"{program}.__main__" if spec.submodule_search_locations else program)
    if not hasattr(module, "main"):
        raise WrongCommand(f"{program} cannot be run")
    return module


_REAL = {name: getattr(argparse.ArgumentParser, name) for name in ("parse_args", "parse_intermixed_args")}


def _parse_and_leave(name: str) -> Callable[..., Any]:
    def parse(self: argparse.ArgumentParser, *args: Any, **kwargs: Any) -> Any:
        raise _Parsed(_REAL[name](self, *args, **kwargs))

    return parse


def _parse(module: str, arguments: list[str]) -> argparse.Namespace:
    try:
        return importlib.import_module(module)._parser().parse_args(arguments)
    except SystemExit as error:
        if error.code not in (0, None):
            raise WrongCommand("its arguments are refused") from error
        return argparse.Namespace()


def _check_extras(arguments: list[str]) -> None:
    """What is installed of this project exists, extras included."""
    for name, extras in re.findall(r"\bfrozenllm-(\w+)(?:\[([\w,]+)\])?", " ".join(arguments)):
        path = ROOT / "packages" / name / "pyproject.toml"
        if not path.is_file():
            raise WrongCommand(f"there is no package frozenllm-{name}")
        known = tomllib.loads(path.read_text())["project"].get("optional-dependencies", {})
        if unknown := set(filter(None, extras.split(","))) - known.keys():
            raise WrongCommand(f"frozenllm-{name} has no extra {', '.join(unknown)}")


def _check_tests(arguments: list[str]) -> None:
    for word in arguments:
        if "/" in word and not (ROOT / word.partition("::")[0]).exists():
            raise WrongCommand(f"there is no {word}")
