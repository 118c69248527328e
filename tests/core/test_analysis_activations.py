"""Activations of tokens against numpy, sample by sample."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from frozenllm.core.analysis import class_attention, frequency, magnitude, min_max


def magnitude_of_one(tokens: np.ndarray) -> np.ndarray:
    """Paper A.3 on the tokens (N, D) of one image."""
    return np.sqrt(((tokens - tokens.mean(0)) ** 2).sum(1))


def frequency_of_one(tokens: np.ndarray) -> np.ndarray:
    """Paper A.3 on the tokens (N, D) of one image; the transform written out."""
    channels = np.arange(tokens.shape[1])
    waves = np.exp(-2j * np.pi * np.outer(channels, channels) / len(channels))
    spectrum = tokens @ waves.T
    spectrum.imag[np.abs(spectrum.imag) < 1e-9] = 0.0  # the mean and the alternating sum are real
    angles = np.angle(spectrum)
    return np.sqrt(((angles - angles.mean(0)) ** 2).sum(1))


KINDS = [(magnitude, magnitude_of_one), (frequency, frequency_of_one)]


@settings(max_examples=40, deadline=None)
@given(
    kind=st.sampled_from(KINDS),
    batch=st.integers(1, 3),
    tokens=st.integers(1, 9),
    width=st.integers(1, 12),
    masked=st.booleans(),
    seed=st.integers(0, 999),
)
def test_activations_equal_the_definition(kind, batch, tokens, width, masked, seed):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(batch, tokens, width, generator=generator)
    mask = torch.rand(batch, tokens, generator=generator) > 0.4 if masked else None
    activation, of_one = kind
    result = activation(x, mask, normalize=False)
    assert torch.equal(activation(x, mask), min_max(result, mask))
    assert result.dtype == torch.float32
    for index in range(batch):
        valid = torch.ones(tokens, dtype=torch.bool) if mask is None else mask[index]
        assert (result[index, ~valid] == 0).all()
        if valid.any():
            expected = of_one(x[index, valid].double().numpy())
            np.testing.assert_allclose(result[index, valid].numpy(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("activation", [magnitude, frequency])
def test_padding_never_leaks(activation):
    x, mask = torch.randn(2, 6, 8), torch.tensor([[True] * 4 + [False] * 2, [True] * 6])
    other = torch.where(mask[..., None], x, torch.full_like(x, 1e6))
    assert torch.equal(activation(x, mask), activation(other, mask))


def test_one_token_that_stands_out_is_the_most_active():
    x = torch.zeros(1, 5, 8)
    x[0, 3] = torch.randn(8)
    assert magnitude(x).tolist() == [[0.0, 0.0, 0.0, 1.0, 0.0]]
    assert magnitude(x, normalize=False)[0, 3] == pytest.approx(0.8 * x[0, 3].norm().item(), rel=1e-6)


def test_frequency_sees_phases_alone():
    """A token of another scale has the phases of the rest; one that is shifted along the channels has not."""
    wave = torch.cos(torch.arange(16) * 2 * torch.pi / 16) + 3 + 0.1 * torch.randn(16)
    x = torch.stack([wave, 7 * wave, wave.roll(3), wave])[None]
    activity = frequency(x)[0]
    assert activity.argmax() == 2
    assert activity[[0, 1, 3]].max() < 1e-3


@pytest.mark.parametrize("activation", [magnitude, frequency])
def test_bfloat16_tokens_are_computed_in_float32(activation):
    x = torch.randn(2, 7, 12).bfloat16()
    assert torch.equal(activation(x), activation(x.float()))


def test_class_attention_sums_heads():
    weights = torch.rand(2, 3, 5, 5).softmax(-1)
    paid = class_attention(weights[..., 1:], normalize=False)
    assert paid.shape == (2, 4)
    assert paid[1, 2] == pytest.approx(sum(weights[1, head, 0, 3].item() for head in range(3)), rel=1e-6)
    assert torch.equal(class_attention(weights[..., 1:]), min_max(paid))
    assert torch.equal(class_attention(weights, query=-1, normalize=False), weights[:, :, 4].sum(1))


def test_range_of_each_sample():
    values = torch.tensor([[1.0, 3.0, 2.0], [-5.0, -5.0, -5.0], [0.0, 10.0, 4.0]])
    assert min_max(values).tolist() == [[0.0, 1.0, 0.5], [0.0, 0.0, 0.0], [0.0, 1.0, pytest.approx(0.4)]]
    mask = torch.tensor([[True, False, True], [False, False, False], [True, True, True]])
    assert min_max(values, mask)[:2].tolist() == [[0.0, 0.0, 1.0], [0.0, 0.0, 0.0]]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: magnitude(torch.zeros(4, 8)), "tokens must have shape"),
        (lambda: frequency(torch.zeros(2, 4, 8), torch.ones(2, 4)), "mask must be bool"),
        (lambda: magnitude(torch.zeros(2, 4, 8), torch.ones(2, 5, dtype=torch.bool)), r"shape \(2, 4\)"),
        (lambda: class_attention(torch.zeros(2, 4, 4)), "weights must have shape"),
        (lambda: class_attention(torch.zeros(2, 3, 4, 4), query=4), "out of range"),
        (lambda: min_max(torch.zeros(2, 3, 4)), "values must have shape"),
    ],
)
def test_errors_say_what_does_not_fit(call, message):
    with pytest.raises(ValueError, match=message):
        call()
