"""What to say where a library of the extra ``[scenes]`` is missing."""

from __future__ import annotations

import importlib
from types import ModuleType


def require(module: str) -> ModuleType:
    """Import a module that the extra ``[scenes]`` brings.

    Raises:
        ImportError: It is missing; the sentence says how to install it.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(
            f"3D scenes cannot be used, because {module} is missing ({error}): pip install 'frozenllm-vqa[scenes]'."
        ) from error
