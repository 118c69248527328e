"""The contract of every host with a frozen layer, as checks that any test suite can run on its own hosts.

Example (pytest; docs/add_a_host.md goes through it)::

    HOSTS = {"mine": Host(build=Recipe(MyHost, {"llm": TINY_LLM}), inputs=(torch.randn(2, 3, 32, 32),))}


    @contract(HOSTS)
    def test_contract(check, host):
        check(host)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from frozenllm.core.testing.checks import (
    block_is_unchanged_by_training,
    both_adapters_get_gradients,
    checkpoints_hold_no_block,
    compiles,
    copies_share_the_block,
    layers_compile_without_breaks,
    padding_does_not_leak,
    runs_in_bfloat16,
    shortcuts_equal_dense,
    tapping_changes_nothing,
    training_equals_evaluation,
)
from frozenllm.core.testing.host import TINY_LLM, TINY_SPEC, Host, Recipe, domains, registered_hosts, strengthen
from frozenllm.core.testing.processes import failures_in_two_processes, two_processes_equal_one

__all__ = [
    "CONTRACT",
    "TINY_LLM",
    "TINY_SPEC",
    "Host",
    "Recipe",
    "block_is_unchanged_by_training",
    "both_adapters_get_gradients",
    "checkpoints_hold_no_block",
    "checks_of",
    "compiles",
    "contract",
    "copies_share_the_block",
    "domains",
    "failures_in_two_processes",
    "layers_compile_without_breaks",
    "padding_does_not_leak",
    "registered_hosts",
    "runs_in_bfloat16",
    "shortcuts_equal_dense",
    "strengthen",
    "tapping_changes_nothing",
    "training_equals_evaluation",
    "two_processes_equal_one",
]

CONTRACT: tuple[Callable[[Host], None], ...] = (
    block_is_unchanged_by_training,
    both_adapters_get_gradients,
    training_equals_evaluation,
    checkpoints_hold_no_block,
    shortcuts_equal_dense,
    copies_share_the_block,
    tapping_changes_nothing,
    padding_does_not_leak,
    runs_in_bfloat16,
    layers_compile_without_breaks,
    compiles,
    two_processes_equal_one,
)
"""All checks; each takes a `Host` and raises AssertionError."""


def checks_of(host: Host) -> list[Callable[[Host], None]]:
    """The checks that apply to a host: all but those that it has no mask for or leaves to others of its kind."""
    left_out = set()
    if host.padded is None:
        left_out.add(padding_does_not_leak)
    if not host.compiled:
        left_out.add(compiles)
    return [check for check in CONTRACT if check not in left_out]


def contract(hosts: Mapping[str, Host], without: tuple[Callable[[Host], None], ...] = ()) -> Any:
    """A pytest mark that runs a test ``(check, host)`` with every check that applies to every host.

    Args:
        hosts: Name -> host.
        without: Checks to leave out.
    """
    import pytest

    cases = [
        pytest.param(check, host, id=f"{check.__name__}-{name}")
        for name, host in hosts.items()
        for check in checks_of(host)
        if check not in without
    ]
    return pytest.mark.parametrize(("check", "host"), cases)
