"""Pretrained hosts: ``host`` and ``host_head`` of the config group model."""

from __future__ import annotations

from pathlib import Path

import timm

from frozenllm.core.training.hosts import RUN_SUFFIX, host_of_run
from frozenllm.vision2d.model import FrozenLLMViT
from frozenllm.vision2d.official import load_host_checkpoint

_TIMM = "timm:"


def load_host(model: FrozenLLMViT, host: str, *, head: bool = True) -> list[str]:
    """Start a host from pretrained weights.

    Args:
        model: Its host is overwritten; a frozen layer in it stays.
        host: ``timm:<name>`` for a model of timm's with its pretrained weights, a checkpoint of a run of this project
            with ``llm=none`` (``.pt``), or a file of a plain vision transformer (timm's, DeiT's).
        head: Whether to take the classification head too.

    Returns:
        Names of the weights that keep their values.

    Raises:
        ValueError: There is no such host, or it does not fit.
    """
    if host.startswith(_TIMM):
        name = host.removeprefix(_TIMM)
        try:
            return load_host_checkpoint(model, timm.create_model(name, pretrained=True), head=head)
        except (RuntimeError, OSError) as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise ValueError(f"model.host={host}: timm cannot give these weights ({reason}).") from error
    path = Path(host).expanduser()
    if not path.is_file():
        raise ValueError(f"model.host: there is no file {path}; for a model of timm's write {_TIMM}<name>.")
    return load_host_checkpoint(model, host_of_run(path) if path.suffix == RUN_SUFFIX else path, head=head)
