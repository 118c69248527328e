"""Rotary positions of the untouched language model; off by default (paper section 3 removes them)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from frozenllm.core.spec import BlockSpec


def rotary_tables(spec: BlockSpec, length: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Cosines and sines of the rotary angles at positions 0 to ``length - 1``.

    Args:
        spec: Gives base, rotated share of a head, and scaling.
        length: Number of tokens N.
        device: Where the tables are made.

    Returns:
        Two float32 tensors (N, rotated width), both halves alike, scaled by the scaling's attention factor.

    Raises:
        ValueError: The family has no rotary positions, or its scaling is not supported.
    """
    if spec.rotary_base is None:
        raise ValueError('positions="rotary" needs a model family with rotary positions; this one has none.')
    width = int(spec.head_dim * spec.rotary_fraction)
    exponents = torch.arange(0, width, 2, dtype=torch.float32, device=device) / width
    frequencies = spec.rotary_base**-exponents
    frequencies, factor = _scaled(frequencies, spec, length)
    angles = torch.outer(torch.arange(length, dtype=torch.float32, device=device), frequencies)
    angles = torch.cat((angles, angles), dim=-1)
    return angles.cos() * factor, angles.sin() * factor


def apply_rotary(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the front of every head; x is (B, heads, N, head_dim), tables are (N, rotated width)."""
    width = cos.shape[-1]
    rotated, rest = x[..., :width].float(), x[..., width:]
    first, second = rotated.chunk(2, dim=-1)
    turned = torch.cat((-second, first), dim=-1)
    rotated = (rotated * cos + turned * sin).to(x.dtype)
    return rotated if width == x.shape[-1] else torch.cat((rotated, rest), dim=-1)


def _scaled(frequencies: Tensor, spec: BlockSpec, length: int) -> tuple[Tensor, float]:
    """Apply the config's ``rope_scaling``; returns the frequencies and the factor on cosines and sines."""
    scaling = spec.rotary_scaling or {}
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    if kind == "default":
        return frequencies, 1.0
    if kind == "linear":
        return frequencies / scaling["factor"], 1.0
    if kind == "llama3":
        return _llama3(frequencies, scaling), 1.0
    if kind == "longrope":
        return _longrope(frequencies, scaling, spec, length)
    raise ValueError(f'Rotary scaling "{kind}" is not supported; use positions="none" (the default).')


def _llama3(frequencies: Tensor, scaling: dict) -> Tensor:
    """LLaMA 3.1: long wavelengths are stretched, short ones kept, those between interpolated."""
    factor, low, high = scaling["factor"], scaling["low_freq_factor"], scaling["high_freq_factor"]
    wavelengths = 2 * math.pi / frequencies
    turns = scaling["original_max_position_embeddings"] / wavelengths
    smooth = ((turns - low) / (high - low)).clamp(0, 1)
    return frequencies * (smooth + (1 - smooth) / factor)


def _longrope(frequencies: Tensor, scaling: dict, spec: BlockSpec, length: int) -> tuple[Tensor, float]:
    """Phi-3's long-context scaling: one divisor per frequency, chosen by the length."""
    original = scaling.get("original_max_position_embeddings") or spec.max_positions
    longest = spec.max_positions or original
    if original is None or longest is None:
        raise ValueError("longrope scaling needs original_max_position_embeddings in the model's config.")
    divisors = scaling["long_factor"] if length > original else scaling["short_factor"]
    stretch = scaling.get("factor") or longest / original
    attention = scaling.get("attention_factor")
    if attention is None:
        attention = 1.0 if stretch <= 1 else math.sqrt(1 + math.log(stretch) / math.log(original))
    return frequencies / torch.tensor(divisors, dtype=torch.float32, device=frequencies.device), attention
