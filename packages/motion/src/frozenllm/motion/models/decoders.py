"""From tokens to trajectories with confidences. Steps are predicted as displacements and summed up in float32."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

MIN_SCALE = 0.01
"""Smallest scale of a Laplace distribution in metres: where a future is exact to the centimetre, nothing is gained."""


class TokenDecoder(nn.Module):
    """All modes from one token: a hidden layer, then displacements and a score for each mode.

    Args:
        dim: Width of the token.
        hidden: Width of the hidden layer.
        modes: K.
        steps: Future steps.
        scales: Also predict the scale of a Laplace distribution for every coordinate.
    """

    def __init__(self, dim: int, hidden: int, modes: int, steps: int, scales: bool = False) -> None:
        super().__init__()
        self.shape = modes, steps, 4 if scales else 2
        self.trunk = nn.Sequential(nn.Linear(dim, hidden), nn.LayerNorm(hidden), nn.ReLU())
        self.regression = nn.Linear(hidden, modes * steps * self.shape[-1])
        self.classification = nn.Linear(hidden, modes)

    def forward(self, token: Tensor) -> dict[str, Tensor]:
        """Decode (B, dim); see `outputs` for what comes out."""
        hidden = self.trunk(token)
        return outputs(self.regression(hidden).unflatten(-1, self.shape), self.classification(hidden))


class ProposalDecoder(nn.Module):
    """One mode from each proposal: two hidden layers for the displacements, one for the score.

    Args:
        dim: Width of a proposal.
        hidden: Width of the hidden layers.
        steps: Future steps.
        scales: Also predict the scale of a Laplace distribution for every coordinate.
    """

    def __init__(self, dim: int, hidden: int, steps: int, scales: bool = False) -> None:
        super().__init__()
        self.shape = steps, 4 if scales else 2
        self.regression = nn.Sequential(
            nn.Linear(dim, 2 * hidden), nn.LayerNorm(2 * hidden), nn.ReLU(), nn.Linear(2 * hidden, hidden), nn.ReLU(),
            nn.Linear(hidden, steps * self.shape[-1]),
        )  # fmt: skip
        self.classification = nn.Sequential(nn.Linear(dim, hidden), nn.LayerNorm(hidden), nn.ReLU())
        self.classification.append(nn.Linear(hidden, 1))

    def forward(self, proposals: Tensor) -> dict[str, Tensor]:
        """Decode (B, K, dim); see `outputs` for what comes out."""
        steps = self.regression(proposals).unflatten(-1, self.shape)
        return outputs(steps, self.classification(proposals).squeeze(-1))


def outputs(steps: Tensor, logits: Tensor) -> dict[str, Tensor]:
    """What every motion model returns.

    Args:
        steps: (B, K, T, 2 or 4) displacements in metres, and raw scales where there are four.
        logits: (B, K).

    Returns:
        ``trajectories`` (B, K, T, 2) in metres in the agent's frame, ``logits`` (B, K), and ``scales`` (B, K, T, 2) in
        metres where there are any; all float32.
    """
    steps = steps.float()
    result = {"trajectories": steps[..., :2].cumsum(dim=-2), "logits": logits.float()}
    if steps.shape[-1] == 4:
        result["scales"] = F.softplus(steps[..., 2:]) + MIN_SCALE
    return result
