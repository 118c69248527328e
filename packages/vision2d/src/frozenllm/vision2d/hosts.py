"""Pretrained hosts, and hosts that stay frozen: ``host``, ``host_head``, ``freeze_host`` of the config group model."""

from __future__ import annotations

from pathlib import Path

import timm
from torch import nn

from frozenllm.core.training import read_run
from frozenllm.vision2d.model import FrozenLLMViT
from frozenllm.vision2d.official import load_host_checkpoint

_TIMM = "timm:"
_RUN = ".pt"  # what the training engine writes; timm, DeiT and the official release have .pth and .safetensors


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
    return load_host_checkpoint(model, _of_run(path) if path.suffix == _RUN else path, head=head)


def freeze_host(model: FrozenLLMViT, *, head: bool = True) -> None:
    """Leave nothing to train but what the layer in the model trains (its adapters), and the head unless ``head``.

    Args:
        model: With a layer.
        head: Whether the head is frozen too.

    Raises:
        ValueError: Nothing would be left to train.
    """
    if model.llm is None:
        raise ValueError("model.freeze_host=true leaves nothing to train in a host alone (llm=none).")
    left = {id(p) for part in (model.llm, *([] if head else [model.get_classifier()])) for p in part.parameters()}
    for parameter in model.parameters():
        parameter.requires_grad_(parameter.requires_grad and id(parameter) in left)


def _of_run(path: Path) -> nn.Module:
    run = read_run(path)
    if run.cfg.llm.kind != "none":
        raise ValueError(f"model.host: {path} has llm={run.cfg.llm.name}; a host comes from a run with llm=none.")
    return run.build()
