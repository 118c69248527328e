"""How active each token is (paper A.3): by magnitude, by frequency, or by the attention that it is paid.

All are relative to the other tokens of the sample. Tokens that should not count, such as a class token, are sliced off
first: the paper takes the mean over the image's patches.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from frozenllm.core.analysis.minmax import check_mask, min_max


def magnitude(tokens: Tensor, mask: Tensor | None = None, *, normalize: bool = True) -> Tensor:
    """L2 norm of each token's difference from the mean token.

    Args:
        tokens: (B, N, D), any floating point dtype; computed in float32.
        mask: (B, N) bool, False = padding, which takes no part in mean and range and comes out as 0.
        normalize: Scale each sample to the range from 0 to 1 (`min_max`), as the paper does.

    Returns:
        (B, N), float32.

    Raises:
        ValueError: A shape or dtype does not fit.
    """
    return _distance_from_mean(_checked(tokens, mask).float(), mask, normalize)


def frequency(tokens: Tensor, mask: Tensor | None = None, *, normalize: bool = True) -> Tensor:
    """L2 norm of the difference of each token's phases from the mean ones: the angles of its FFT over the channels.

    Args:
        tokens: (B, N, D), any floating point dtype; computed in float32.
        mask: (B, N) bool, False = padding, which takes no part in mean and range and comes out as 0.
        normalize: Scale each sample to the range from 0 to 1 (`min_max`), as the paper does.

    Returns:
        (B, N), float32; without ``normalize`` at most ``2 pi sqrt(D)``.

    Raises:
        ValueError: A shape or dtype does not fit.
    """
    spectrum = torch.fft.fft(_checked(tokens, mask).float(), dim=-1)
    angles = (spectrum + 0.0).angle()  # negative zeros become zeros: the angle of -1 is pi, never -pi
    return _distance_from_mean(angles, mask, normalize)


def class_attention(weights: Tensor, mask: Tensor | None = None, *, query: int = 0, normalize: bool = True) -> Tensor:
    """Attention that one token pays to each of the others, summed over heads.

    Args:
        weights: (B, heads, R, N) attention probabilities; keys that should not count are sliced off (``[..., 1:]``).
        mask: (B, N) bool, False = padding.
        query: The row to read, that of the class token by default.
        normalize: Scale each sample to the range from 0 to 1 (`min_max`).

    Returns:
        (B, N), float32.

    Raises:
        ValueError: A shape or dtype does not fit, or there is no such row.
    """
    if weights.ndim != 4:
        raise ValueError(f"weights must have shape (batch, heads, queries, keys), got {tuple(weights.shape)}.")
    if not -weights.shape[2] <= query < weights.shape[2]:
        raise ValueError(f"query {query} is out of range for {weights.shape[2]} queries.")
    paid = weights[:, :, query].float().sum(dim=1)
    check_mask(mask, paid)
    if normalize:
        return min_max(paid, mask)
    return paid if mask is None else paid.masked_fill(~mask, 0.0)


ACTIVATIONS: dict[str, Callable[..., Tensor]] = {"magnitude": magnitude, "frequency": frequency}
"""Those that need no attention, by name: what ``--activation`` chooses from."""


def activation_named(name: str) -> Callable[..., Tensor]:
    """One of `ACTIVATIONS`.

    Raises:
        ValueError: There is no such activation.
    """
    if name not in ACTIVATIONS:
        raise ValueError(f"The activation must be one of {', '.join(ACTIVATIONS)}, not {name!r}.")
    return ACTIVATIONS[name]


def _checked(tokens: Tensor, mask: Tensor | None) -> Tensor:
    if tokens.ndim != 3:
        raise ValueError(f"tokens must have shape (batch, tokens, channels), got {tuple(tokens.shape)}.")
    check_mask(mask, tokens)
    return tokens


def _distance_from_mean(values: Tensor, mask: Tensor | None, normalize: bool) -> Tensor:
    if mask is None:
        mean = values.mean(dim=1, keepdim=True)
    else:
        count = mask.sum(dim=1).clamp_min(1)[:, None, None]
        mean = values.masked_fill(~mask[..., None], 0.0).sum(dim=1, keepdim=True) / count
    distance = (values - mean).norm(dim=-1)
    if normalize:
        return min_max(distance, mask)
    return distance if mask is None else distance.masked_fill(~mask, 0.0)
