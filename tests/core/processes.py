"""Commands in processes of their own, without the seconds that importing torch and its company takes.

This module imports none of them itself: what it imports, the commands would find imported.
"""

from __future__ import annotations

import importlib
import multiprocessing
import os
import runpy
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

PRELOADED = [
    "frozenllm.core.training.run",
    "timm",
    "transformers.models.clip.modeling_clip",
    "transformers.models.roberta.modeling_roberta",
    "transformers.models.videomae.modeling_videomae",
]


def call(argv: list[str], cwd: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run ``python -m module ...`` or ``python script ...`` with one thread, in a working directory that knows nothing.

    The process is forked from a server that has imported the heavy libraries and done nothing else, so it is as clean
    as one of its own. See `torchrun` for several processes.
    """
    assert argv[0] == sys.executable
    context = fork_server()
    with tempfile.TemporaryDirectory() as folder:
        printed = [Path(folder, name) for name in ("out", "err")]
        process = context.Process(target=_child, args=(argv[1:], cwd, {**os.environ, **variables}, *printed))
        process.start()
        process.join(300)
        if process.is_alive():
            process.kill()
            raise TimeoutError(f"{argv} takes longer than 300 s.")
        texts = [path.read_text() if path.exists() else "" for path in printed]
    return subprocess.CompletedProcess(argv, process.exitcode, *texts)


def fork_server() -> Any:
    """The context of processes that are forked from the server; also for what starts its own (`core.testing`)."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)  # counts until the server starts
    return context


def torchrun(processes: int, module: str, *arguments: str) -> list[str]:
    """For `call`: ``torchrun --standalone --nproc-per-node=... -m module ...``, by torchrun's own launcher."""
    return [sys.executable, __file__, str(processes), module, *arguments]


def _child(arguments: list[str], cwd: Path, environment: dict[str, str], out: Path, err: Path) -> None:
    for path, stream in ((out, 1), (err, 2)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND), stream)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment)
    multiprocessing.set_start_method(None, force=True)  # as in a process that was not forked
    importlib.import_module("torch").set_num_threads(1)
    if arguments[0] == __file__:
        _launch(int(arguments[1]), arguments[2:])
    elif arguments[0] == "-m":
        _run_module(arguments[1:])
    else:
        sys.argv = list(arguments)
        runpy.run_path(arguments[0], run_name="__main__")


def _run_module(arguments: list[str]) -> None:
    sys.argv = list(arguments)
    runpy.run_module(arguments[0], run_name="__main__", alter_sys=True)


def _launch(processes: int, arguments: list[str]) -> None:
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    meeting = {"rdzv_backend": "c10d", "rdzv_endpoint": "localhost:0"}
    launch = LaunchConfig(1, 1, processes, **meeting, max_restarts=0, monitor_interval=0.05, start_method="fork")
    elastic_launch(launch, _run_module)(arguments)
