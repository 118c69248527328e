"""Models of finished runs: from a checkpoint and the config beside it, without the data."""

from __future__ import annotations

import os
from pathlib import Path

from omegaconf import DictConfig, OmegaConf
from torch import nn

from frozenllm.core.training import build_model
from frozenllm.core.training.checkpoint import load_model_state, read_checkpoint
from frozenllm.vqa.answers import answers_in


def load_run(checkpoint: str | os.PathLike[str]) -> tuple[nn.Module, DictConfig]:
    """The model of a run in eval mode, on the CPU, and the run's config.

    The answer vocabulary comes from the checkpoint; encoders' sources are read for their configuration alone, and the
    frozen block from where it was taken.

    Args:
        checkpoint: ``<run folder>/checkpoints/<name>.pt``.

    Raises:
        ValueError: The checkpoint or the run's ``config.yaml`` cannot be read, or they do not fit.
    """
    path = Path(checkpoint).expanduser()
    if not path.is_file():
        raise ValueError(f"There is no checkpoint at {path}.")
    config = path.parent.parent / "config.yaml"
    if not config.is_file():
        raise ValueError(f"{path} is not in a run folder: there is no {config}, which says what the model is.")
    cfg = OmegaConf.load(config)
    assert isinstance(cfg, DictConfig)
    state = read_checkpoint(path)["state_dict"]
    names = next((tensor for name, tensor in state.items() if name.endswith("answers._extra_state")), None)
    if "meter_" not in cfg.model.type or (cfg.model.type == "meter_vqa" and names is None):
        raise ValueError(f"{path} is not a run of this package: its model is of type {cfg.model.type}.")
    if names is not None:
        cfg.model.answers = list(answers_in(names))
    cfg.model.pretrained = False
    cfg.model.released = None
    model = build_model(cfg)
    load_model_state(model, {name.removeprefix("model."): tensor for name, tensor in state.items()}, path)
    return model.eval(), cfg
