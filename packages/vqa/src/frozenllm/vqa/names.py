"""Lists of names that a model needs to be understood, and that its checkpoints therefore carry."""

from __future__ import annotations

import json
from collections.abc import Sequence

import torch
from torch import Tensor, nn


class Names(nn.Module):
    """Names in the order of their numbers; a state dict holds them, and only fits a model with the same ones.

    Args:
        names: The names.

    Attributes:
        what: What the list is called in messages.
        single: What one of the names is.
        remedy: What a user may do about a checkpoint with other names.

    Raises:
        ValueError: There is none, or one stands twice.
    """

    what = "list of names"
    single = "name"
    remedy = "build the model with that run's names"

    def __init__(self, names: Sequence[str]) -> None:
        super().__init__()
        if not names or len(set(names)) != len(names):
            raise ValueError(f"An {self.what} holds at least one {self.single}, and none twice.")
        self.names = tuple(names)
        self.index = {name: place for place, name in enumerate(self.names)}

    def __len__(self) -> int:
        return len(self.names)

    def get_extra_state(self) -> Tensor:
        """The names as JSON in a ``uint8`` tensor, which every file format can hold."""
        return torch.frombuffer(bytearray(json.dumps(self.names).encode()), dtype=torch.uint8)

    def set_extra_state(self, state: Tensor) -> None:
        """Compare with the names of a checkpoint.

        Raises:
            ValueError: They are others.
        """
        theirs = names_in(state)
        if theirs != self.names:
            only = [name for name in theirs if name not in self.index]
            example = f", such as {only[0]!r}" if only else " in another order"
            raise ValueError(
                f"it was trained with another {self.what} ({len(theirs)} {self.single}s{example}; here {len(self)}): "
                f"{self.remedy}"
            )


def names_in(state: Tensor) -> tuple[str, ...]:
    """The names in a state that `Names.get_extra_state` made."""
    return tuple(json.loads(bytes(state.cpu().numpy().tobytes()).decode()))
