"""The contract's check with two processes."""

from __future__ import annotations

import json
import multiprocessing
import os
import pickle
import tempfile
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

from frozenllm.core.block import ignore_blocks_in_ddp, llm_blocks
from frozenllm.core.testing.host import Host

_STEPS = 2  # DDP complains about parameters without a gradient at the second one
_TIMEOUT = 300  # seconds


def two_processes_equal_one(host: Host) -> None:
    """Under DistributedDataParallel, two processes whose losses differ train what one does with their mean.

    They start from different weights, of which the first process's count, and send no block to each other.
    """
    failure = failures_in_two_processes({"the host": host}).get("the host")
    assert failure is None, failure


def failures_in_two_processes(hosts: Mapping[str, Host]) -> dict[str, str]:
    """`two_processes_equal_one` for several hosts in one pair of processes, which import their libraries once.

    Args:
        hosts: Name -> host.

    Returns:
        Name -> what went wrong, for those that failed.

    Raises:
        ValueError: A host cannot be sent to a process.
    """
    try:
        pickled = pickle.dumps(dict(hosts))
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise ValueError(
            f"A host for two processes is made of functions and classes that can be imported, no lambdas: {error}."
        ) from error
    context: Any = multiprocessing.get_context("forkserver" if os.name == "posix" else "spawn")
    with tempfile.TemporaryDirectory() as folder:
        processes = [context.Process(target=_work, args=(rank, folder, pickled)) for rank in range(2)]
        for process in processes:
            process.start()
        for process in processes:
            process.join(_TIMEOUT)
        alive = [process for process in processes if process.is_alive()]
        for process in alive:
            process.kill()
        failures: dict[str, str] = {}
        for rank in range(2):
            path = Path(folder, f"{rank}.json")
            found = json.loads(path.read_text()) if path.exists() else dict.fromkeys(hosts, f"Process {rank} died.")
            failures |= {name: text for name, text in found.items() if name not in failures}
    return failures


def _work(rank: int, folder: str, pickled: bytes) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    failures = {}
    for name, host in pickle.loads(pickled).items():
        failure = None
        try:
            _compare(host, rank)
        except Exception:
            failure = traceback.format_exc()
        both: list[str | None] = [None, None]
        distributed.all_gather_object(both, failure)  # also keeps the processes together where only one fails
        if any(both):
            failures[name] = "\n".join(text for text in both if text)
    Path(folder, f"{rank}.part").write_text(json.dumps(failures))
    Path(folder, f"{rank}.part").rename(Path(folder, f"{rank}.json"))
    distributed.destroy_process_group()


def _compare(host: Host, rank: int) -> None:
    alone, together = host.build().train(), host.build().train()
    before = [b.clone() for _, block in llm_blocks(together) for b in block.buffers()]
    if rank == 1:
        with torch.no_grad():
            for parameter in together.parameters():
                parameter.add_(1.0)
            for _, block in llm_blocks(together):
                for buffer in block.buffers():
                    buffer.zero_()  # would be mended if it were sent
    ignore_blocks_in_ddp(together)
    wrapped = DistributedDataParallel(together)
    if rank == 1:
        after = [b for _, block in llm_blocks(together) for b in block.buffers()]
        assert not any(b.any() for b in after), "DDP sends the block to the other process."
        with torch.no_grad():
            for a, b in zip(after, before, strict=True):
                a.copy_(b)
    _train(alone, host, 1.0)
    _train(wrapped, host, (0.5, 1.5)[rank])
    others = dict(together.named_parameters())
    for name, parameter in alone.named_parameters():
        difference = (parameter - others[name]).abs().max()
        assert difference <= 1e-5 * max(1.0, float(parameter.detach().abs().max())), f"{name} differs by {difference}."


def _train(model: nn.Module, host: Host, weight: float) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    for _ in range(_STEPS):
        optimizer.zero_grad()
        (weight * host.loss(model(*host.inputs))).backward()
        optimizer.step()
