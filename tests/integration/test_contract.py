"""The contract of hosts with a frozen layer, on the hosts that every installed package registers."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from importlib import import_module
from typing import Any

import pytest
from mmengine import registry
from processes import fork_server

from frozenllm.core.testing import (
    Host,
    Recipe,
    contract,
    domains,
    failures_in_two_processes,
    registered_hosts,
    two_processes_equal_one,
)

HOSTS = registered_hosts()


@contract(HOSTS, without=(two_processes_equal_one,))
def test_contract(check: Callable[[Host], None], host: Host) -> None:
    check(host)


@pytest.fixture(scope="module")
def failures() -> dict[str, str]:
    """What goes wrong under DDP, host by host, in one pair of processes for all of them."""
    fork_server()
    return failures_in_two_processes(HOSTS)


@pytest.mark.parametrize("name", HOSTS)
def test_two_processes_equal_one(name: str, failures: dict[str, str]) -> None:
    assert name not in failures, failures[name]


def _models(scope: registry.Registry) -> Iterator[tuple[str, Callable[..., Any]]]:
    for name, module in scope.module_dict.items():
        yield f"{scope.scope}.{name}", module
    for child in scope.children.values():
        yield from _models(child)


@pytest.mark.parametrize("domain", domains())
def test_every_model_that_takes_a_frozen_layer_is_registered(domain: str) -> None:
    import_module(f"frozenllm.{domain}.train")
    models = {
        name: model
        for name, model in _models(registry.MODELS)
        if model.__module__.startswith(f"frozenllm.{domain}.") and "llm" in inspect.signature(model).parameters
    }
    assert models, "found no model of this package"
    builders = [host.build.builder for host in HOSTS.values() if isinstance(host.build, Recipe)]
    forgotten = sorted(name for name, model in models.items() if model not in builders)
    assert not forgotten, f"frozenllm.{domain}.testing.HOSTS has no host made by {forgotten}"
