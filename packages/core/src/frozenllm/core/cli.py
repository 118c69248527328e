"""The command line ``frozenllm``; its commands are in `frozenllm.core.commands`."""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Sequence
from importlib import import_module
from typing import Any

from frozenllm.core.commands import COMMANDS


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: Arguments without the program's name; those of the process by default.

    Returns:
        Exit code: 0, or 2 after an error, which is one line on stderr.
    """
    parser = _parser()
    args = parser.parse_args(argv)
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _show_warning
            return args.run(args)
    except (ValueError, OSError) as error:
        print(f"frozenllm: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("frozenllm: interrupted", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="frozenllm",
        description="Blocks of pretrained language models as frozen layers: get them, look at them, time them.",
    )
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for name in COMMANDS:
        import_module(f"frozenllm.core.commands.{name}").add(commands)
    return parser


def _show_warning(message: Warning | str, *_args: Any, **_kwargs: Any) -> None:
    print(f"frozenllm: warning: {message}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
