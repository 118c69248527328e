"""Models of finished runs: from a checkpoint, without the data."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from omegaconf import DictConfig
from torch import nn

from frozenllm.core.training import SavedRun, read_run
from frozenllm.vqa.names import names_in

KINDS = ("meter_vqa", "meter_retrieval", "sqa3d")
"""Models of this package, as the configs name them."""


def load_run(
    checkpoint: str | os.PathLike[str], what: str = "vision and language", *kinds: str
) -> tuple[nn.Module, DictConfig]:
    """The model of a run in eval mode, on the CPU, and the run's config.

    Vocabularies of answers and words come from the checkpoint; encoders' sources are read for their configuration
    alone, and the frozen block from where it was taken.

    Args:
        checkpoint: ``<run folder>/checkpoints/<name>.pt``, or the run folder.
        what: See `frozenllm.core.training.SavedRun.expect`.
        kinds: See there; none for all of this package.

    Raises:
        ValueError: The checkpoint cannot be read, or is of another kind of run.
    """
    saved = ready(read_run(checkpoint).expect(what, *(kinds or KINDS)))
    return saved.build(), saved.cfg


def ready(saved: SavedRun) -> SavedRun:
    """A run that `frozenllm.core.training.read_run` read, so that it can be built without its data.

    Raises:
        ValueError: It is not of this package, or its checkpoint lacks its vocabulary.
    """
    cfg = saved.expect("vision and language", *KINDS).cfg
    kind = str(cfg.model.type)
    known = {kept: names_in(state) for kept in ("answers", "words") if (state := _kept(saved.state, kept)) is not None}
    if "answers" not in known and kind != "meter_retrieval":
        raise ValueError(f"{saved.path} holds no answer vocabulary: it is damaged.")
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
