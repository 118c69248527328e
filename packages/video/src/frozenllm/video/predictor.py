"""A trained classifier with the way that it wants its clips, from a checkpoint of a run or of the official release."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import OmegaConf
from torch import Tensor

from frozenllm.core.training import is_run, read_run
from frozenllm.video.data import read_video
from frozenllm.video.heatmap import overlay, spread, token_activations, write_video
from frozenllm.video.model import FrozenLLMVideoMAE
from frozenllm.video.official import load_official_checkpoint
from frozenllm.video.sampling import Sampling, SegmentSampling, make_sampling
from frozenllm.video.transforms import EvalTransform

_LONGEST = 600  # frames of a written clip; longer videos are thinned out


@dataclass
class Predictor:
    """A classifier with the way that it wants its clips.

    Attributes:
        model: In eval mode.
        sampling: Which frames it sees.
        transform: What is done to them.
    """

    model: FrozenLLMVideoMAE
    sampling: Sampling
    transform: EvalTransform

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return self.model.classifier.out_features

    @torch.no_grad()
    def probabilities(self, path: str | Path, temporal: int = 1, spatial: int = 1, decoder: str = "auto") -> Tensor:
        """Softmax averaged over the views of a video.

        Args:
            path: The video file.
            temporal: Clips along the video; one is of the middles of its segments.
            spatial: Crops along the frames' longer side; one is in the middle.
            decoder: See `frozenllm.video.data.read_video`.

        Returns:
            (num_classes,).

        Raises:
            ValueError: The file cannot be read, or a number of views is not positive.
        """
        if min(temporal, spatial) < 1:
            raise ValueError(f"There must be one view or more each way, not {temporal} x {spatial}.")

        def choose(length: int) -> np.ndarray:
            return np.concatenate([self.sampling.view(length, t, temporal) for t in range(temporal)])

        frames = self.transform.resize(read_video(path, choose, decoder))
        total = torch.zeros(self.num_classes)
        for clip in frames.unflatten(0, (temporal, -1)):
            for s in range(spatial):  # one at a time: a clip has 1568 tokens
                total += self.model(self.transform.crop(clip, s, spatial)[None]).float().softmax(1)[0]
        return total / (temporal * spatial)

    def draw(self, path: str | Path, out: Path, activation: str = "magnitude", decoder: str = "auto") -> None:
        """Write the video's central crop with the activations of the middle clip's tokens over it.

        Args:
            path: The video file.
            out: The file to write.
            activation: ``"magnitude"`` or ``"frequency"``.
            decoder: See `frozenllm.video.data.read_video`.

        Raises:
            ValueError: A file cannot be read or written.
        """
        seen: dict[str, np.ndarray] = {}

        def choose(length: int) -> np.ndarray:
            seen["clip"] = self.sampling.view(length)
            seen["shown"] = np.arange(0, length, -(-length // _LONGEST))
            return np.concatenate([seen["clip"], seen["shown"]])

        frames = self.transform.resize(read_video(path, choose, decoder))
        clip, shown = frames.split([len(seen["clip"]), len(seen["shown"])])
        maps = token_activations(self.model, self.transform(clip), activation)
        size = self.transform.size
        top, left = ((side - size) // 2 for side in shown.shape[-2:])
        images = spread(maps, seen["clip"], seen["shown"], (size, size))
        rate = _frame_rate(path) / (seen["shown"][1] if len(seen["shown"]) > 1 else 1)
        write_video(out, overlay(shown[..., top : top + size, left : left + size], images), rate)


def load_predictor(
    checkpoint: str | Path, *, overrides: Sequence[str] = (), official: dict[str, Any] | None = None
) -> Predictor:
    """A predictor from a checkpoint.

    Args:
        checkpoint: Of a run of this project, or its folder (its config says how clips are made), or of the official
            release.
        overrides: Of a run, see `frozenllm.core.training.SavedRun.change`.
        official: Further arguments of `frozenllm.video.load_official_checkpoint`.

    Raises:
        ValueError: The file is missing, damaged or of no known kind, or an argument is for the other kind.
    """
    path = Path(checkpoint).expanduser()
    given = {key: value for key, value in (official or {}).items() if value is not None}
    if not is_run(path):
        if overrides:
            raise ValueError(
                f"{path} has no config: leave out {' '.join(overrides)}, which is for checkpoints of runs."
            )
        model = load_official_checkpoint(path, **given).model
        side = model.config.image_size
        return Predictor(model, SegmentSampling(model.config.num_frames), EvalTransform(side))
    if given:
        raise ValueError(f"{path} is of a run, whose config is known: leave out {', '.join(sorted(given))}.")
    run = read_run(path).expect("a video classifier", "videomae").change(overrides)
    cfg = run.cfg
    cfg.runtime.precision = "fp32"
    host = run.build()
    assert isinstance(host, FrozenLLMVideoMAE)
    val = OmegaConf.to_container(cfg.data.val, resolve=True)
    return Predictor(host, make_sampling(val["sampling"]), EvalTransform(**val["transform"]))


def _frame_rate(path: str | Path) -> float:
    import av

    with av.open(str(path)) as container:
        rate = container.streams.video[0].average_rate
    return float(rate) if rate else 12.0  # Something-Something V2's
