"""State dicts that fit a model exactly, or not at all."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

_logger = logging.getLogger(__name__)


def load_exactly(
    model: nn.Module, state: Mapping[str, Tensor], where: object, left_out: Iterable[str] = (), hint: str = ""
) -> None:
    """Copy a state dict in if it has exactly the model's tensors, ``left_out`` aside; else change nothing.

    Args:
        model: Any module.
        state: Names and tensors.
        where: What the error names.
        left_out: Names that the state dict need not have.
        hint: Added to the error.

    Raises:
        ValueError: The state dict does not fit.
    """
    aside = set(left_out)
    wanted = {name: t for name, t in model.state_dict().items() if name not in aside}
    missing, extra = sorted(wanted.keys() - state.keys()), sorted(state.keys() - wanted.keys())
    wrong = [
        f"{name} {tuple(state[name].shape)} instead of {tuple(t.shape)}"
        for name, t in wanted.items()
        if name in state and state[name].shape != t.shape
    ]
    faults = [
        f"{what} {', '.join(names[:3])}{f' and {len(names) - 3} more' if len(names) > 3 else ''}"
        for what, names in (("missing", missing), ("unexpected", extra), ("of another shape", wrong))
        if names
    ]
    if faults:
        raise ValueError(f"{where}: does not fit the model: {'; '.join(faults)}{hint}.")
    with torch.no_grad():
        model.load_state_dict(dict(state), strict=False)


def kept_weights(model: nn.Module, left_out: Iterable[str], where: object) -> list[str]:
    """Names of the weights that keep their values where `load_exactly` left something out, sorted; they are logged.

    Args:
        model: Any module.
        left_out: See `load_exactly`; names of what is no parameter do not count.
        where: What the log names.
    """
    aside = set(left_out)
    names = sorted(name for name, _ in model.named_parameters() if name in aside)
    _logger.info("%s: read; not in it, so kept as they are: %s.", where, ", ".join(names) or "none")
    return names
