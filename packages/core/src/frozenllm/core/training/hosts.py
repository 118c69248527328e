"""Hosts that come from finished runs, and hosts that stay frozen: ``host`` and ``freeze_host`` of the group model."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from torch import nn

from frozenllm.core.training.saved import read_run

RUN_SUFFIX = ".pt"
"""Of what the engine writes; the files of other projects have others (``.pth``, ``.safetensors``, ``.bin``)."""


def host_of_run(path: str | Path) -> nn.Module:
    """The host that a run trained alone.

    Args:
        path: A checkpoint of a run with ``llm=none``.

    Raises:
        ValueError: It cannot be read, or it has a frozen layer.
    """
    run = read_run(path)
    if run.cfg.llm.kind != "none":
        raise ValueError(f"model.host: {path} has llm={run.cfg.llm.name}; a host comes from a run with llm=none.")
    return run.build()


def freeze_host(model: nn.Module, kept: Iterable[str]) -> None:
    """Leave nothing to train but what the layer in the model trains (its adapters), and what is new in the host.

    Args:
        model: With a layer as its attribute ``llm``.
        kept: Names of the weights that pretrained ones did not replace: a head is trained if it is among these.

    Raises:
        ValueError: Nothing would be left to train.
    """
    if model.llm is None:
        raise ValueError("model.freeze_host=true leaves nothing to train in a host alone (llm=none).")
    new = set(kept)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(parameter.requires_grad and (name in new or name.startswith("llm.")))
