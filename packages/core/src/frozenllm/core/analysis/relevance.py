"""Measures of activation on the relevant tokens that need no threshold; one value a sample.

All take activations (B, N), ``relevant`` (B, N) bool and ``counted`` (B, N) bool (False = padding or ignored; None =
all count), and return (B,) float32, NaN for a sample in which the measure says nothing. What chance gives is
`relevant_share` for `share_inside` and `pointing`, and 0.5 for `auroc`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from frozenllm.core.analysis.thresholds import checked_relevance


def relevant_share(relevant: Tensor, counted: Tensor | None = None) -> Tensor:
    """Share of the counted tokens that are relevant; NaN where none counts."""
    relevant, counted = checked_relevance(relevant.float(), relevant, counted)
    return relevant.sum(dim=1) / counted.sum(dim=1)


def share_inside(activations: Tensor, relevant: Tensor, counted: Tensor | None = None) -> Tensor:
    """Share of the whole activation that lies on the relevant tokens.

    NaN where no token is relevant, or the activations (which must not be negative) are all zero.
    """
    relevant, counted = checked_relevance(activations, relevant, counted)
    inside, total = (activations.float().masked_fill(~where, 0.0).sum(dim=1) for where in (relevant, counted))
    return torch.where(relevant.any(dim=1) & (total > 0), inside / total, torch.nan)


def auroc(activations: Tensor, relevant: Tensor, counted: Tensor | None = None) -> Tensor:
    """Probability that a relevant token is more active than another one; equal activations count half.

    The area under the ROC curve, from ranks (Mann and Whitney). NaN where all counted tokens are relevant, or none.
    """
    relevant, counted = checked_relevance(activations, relevant, counted)
    values = activations.double().masked_fill(~counted, torch.inf)  # ranked above the rest, so that they move no rank
    ordered = values.sort(dim=1).values.contiguous()
    below = torch.searchsorted(ordered, values.contiguous())
    not_above = torch.searchsorted(ordered, values.contiguous(), right=True)
    ranks = (below + not_above + 1) / 2  # equal values share the mean of their ranks
    inside = relevant.sum(dim=1)
    outside = counted.sum(dim=1) - inside
    wins = ranks.masked_fill(~relevant, 0.0).sum(dim=1) - inside * (inside + 1) / 2
    return torch.where((inside > 0) & (outside > 0), wins / (inside * outside), torch.nan).float()


def pointing(activations: Tensor, relevant: Tensor, counted: Tensor | None = None) -> Tensor:
    """1 where the most active token is relevant (the "pointing game"), else 0; of equally active ones, their share.

    NaN where no token is relevant.
    """
    relevant, counted = checked_relevance(activations, relevant, counted)
    values = activations.float().masked_fill(~counted, -torch.inf)
    top = (values == values.amax(dim=1, keepdim=True)) & counted
    share = (top & relevant).sum(dim=1) / top.sum(dim=1).clamp_min(1)
    return torch.where(relevant.any(dim=1), share, torch.nan)
