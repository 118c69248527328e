"""Gradient coherence: do different samples pull the host's weights in the same direction?

A follow-up of the paper (AAAI 2025) explains the effect of the frozen block by it. Here it is the mean cosine between
the gradients of pairs of samples (or batches), over the parameters that are named, at the weights as they are. To
compare a host with and without the block, name the parameters that both have: the host's own.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from frozenllm.core.analysis.bootstrap import Interval

_CHUNK = 256  # resamples at a time


@dataclass(frozen=True)
class GradientCoherence:
    """Gradients of G losses, pair by pair.

    Attributes:
        cosines: (G, G) float64, between each two; NaN for a gradient of zero, which has no direction.
        norms: (G,) float64.
    """

    cosines: Tensor
    norms: Tensor

    @property
    def value(self) -> float:
        """Mean cosine over pairs of different gradients: 1 = all the same, 0 = unrelated."""
        return float(_mean_of_pairs(self._known, torch.ones(1, len(self._known), dtype=torch.float64)))

    def interval(self, *, level: float = 0.95, resamples: int = 2000, seed: int = 0) -> Interval:
        """`value` with its percentile bootstrap interval: gradients are drawn anew, and none is paired with itself."""
        known = self._known
        count = len(known)
        generator = torch.Generator().manual_seed(seed)
        drawn = []
        for start in range(0, resamples, _CHUNK):
            picks = torch.randint(count, (min(_CHUNK, resamples - start), count), generator=generator)
            times = torch.zeros(len(picks), count, dtype=torch.float64)
            drawn.append(_mean_of_pairs(known, times.scatter_add_(1, picks, torch.ones_like(picks).double())))
        edges = torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=torch.float64)
        low, high = torch.cat(drawn).nanquantile(edges).tolist()
        return Interval(self.value, low, high, count)

    @property
    def _known(self) -> Tensor:
        known = self.norms > 0
        return self.cosines[known][:, known]


def gradient_coherence(losses: Iterable[Tensor], parameters: Iterable[nn.Parameter]) -> GradientCoherence:
    """Gradients of several losses, compared.

    Example::

        losses = (F.cross_entropy(model(x[None]), y[None]) for x, y in dataset)  # one at a time
        gradient_coherence(losses, host_parameters).value

    Args:
        losses: Scalars with a graph, made one after the other; the fewest samples each, the more they differ. All
            gradients are kept: four bytes a parameter each.
        parameters: By which to differentiate; those that a loss does not reach have gradient zero. Their ``.grad`` is
            left alone.

    Raises:
        ValueError: There are no parameters that can be trained, or fewer than two losses whose gradient is not zero.
    """
    chosen = [parameter for parameter in parameters if parameter.requires_grad]
    if not chosen:
        raise ValueError("Gradient coherence needs parameters that can be trained: there are none.")
    rows = []
    for loss in losses:
        gradients = torch.autograd.grad(loss, chosen, allow_unused=True)
        rows.append(
            torch.cat(
                [
                    (torch.zeros_like(p) if g is None else g).detach().float().flatten()
                    for p, g in zip(chosen, gradients, strict=True)
                ]
            )
        )
    norms = torch.tensor([float(row.double().norm()) for row in rows], dtype=torch.float64)
    if int((norms > 0).sum()) < 2:
        raise ValueError(f"Gradient coherence needs two gradients that are not zero: of {len(rows)} there are fewer.")
    stacked = torch.stack(rows)
    scaled = stacked / norms.to(stacked)[:, None]
    return GradientCoherence((scaled @ scaled.mT).double().cpu().clamp(-1, 1), norms)


def _mean_of_pairs(cosines: Tensor, times: Tensor) -> Tensor:
    """(R,): mean over pairs i != j, each gradient taken ``times`` (R, G) often."""
    others = cosines - torch.diag(cosines.diag())
    pairs = times.sum(dim=1) ** 2 - times.square().sum(dim=1)
    return torch.where(pairs > 0, torch.einsum("ri,ij,rj->r", times, others, times) / pairs, torch.nan)
