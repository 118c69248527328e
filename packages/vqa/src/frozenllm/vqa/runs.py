"""Models of finished runs: from a checkpoint, without the data."""

from __future__ import annotations

import os

from omegaconf import DictConfig
from torch import nn

from frozenllm.core.training import read_run
from frozenllm.vqa.answers import answers_in


def load_run(checkpoint: str | os.PathLike[str]) -> tuple[nn.Module, DictConfig]:
    """The model of a run in eval mode, on the CPU, and the run's config.

    The answer vocabulary comes from the checkpoint; encoders' sources are read for their configuration alone, and the
    frozen block from where it was taken.

    Args:
        checkpoint: ``<run folder>/checkpoints/<name>.pt``, or the run folder.

    Raises:
        ValueError: The checkpoint cannot be read, or is not of this package.
    """
    saved = read_run(checkpoint)
    cfg = saved.cfg
    names = next((tensor for name, tensor in saved.state.items() if name.endswith("answers._extra_state")), None)
    if "meter_" not in cfg.model.type or (cfg.model.type == "meter_vqa" and names is None):
        raise ValueError(f"{saved.path} is not a run of this package: its model is of type {cfg.model.type}.")
    if names is not None:
        cfg.model.answers = list(answers_in(names))
    cfg.model.pretrained = False
    cfg.model.released = None
    return saved.build(), cfg
