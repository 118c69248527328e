"""Pseudo-masks from activations, and how well they cover what matters (paper A.3: IoU on ImageNet-S).

A mask holds the tokens whose activation is above a threshold. Which threshold? The paper takes the best one of every
image, with the true mask in hand (`oracle`): an upper bound that nobody who lacks the mask can reach. `honest` takes
one threshold for all samples, chosen on one half of them and applied to the other, and the same with the halves swapped
(cross-fitting), so that every sample is scored by a threshold that never saw it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from frozenllm.core.analysis.minmax import check_mask

THRESHOLDS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
"""Those of the paper."""


def pseudo_masks(activations: Tensor, thresholds: Sequence[float] = THRESHOLDS) -> Tensor:
    """The tokens above each threshold.

    Args:
        activations: (B, N), from 0 to 1 (`min_max`).
        thresholds: T of them.

    Returns:
        (B, T, N) bool.
    """
    levels = torch.tensor(tuple(thresholds), dtype=torch.float32, device=activations.device)
    return activations.float()[:, None] > levels[:, None]


def iou_table(
    activations: Tensor,
    relevant: Tensor,
    counted: Tensor | None = None,
    thresholds: Sequence[float] = THRESHOLDS,
) -> Tensor:
    """TP / (TP + FP + FN) of every sample's pseudo-mask at every threshold.

    Args:
        activations: (B, N), from 0 to 1 (`min_max`).
        relevant: (B, N) bool, the true mask.
        counted: (B, N) bool, False = padding, or a token that the true mask says nothing of (its ignore label): neither
            a hit nor a miss. None counts all.
        thresholds: T of them.

    Returns:
        (B, T) float32. A sample without a counted relevant token has nothing to find: its row is NaN, and every summary
        here leaves it out.

    Raises:
        ValueError: A shape or dtype does not fit.
    """
    relevant, counted = checked_relevance(activations, relevant, counted)
    marked = pseudo_masks(activations, thresholds) & counted[:, None]
    relevant = relevant[:, None]
    hits = (marked & relevant).sum(dim=-1).float()
    union = (marked | relevant).sum(dim=-1)
    return torch.where(relevant.any(dim=-1), hits / union.clamp_min(1), torch.nan)


def oracle(table: Tensor) -> Tensor:
    """The IoU of every sample at its own best threshold, (B,): the paper's measure, and an upper bound.

    Args:
        table: (B, T) of `iou_table`.
    """
    return table.amax(dim=1)


def halves(ids: Sequence[str], seed: int = 0) -> Tensor:
    """Split samples in two halves by their names, in a way that does not depend on their order.

    Args:
        ids: A name for each sample, all different.
        seed: Another seed, another split.

    Returns:
        (B,) bool, True for the first half, which is the smaller one of an odd number.

    Raises:
        ValueError: Two samples have the same name.
    """
    if len(set(ids)) != len(ids):
        raise ValueError("Samples must have different names: two halves are to share none.")
    order = sorted(range(len(ids)), key=lambda i: hashlib.sha256(f"{seed}:{ids[i]}".encode()).digest())
    first = torch.zeros(len(ids), dtype=torch.bool)
    first[order[: len(ids) // 2]] = True
    return first


@dataclass(frozen=True)
class Honest:
    """IoU at thresholds that were chosen on other samples.

    Attributes:
        values: (B,) float32, NaN where the table has NaN.
        thresholds: The one chosen on the first half, by which the second was scored, and the other way round.
    """

    values: Tensor
    thresholds: tuple[float, float]


def best_threshold(table: Tensor) -> int:
    """Index of the threshold with the greatest mean IoU; of equal ones the lowest.

    Args:
        table: (B, T) of `iou_table`; rows of NaN are left out.

    Raises:
        ValueError: Every row is NaN.
    """
    means = table.double().nanmean(dim=0)
    if means.isnan().any():
        raise ValueError("A threshold cannot be chosen: no sample of this half has a relevant token.")
    return int(means.argmax())


def honest(table: Tensor, first: Tensor, thresholds: Sequence[float] = THRESHOLDS) -> Honest:
    """The IoU of every sample at the threshold that is best on average for the half it does not belong to.

    Args:
        table: (B, T) of `iou_table`.
        first: (B,) bool of `halves`.
        thresholds: Those of the table.

    Raises:
        ValueError: A half has no sample with a relevant token.
    """
    chosen_on_first, chosen_on_second = best_threshold(table[first]), best_threshold(table[~first])
    values = torch.where(first.to(table.device), table[:, chosen_on_second], table[:, chosen_on_first])
    return Honest(values, (float(thresholds[chosen_on_first]), float(thresholds[chosen_on_second])))


def permuted(
    activations: Tensor, counted: Tensor | None = None, *, repeats: int = 20, seed: int = 0
) -> Iterator[Tensor]:
    """The same activations on other tokens: each sample's counted values in random order, a number of times.

    What a measure gives for these is chance: as many tokens as active, and nothing known about where.

    Args:
        activations: (B, N).
        counted: (B, N) bool, False = stays where it is; None moves all.
        repeats: How many times.
        seed: Of the orders.

    Yields:
        (B, N).
    """
    generator = torch.Generator().manual_seed(seed)
    left_out = torch.zeros(activations.shape, dtype=torch.int8) if counted is None else (~counted).cpu().to(torch.int8)
    places = left_out.argsort(dim=1, stable=True)  # counted tokens first
    for _ in range(repeats):
        order = (torch.rand(activations.shape, generator=generator) + left_out).argsort(dim=1)
        # Tokens that do not count keep their places, so that they carry their own values.
        order = torch.where(left_out.gather(1, places).bool(), places, order)
        places_, order = places.to(activations.device), order.to(activations.device)
        yield torch.empty_like(activations).scatter_(1, places_, activations.gather(1, order))


@dataclass(frozen=True)
class Overlap:
    """How well pseudo-masks cover the relevant tokens, sample by sample.

    Attributes:
        oracle: (B,) IoU at each sample's own best threshold; NaN for samples without a relevant token.
        honest: (B,) IoU at the threshold chosen on the other half.
        thresholds: The two that were chosen.
        chance_oracle: Mean of ``oracle`` for the same activations on random tokens.
        chance_honest: The same of ``honest``.
    """

    oracle: Tensor
    honest: Tensor
    thresholds: tuple[float, float]
    chance_oracle: float
    chance_honest: float


def overlap(
    activations: Tensor,
    relevant: Tensor,
    ids: Sequence[str],
    counted: Tensor | None = None,
    *,
    thresholds: Sequence[float] = THRESHOLDS,
    seed: int = 0,
    repeats: int = 20,
) -> Overlap:
    """Everything above in one call.

    Args:
        activations: (B, N), from 0 to 1 (`min_max`).
        relevant: (B, N) bool.
        ids: A name for each sample, by which the halves are told apart: the same names give the same halves, for every
            activation and every run.
        counted: See `iou_table`.
        thresholds: See `iou_table`.
        seed: Of the halves and of chance.
        repeats: Of chance.

    Raises:
        ValueError: A shape does not fit, or fewer than two samples have a relevant token.
    """
    table = iou_table(activations, relevant, counted, thresholds)
    if len(ids) != len(table):
        raise ValueError(f"There are {len(ids)} names for {len(table)} samples.")
    known = (~table[:, 0].isnan()).nonzero().flatten().tolist()
    if len(known) < 2:
        raise ValueError(
            "An honest threshold needs two samples or more with relevant tokens, one to choose it on and one to score: "
            f"there {'is' if len(known) == 1 else 'are'} {len(known)} of {len(table)}."
        )
    first = torch.zeros(len(table), dtype=torch.bool)
    first[known] = halves([ids[i] for i in known], seed)  # halves of those that count
    fair = honest(table, first, thresholds)
    chances = [
        (oracle(of).nanmean().item(), honest(of, first, thresholds).values.nanmean().item())
        for of in (
            iou_table(moved, relevant, counted, thresholds)
            for moved in permuted(activations, counted, repeats=repeats, seed=seed)
        )
    ]
    best, other = (sum(values) / repeats for values in zip(*chances, strict=True))
    return Overlap(oracle(table), fair.values, fair.thresholds, best, other)


def checked_relevance(activations: Tensor, relevant: Tensor, counted: Tensor | None) -> tuple[Tensor, Tensor]:
    """The relevant tokens among the counted ones, and the counted ones, after a look at all shapes."""
    if activations.ndim != 2:
        raise ValueError(f"activations must have shape (batch, tokens), got {tuple(activations.shape)}.")
    for name, mask in (("relevant", relevant), ("counted", counted)):
        try:
            check_mask(mask, activations)
        except ValueError as error:
            raise ValueError(str(error).replace("mask", name, 1)) from None
    counted = torch.ones_like(relevant) if counted is None else counted
    return relevant & counted, counted
