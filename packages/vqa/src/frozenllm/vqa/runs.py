"""Models of finished runs: from a checkpoint, without the data."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from omegaconf import DictConfig
from torch import nn

from frozenllm.core.training import SavedRun, read_run
from frozenllm.vqa.names import names_in


def load_run(checkpoint: str | os.PathLike[str]) -> tuple[nn.Module, DictConfig]:
    """The model of a run in eval mode, on the CPU, and the run's config.

    Vocabularies of answers and words come from the checkpoint; encoders' sources are read for their configuration alone, and the
    frozen block from where it was taken.

    Args:
        checkpoint: ``<run folder>/checkpoints/<name>.pt``, or the run folder.

    Raises:
        ValueError: The checkpoint cannot be read, or is not of this package.
    """
    saved = ready(read_run(checkpoint))
    return saved.build(), saved.cfg


def ready(saved: SavedRun) -> SavedRun:
    """A run that `frozenllm.core.training.read_run` read, so that it can be built without its data.

    Raises:
        ValueError: It is not of this package.
    """
    cfg = saved.cfg
    kind = str(cfg.model.type)
    known = {kept: names_in(state) for kept in ("answers", "words") if (state := _kept(saved.state, kept)) is not None}
    if not (kind.startswith("meter_") or kind == "sqa3d") or ("answers" not in known and kind != "meter_retrieval"):
        raise ValueError(f"{saved.path} is not a run of this package: its model is of type {kind}.")
    for name, names in known.items():
        cfg.model[name] = list(names)
    if kind == "sqa3d":
        own = {"pretrained": False} if cfg.model.text.kind == "transformer" else {"glove": None}
        cfg.model.text = {**cfg.model.text, **own}
    else:
        cfg.model.pretrained = False
        cfg.model.released = None
    return saved


def _kept(state: Mapping[str, Any], name: str) -> Any:
    """The list of names that a checkpoint carries, as it was saved; None where it has none."""
    return next((tensor for key, tensor in state.items() if key.endswith(f"{name}._extra_state")), None)
