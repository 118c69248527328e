"""Answers to questions about images, from a trained run; and where its visual tokens are active."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from frozenllm.core.analysis import magnitude, tapped
from frozenllm.core.commands.common import parse_device
from frozenllm.core.training import BrokenSample
from frozenllm.vqa.images import ImageFile, clip_transform
from frozenllm.vqa.meter.model import MeterVQA
from frozenllm.vqa.runs import load_run
from frozenllm.vqa.text import TextTokens, tokenizer_source

TAPS = ("adapter_out", "host")


@dataclass(frozen=True)
class Answer:
    """An answer and the model's probability that it is right; answers are judged one by one, so these need not add up
    to 1."""

    text: str
    probability: float


class Answerer:
    """A run of question answering, ready to be asked.

    Args:
        checkpoint: ``<run folder>/checkpoints/<name>.pt``, or the run folder.
        device: Where it computes.

    Raises:
        ValueError: The checkpoint cannot be read, or is not a run of question answering.
    """

    def __init__(self, checkpoint: str | os.PathLike[str], device: str = "cpu") -> None:
        model, cfg = load_run(checkpoint, "question answering", "meter_vqa")
        assert isinstance(model, MeterVQA)
        self.device = parse_device(device)
        self.model = model.to(self.device)
        self.transform = clip_transform(int(cfg.data.image_size))
        self.tokens = TextTokens(tokenizer_source(cfg.data.tokenizer), int(cfg.data.max_text_len))

    @torch.inference_mode()
    def ask(self, image: Image.Image | str | os.PathLike[str], question: str, top: int = 5) -> list[Answer]:
        """The best answers, best first.

        Args:
            image: An image, or its file.
            question: The question.
            top: How many; at most as many as the vocabulary has.

        Raises:
            ValueError: The image cannot be read, the question is empty, or ``top`` is not positive.
        """
        return top_answers(self.model(**self._inputs(open_image(image), question))[0], self.model.answers.names, top)

    @torch.inference_mode()
    def heat(self, image: Image.Image | str | os.PathLike[str], question: str, tap: str = "adapter_out") -> Tensor:
        """Activation of every patch, from 0 to 1: its token's distance from the mean token (paper A.3).

        Args:
            image: An image, or its file.
            question: The question.
            tap: ``"adapter_out"``: the tokens that leave the frozen layer; ``"host"``: those that enter it. Without a
                frozen layer on the visual tokens, it is always the latter.

        Returns:
            (rows, columns), float32.

        Raises:
            ValueError: The image cannot be read, the question is empty, or the tap is unknown.
        """
        if tap not in TAPS:
            raise ValueError(f"The tap must be one of {', '.join(TAPS)}, not {tap!r}.")
        inputs = self._inputs(open_image(image), question)
        trunk = self.model.trunk
        if "visual" in trunk.llm:
            with tapped(trunk.llm["visual"]) as taps:
                self.model(**inputs)
            tokens = taps[tap]
        else:
            tokens = self.model.tokens(**inputs)
        side = trunk.image_encoder.grid
        return magnitude(tokens[:, 1:])[0].view(side, side).cpu()

    def picture(
        self, image: Image.Image | str | os.PathLike[str], question: str, tap: str = "adapter_out"
    ) -> Image.Image:
        """The image as the model sees it (its central square) under its activations; see `heat`."""
        from matplotlib import colormaps

        opened = open_image(image)
        heat = self.heat(opened, question, tap).numpy()
        side = min(opened.size)
        left, upper = (opened.width - side) // 2, (opened.height - side) // 2
        shown = opened.crop((left, upper, left + side, upper + side)).resize((448, 448), Image.Resampling.BICUBIC)
        smooth = Image.fromarray(heat).resize(shown.size, Image.Resampling.BILINEAR)
        colors = Image.fromarray((colormaps["viridis"](np.asarray(smooth))[..., :3] * 255).astype(np.uint8))
        return Image.blend(shown, colors, 0.55)

    def _inputs(self, image: Image.Image, question: str) -> dict[str, Any]:
        if not question.strip():
            raise ValueError("The question is empty.")
        ids, mask = self.tokens(question.strip())
        length = int(mask.sum())
        inputs = {
            "pixel_values": self.transform(image)[None],
            "input_ids": ids[None, :length],
            "attention_mask": mask[None, :length],
        }
        return {name: tensor.to(self.device) for name, tensor in inputs.items()}


def top_answers(logits: Tensor, names: Sequence[str], top: int) -> list[Answer]:
    """The best answers, best first, of logits (answers,); at most as many as there are.

    Raises:
        ValueError: ``top`` is not positive.
    """
    if top < 1:
        raise ValueError(f"The number of answers must be positive, not {top}.")
    best = logits.float().sigmoid().topk(min(top, len(names)))
    return [Answer(names[i], p) for i, p in zip(best.indices.tolist(), best.values.tolist(), strict=True)]


def print_answers(answers: Sequence[Answer]) -> None:
    """A line for each answer: its text and its probability."""
    width = max(len(answer.text) for answer in answers)
    for answer in answers:
        print(f"{answer.text.ljust(width)}  {100 * answer.probability:5.1f} %")


def open_image(image: Image.Image | str | os.PathLike[str]) -> Image.Image:
    """An image in RGB.

    Raises:
        ValueError: The file does not exist or is no image.
    """
    if isinstance(image, Image.Image):
        return image.convert("RGB")
    try:
        return ImageFile(Path(image).expanduser()).open()
    except BrokenSample as error:
        raise ValueError(str(error)) from error
