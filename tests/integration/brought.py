"""What installing a distribution brings, by the metadata of what is installed here."""

from __future__ import annotations

import importlib.metadata
import sys
from collections.abc import Iterator, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from typing import Any

from packaging.requirements import Requirement


def closure(distribution: str, extras: frozenset[str] = frozenset()) -> set[str]:
    """Names of all distributions that installing one brings."""
    found: set[str] = set()
    seen: set[tuple[str, frozenset[str]]] = set()
    left = [(distribution, extras)]
    while left:
        name, wanted = left.pop()
        if (name, wanted) in seen:
            continue
        seen.add((name, wanted))
        try:
            requires = importlib.metadata.requires(name) or []
        except importlib.metadata.PackageNotFoundError:  # of another platform
            continue
        for requirement in map(Requirement, requires):
            if not requirement.marker or any(requirement.marker.evaluate({"extra": x}) for x in ("", *wanted)):
                needed = requirement.name.lower().replace("_", "-")
                found.add(needed)
                left.append((needed, frozenset(requirement.extras)))
    return found


class Alone(MetaPathFinder):
    """Hides every module that installing one distribution does not bring.

    Args:
        distribution: The distribution.
    """

    def __init__(self, distribution: str) -> None:
        allowed = closure(distribution) | {distribution}
        self.hidden = {
            module
            for module, owners in importlib.metadata.packages_distributions().items()
            if module != "frozenllm" and not {owner.lower().replace("_", "-") for owner in owners} & allowed
        }

    def find_spec(self, name: str, path: Sequence[str] | None, target: Any = None) -> ModuleSpec | None:
        """What the other finders find, but for what is hidden: who asks whether it is there gets a no."""
        if name in self.hidden:
            return None
        for finder in self.finders:
            spec = finder.find_spec(name, path, target)
            if spec is not None:
                return spec
        return None

    def find_distributions(self, context: Any) -> Iterator[importlib.metadata.Distribution]:
        """Metadata of what is installed, hidden or not."""
        for finder in self.finders:
            yield from getattr(finder, "find_distributions", lambda context: ())(context)

    def install(self) -> None:
        """Hide from now on."""
        self.finders = list(sys.meta_path)
        sys.meta_path[:] = [self]
