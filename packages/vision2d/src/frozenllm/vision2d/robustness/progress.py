"""Lines on the console and in the log: what is done, and the time left."""

from __future__ import annotations

import datetime
import logging
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from frozenllm.vision2d.robustness.scores import Counts
from frozenllm.vision2d.robustness.sets import PUBLISHED_SIZES, EvalSet

logger = logging.getLogger(__name__)
LOGGER = logging.getLogger("frozenllm")  # core's data sets log what they skip


class Progress:
    """Lines with the time left: one per finished set, and in between at most one in so many seconds.

    Args:
        parts: The sets still to evaluate.
        total: Number of all sets, with the remembered ones.
        every_seconds: Least time between lines within a set.
    """

    def __init__(self, parts: Sequence[EvalSet], total: int, every_seconds: float = 10.0) -> None:
        self.sizes = {part.name: PUBLISHED_SIZES[part.family] for part in parts}
        self.total = total
        self.every_seconds = every_seconds
        self.done = 0
        self.finished = total - len(parts)
        self._start = self._said = time.perf_counter()
        self._part: EvalSet | None = None

    def open(self, part: EvalSet, size: int) -> None:
        """A set begins; parts of ImageNet-C that are not opened yet are taken to be as large as this one."""
        self._part = part
        self._set_start = time.perf_counter()
        for name in self.sizes:
            if name == part.name or (part.corrupted and name.startswith("imagenet_c/")):
                self.sizes[name] = size

    def step(self, images: int) -> None:
        """So many images of the set are done."""
        assert self._part is not None
        now = time.perf_counter()
        if now - self._said >= self.every_seconds:
            self._said = now
            size = self.sizes[self._part.name]
            rate = images / (now - self._set_start)
            left = self.left(images)
            logger.info(f"{self._where()}  {images:,}/{size:,} images  {rate:,.0f} images/s  left {left}")

    def close(self, counts: Counts) -> None:
        """The set is done."""
        assert self._part is not None
        self.finished += 1
        self.done += self.sizes.pop(self._part.name)
        seconds = time.perf_counter() - self._set_start
        unread = f"  unreadable {counts.unreadable}" if counts.unreadable else ""
        figures = f"top-1 {counts.accuracy(1):.2f}  top-5 {counts.accuracy(5):.2f}{unread}"
        logger.info(f"{self._where()}  {figures}  ({seconds:.1f} s)  left {self.left()}")

    def left(self, images: int = 0) -> datetime.timedelta:
        """Estimated time left, with so many images of the open set done."""
        rate = (self.done + images) / max(time.perf_counter() - self._start, 1e-9)
        remaining = sum(self.sizes.values()) - images
        return datetime.timedelta(seconds=round(remaining / rate)) if rate else datetime.timedelta()

    def _where(self) -> str:
        assert self._part is not None
        number = self.finished + (self._part.name in self.sizes)
        return f"[{number}/{self.total}] {self._part.name}"


def log_to(folder: Path, console: bool, level: int = logging.INFO) -> list[logging.Handler]:
    """Send this project's lines to ``robustness.log`` and to the console.

    Args:
        folder: Where the log is.
        console: Whether less than warnings goes to the console, too.
        level: The least level of all: of several processes one speaks, and the others only warn.

    Returns:
        The handlers, to be removed again.
    """
    handlers: list[logging.Handler] = [logging.FileHandler(folder / "robustness.log")]
    handlers[0].setLevel(level)
    stream = logging.StreamHandler(sys.stdout)
    stream.setLevel(level if console else logging.WARNING)
    handlers.append(stream)
    LOGGER.setLevel(logging.INFO)
    for handler in handlers:
        handler.setFormatter(logging.Formatter("%(asctime)s  %(message)s", "%m-%d %H:%M:%S"))
        LOGGER.addHandler(handler)
    return handlers
