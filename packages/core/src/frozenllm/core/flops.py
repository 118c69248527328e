"""Floating point operations, counted while a computation runs: on any device, also on meta."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count


def count_flops(function: Callable[[], Any]) -> int:
    """Floating point operations of a call: two for a multiplication and addition; matrix products and convolutions.

    Args:
        function: Runs the computation, on any device; what is compiled is not seen.
    """
    counter = FlopCounterMode(display=False, custom_mapping=_MORE)
    # Only the total counts. The tracker's hooks refuse inputs that are views of parameters made under no_grad.
    counter.mod_tracker = _NoModules()  # type: ignore[assignment]
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # torch's own layers in one operation, which hides their products
    try:
        with counter:
            function()
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
    return counter.get_total_flops()


class _NoModules:
    """In the place of torch's tracker of modules: everything belongs to the whole."""

    parents = frozenset({"Global"})

    def __enter__(self) -> _NoModules:
        return self

    def __exit__(self, *args: Any) -> None:
        return None


def _attention_on_cpu(query: Sequence[int], key: Sequence[int], value: Sequence[int], *args: Any, **kwargs: Any) -> int:
    return sdpa_flop_count(query, key, value)


def _attention_on_cpu_backward(
    grad: Sequence[int], query: Sequence[int], key: Sequence[int], value: Sequence[int], *args: Any, **kwargs: Any
) -> int:
    return sdpa_backward_flop_count(grad, query, key, value)


# torch's table has no formulas for the CPU's fused attention.
_MORE = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention_on_cpu,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_on_cpu_backward,
}
