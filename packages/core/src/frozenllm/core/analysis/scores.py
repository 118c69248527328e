"""`Scores`: measures gathered sample by sample over batches, and the findings that they make."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field

import torch
from torch import Tensor

from frozenllm.core.analysis.bootstrap import paired_difference
from frozenllm.core.analysis.findings import interval_finding, mean_finding
from frozenllm.core.analysis.study import Finding


@dataclass
class _Gathered:
    unit: str
    values: list[Tensor] = field(default_factory=list)
    chance: list[Tensor] = field(default_factory=list)


class Scores:
    """Values of measures, one a sample, that become one `Finding` each: the mean with its bootstrap interval.

    Measures that are to be compared are added for the same samples in the same order; NaN stands for a sample in which
    a measure says nothing.
    """

    def __init__(self) -> None:
        self._gathered: dict[tuple[str, str | None, str | None], _Gathered] = {}

    def add(
        self,
        name: str,
        values: Tensor,
        tap: str | None = None,
        kind: str | None = None,
        *,
        chance: Tensor | float | None = None,
        unit: str = "",
    ) -> None:
        """Add a batch.

        Args:
            name: See `Finding`.
            values: (B,), NaN = none.
            tap: See `Finding`.
            kind: See `Finding`.
            chance: What activations that know nothing would give, per sample or for all.
            unit: See `frozenllm.core.analysis.findings.interval_finding`.
        """
        entry = self._gathered.setdefault((name, tap, kind), _Gathered(unit))
        values = values.detach().double().cpu()
        entry.values.append(values)
        if chance is not None:
            entry.chance.append(torch.as_tensor(chance, dtype=torch.float64).cpu().expand_as(values))

    def findings(self) -> list[Finding]:
        """One for each measure that has a value, in the order in which they were first added."""
        found = []
        for (name, tap, kind), entry in self._gathered.items():
            values = torch.cat(entry.values)
            known = ~values.isnan()
            chance = float(torch.cat(entry.chance)[known].mean()) if entry.chance and known.any() else None
            found.append(mean_finding(name, values, tap, kind, chance=chance, unit=entry.unit))
        return [finding for finding in found if finding is not None]

    def __len__(self) -> int:
        """Number of measures."""
        return len(self._gathered)

    def changes(self, before: str, after: str, names: Collection[str]) -> list[Finding]:
        """How much each measure grows from one tap to another on the same samples; chance is no change.

        Args:
            before: A tap.
            after: Another one; measures that lack either are left out.
            names: The measures.
        """
        found = []
        for (name, tap, kind), entry in self._gathered.items():
            other = self._gathered.get((name, before, kind))
            if tap != after or other is None or name not in names:
                continue
            first, second = torch.cat(entry.values), torch.cat(other.values)
            if not (first - second).isnan().all():
                gap = paired_difference(first, second)
                label = f"{name}: change from {before}"
                found.append(interval_finding(label, gap, after, kind, chance=0.0, unit=entry.unit))
        return found
