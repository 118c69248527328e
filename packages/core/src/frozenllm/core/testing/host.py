"""`Host`: what is put through the contract, and the hosts that packages register."""

from __future__ import annotations

import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn

TINY_SPEC = {"hidden_size": 48, "num_heads": 4, "num_kv_heads": 2, "head_dim": 12, "intermediate_size": 96}
TINY_LLM: dict[str, Any] = {"kind": "random", "spec": TINY_SPEC, "seed": 3}
"""A block for hosts under test, as `frozenllm.core.build_llm_layer` takes it."""


def mean_of_squares(output: Any) -> Tensor:
    """A loss for any output: the mean of squares, summed over the entries of a mapping."""
    parts = output.values() if isinstance(output, Mapping) else [output]
    return torch.stack([part.float().square().mean() for part in parts]).sum()


def everything(output: Any) -> Any:
    """The output as it is."""
    return output


@dataclass(frozen=True)
class Recipe:
    """Makes a model anew, with the same weights every time.

    Attributes:
        builder: Class or function that returns the model.
        options: Its arguments.
        prepare: Changes the model or wraps it.
    """

    builder: Callable[..., nn.Module]
    options: Mapping[str, Any] = field(default_factory=dict)
    prepare: Callable[[nn.Module], nn.Module] | None = None

    def __call__(self) -> nn.Module:
        """The model."""
        torch.manual_seed(0)
        model = self.builder(**self.options)
        return self.prepare(model) if self.prepare else model


@dataclass(frozen=True, kw_only=True)
class Host:
    """A host under test, in float32 on the CPU, without dropout.

    Attributes:
        build: Makes the host anew, with the same weights every time: a `Recipe`, or a function of a module (no lambda
            and nothing local, since the check with two processes sends it to them).
        inputs: Arguments of its forward.
        loss: Scalar from its output.
        padded: The inputs with other values where the host's mask says padding; None for hosts without a mask, which
            `padding_does_not_leak` leaves out.
        masked_output: What of the output must not depend on padding; all of it by default.
        fullgraph: Whether `torch.compile` must find no graph break in the whole host. In its layers it never may.
        compiled: Whether the whole host is compiled; of several that compile alike, one is enough.
    """

    build: Callable[[], nn.Module]
    inputs: tuple[Any, ...]
    loss: Callable[[Any], Tensor] = mean_of_squares
    padded: tuple[Any, ...] | None = None
    masked_output: Callable[[Any], Any] = everything
    fullgraph: bool = True
    compiled: bool = True


def strengthen(model: nn.Module, skip: str, factor: float = 6.0) -> nn.Module:
    """Make a host's matrices larger, in place.

    From the std of 0.02 that large models start with, little of the input is left after a few narrow layers.

    Args:
        model: The host.
        skip: Parameters with this in their name stay as they are.
        factor: Of all others with two dimensions or more.

    Returns:
        The model.
    """
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1 and skip not in name:
                parameter.mul_(factor)
    return model


def domains() -> list[str]:
    """Names of the installed packages ``frozenllm.<name>`` beside core."""
    import frozenllm

    return sorted(m.name for m in pkgutil.iter_modules(frozenllm.__path__) if m.ispkg and m.name != "core")


def registered_hosts() -> dict[str, Host]:
    """The hosts of all installed packages: ``HOSTS`` of ``frozenllm.<domain>.testing``, as ``"<domain> <name>"``.

    Raises:
        AttributeError, ImportError: A package registers none.
    """
    return {
        f"{domain} {name}": host
        for domain in domains()
        for name, host in import_module(f"frozenllm.{domain}.testing").HOSTS.items()
    }
