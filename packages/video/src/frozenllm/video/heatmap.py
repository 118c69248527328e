"""Heat maps: how active the tokens of a clip are, drawn over its video."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from frozenllm.core.analysis import activation_named, tapped
from frozenllm.core.film import write_film
from frozenllm.video.model import FrozenLLMVideoMAE

SUFFIXES = (".mp4", ".mkv", ".mov")
_SMALLEST = 224  # pixels of the shorter side: what is smaller is enlarged
_OPACITY = 0.5


@torch.no_grad()
def token_activations(model: FrozenLLMVideoMAE, clip: Tensor, how: str = "magnitude") -> Tensor:
    """Activation of every token that the model averages, from 0 to 1 (paper A.3).

    Args:
        model: In eval mode. With a frozen layer, its output is looked at; else that of the last block.
        clip: (T, C, H, W), normalised.
        how: ``"magnitude"`` or ``"frequency"``, see `frozenllm.core.analysis`.

    Returns:
        (T', H', W'), the model's `grid`; float32, on the CPU.

    Raises:
        ValueError: There is no such activation.
    """
    activation = activation_named(how)
    inputs = clip[None].to(next(model.parameters()).device)
    if model.llm is None:
        tokens = model.tokens(inputs)
    else:
        with tapped(model) as taps:
            model(inputs)
        tokens = taps["adapter_out"]
    return activation(tokens)[0].reshape(model.grid).float().cpu()


def spread(activations: Tensor, times: np.ndarray, at: np.ndarray, size: tuple[int, int]) -> Tensor:
    """Activations of tokens as images, one for every frame.

    Args:
        activations: (T', H', W').
        times: Frame numbers of the clip that the tokens are from, (T,), never falling; a tubelet is at its frames'
            mean, and tubelets at the same place (of a video shorter than the clip) are averaged.
        at: Frame numbers to give images for.
        size: Their height and width.

    Returns:
        (len(at), height, width): linear in time and space, and constant before the first and after the last tubelet.
    """
    centres, group = np.unique(times.reshape(len(activations), -1).mean(axis=1), return_inverse=True)
    activations = torch.stack([activations[group == place].mean(dim=0) for place in range(len(centres))])
    places = np.interp(at, centres, np.arange(len(centres)))
    low = np.floor(places).astype(np.int64)
    high = np.minimum(low + 1, len(centres) - 1)
    share = torch.from_numpy(places - low).float()[:, None, None]
    maps = activations[low] * (1 - share) + activations[high] * share
    return F.interpolate(maps[:, None], size=size, mode="bilinear", align_corners=False)[:, 0]


def overlay(frames: Tensor, maps: Tensor) -> np.ndarray:
    """Frames with their activations in colour over them.

    Args:
        frames: (N, 3, H, W) uint8.
        maps: (N, H, W), from 0 to 1.

    Returns:
        (N, H', W', 3) uint8, enlarged if small, of even height and width as encoders want them.
    """
    import matplotlib

    colours = matplotlib.colormaps["inferno"](maps.numpy())[..., :3]
    mixed = (1 - _OPACITY) * frames.permute(0, 2, 3, 1).numpy() + _OPACITY * 255 * colours
    factor = -(-_SMALLEST // min(mixed.shape[1:3]))
    large = mixed.round().astype(np.uint8).repeat(factor, axis=1).repeat(factor, axis=2)
    return large[:, : large.shape[1] // 2 * 2, : large.shape[2] // 2 * 2]


def write_video(path: Path, images: np.ndarray, frame_rate: float) -> None:
    """Write images as H.264.

    Args:
        path: The file, with one of `SUFFIXES`.
        images: (N, H, W, 3) uint8.
        frame_rate: Images per second.

    Raises:
        ValueError: The file's ending is another one, or it cannot be written.
    """
    if path.suffix not in SUFFIXES:
        raise ValueError(
            f"{path}: the clip is written as {', '.join(SUFFIXES)}; give a name with one of these endings."
        )
    try:
        write_film(images, path, max(1, round(frame_rate)))
    except OSError as error:
        raise ValueError(f"{path}: cannot be written ({error.strerror or error}).") from error
