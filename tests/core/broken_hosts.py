"""Hosts that are broken on purpose: the contract has to find them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
from torch import nn

from frozenllm.core.testing import Host


def broken(sound: Host, kind: type[nn.Module]) -> Host:
    """A host whose model is of another class."""

    def build() -> nn.Module:
        model = sound.build()
        model.__class__ = kind
        return model

    return replace(sound, build=build)


def assert_found(check: Callable[[Host], None], sound: Host, kind: type[nn.Module]) -> None:
    """The check passes the sound host, and not the one of the broken class."""
    check(sound)
    with pytest.raises(AssertionError):
        check(broken(sound, kind))
