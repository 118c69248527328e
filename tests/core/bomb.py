"""What must not go off when a file is read."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any


class Bomb:
    """Makes a folder when it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = str(target)

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (self.target,)
