"""Files that are whole whenever somebody reads them."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Gives a temporary name in the same folder and renames it on success: readers never see half a file."""
    draft = path.with_name(f".{path.stem}.partial{path.suffix}")
    yield draft
    os.replace(draft, path)
