"""Pretrained hosts: ``host`` and ``host_head`` of the config group model."""

from __future__ import annotations

import logging
from pathlib import Path

import timm
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from frozenllm.core.training.hosts import RUN_SUFFIX, host_of_run
from frozenllm.core.weights.hub import check_hub
from frozenllm.vision2d.model import FrozenLLMViT
from frozenllm.vision2d.official import load_host_checkpoint

_TIMM = "timm:"
_logger = logging.getLogger(__name__)


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
        known = timm.models.get_pretrained_cfg(name) if timm.is_model(name) else None
        if known is not None and known.hf_hub_id:
            check_hub(known.hf_hub_id)
        try:
            source = timm.create_model(name, pretrained=True)
        except (RuntimeError, OSError) as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise ValueError(f"model.host={host}: timm cannot give these weights ({reason}).") from error
        kept = load_host_checkpoint(model, source, head=head)
        mean, std = (source.pretrained_cfg.get(key) for key in ("mean", "std"))
        if (mean, std) != (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD):
            _logger.warning(
                "%s was trained on images of mean %s and std %s: give these to data.train.transform and "
                "data.val.transform (+data.val.transform.mean=[...]), whose defaults are others.",
                host,
                mean,
                std,
            )
        return kept
    path = Path(host).expanduser()
    if not path.is_file():
        raise ValueError(f"model.host: there is no file {path}; for a model of timm's write {_TIMM}<name>.")
    return load_host_checkpoint(model, host_of_run(path) if path.suffix == RUN_SUFFIX else path, head=head)
