"""What all motion data sets have in common."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

from frozenllm.core.training import TolerantDataset
from frozenllm.motion.data.centring import Window, centre, empty_sample
from frozenllm.motion.scene import Scene


class Scenes(TolerantDataset):
    """Scenes on disk, handed out as agent-centred samples. Subclasses give `scene`.

    Args:
        names: One per sample, in a fixed order.
        window: What a sample holds.
        train: See `frozenllm.core.training.TolerantDataset`.
        on_error: See there.
    """

    def __init__(self, names: Sequence[str], window: Window, *, train: bool = False, on_error: str = "raise") -> None:
        super().__init__(len(names), train=train, on_error=on_error)
        self.names = tuple(names)
        self.window = window

    @abstractmethod
    def scene(self, index: int) -> Scene:
        """The scene at an index, in the city frame.

        Raises:
            BrokenSample: It cannot be read.
        """

    def read(self, index: int) -> dict[str, Any]:
        """The sample at an index, see `frozenllm.motion.data.centre`.

        Raises:
            BrokenSample: It cannot be read.
        """
        return centre(self.scene(index), self.window)

    def describe(self, index: int) -> str:
        """The scene's name."""
        return self.names[index]

    def placeholder(self, index: int) -> dict[str, Any]:
        """A sample without a future, whose track is empty: the metrics leave it out and count it."""
        return empty_sample(self.window, self.names[index])
