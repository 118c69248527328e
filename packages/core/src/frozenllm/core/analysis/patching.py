"""Attributes of single modules, replaced for a while: how an analysis looks into a model without a change to it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch
from torch import nn

_ABSENT = object()


def replace(module: nn.Module, name: str, value: Any, stack: ExitStack) -> None:
    """Set an attribute of one module, until the stack is unwound."""
    before = vars(module).get(name, _ABSENT)
    vars(module)[name] = value
    stack.callback(_restore, module, name, before)


def watch(module: nn.Module, method: str, see: Callable[..., None], stack: ExitStack) -> None:
    """Hand the result and the positional arguments of every call of a method to ``see``."""
    plain = getattr(module, method)

    def watched(*args: Any) -> Any:
        output = plain(*args)
        see(output, *args)
        return output

    replace(module, method, watched, stack)


def run_eagerly(stack: ExitStack) -> None:
    """Run compiled modules as they were written, until the stack is unwound: compiled code knows nothing of patches."""
    if "torch._dynamo" in sys.modules:  # else nothing was compiled
        stack.enter_context(torch.compiler.set_stance("force_eager"))


def _restore(module: nn.Module, name: str, before: Any) -> None:
    if before is _ABSENT:
        vars(module).pop(name, None)
    else:
        vars(module)[name] = before
