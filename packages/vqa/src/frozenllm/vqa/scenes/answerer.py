"""Answers to questions about a scan from a trained run, and what its object tokens do meanwhile."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from frozenllm.core.analysis import activation_named, tapped
from frozenllm.core.commands.common import parse_device
from frozenllm.vqa.answerer import Answer, top_answers
from frozenllm.vqa.runs import load_run
from frozenllm.vqa.scenes.arrays import Scene, SceneFolder
from frozenllm.vqa.scenes.data import scene_folder
from frozenllm.vqa.scenes.dataset import point_features
from frozenllm.vqa.scenes.model import SituatedQA

HOST, LAYER = "host", "frozen layer"


@dataclass(frozen=True)
class View:
    """What a model made of a scene and a question; K proposals are taken for objects.

    Attributes:
        scene: The scene.
        answers: The best answers, best first.
        boxes: (K, 6) float32, centre and size in metres; none where the model sees no scene.
        maps: Activation of the objects' tokens, (K,) from 0 to 1, by where they are taken: ``"host"`` (as they enter
            the frozen layer) and ``"frozen layer"`` (as they leave it).
        pose: (7,) float32, where the model takes the person to be; None where it does not say.
    """

    scene: Scene
    answers: list[Answer]
    boxes: Tensor
    maps: Mapping[str, Tensor]
    pose: Tensor | None


class SceneAnswerer:
    """A run on SQA3D, ready to be asked.

    Args:
        checkpoint: ``<run folder>/checkpoints/<name>.pt``, or the run folder.
        scenes: The folder with prepared scenes; None for that of the run's data.
        device: Where it computes.

    Raises:
        ImportError: The extra ``[scenes]`` is missing.
        ValueError: The checkpoint cannot be read, is not a run on SQA3D, or there is no such folder.
    """

    def __init__(self, checkpoint: str | os.PathLike[str], scenes: str | None = None, device: str = "cpu") -> None:
        model, cfg = load_run(checkpoint, "questions about scenes", "sqa3d")
        assert isinstance(model, SituatedQA)
        self.device = parse_device(device)
        self.model = model.to(self.device)
        self.data = cfg.data
        self.scenes = SceneFolder(scene_folder(cfg.data.root, scenes or cfg.data.scenes))

    def ask(self, scene_id: str, situation: str, question: str, top: int = 5) -> list[Answer]:
        """The best answers, best first.

        Args:
            scene_id: Of a prepared scene, such as ``scene0380_00``.
            situation: Where the person is, in words.
            question: The question.
            top: How many; at most as many as the vocabulary has.

        Raises:
            ValueError: The scene cannot be read, a text is empty, or ``top`` is not positive.
        """
        return self._ask(self.scenes.read(scene_id), situation, question, top)[0]

    def view(
        self, scene_id: str, situation: str, question: str, *, activation: str = "magnitude", top: int = 3
    ) -> View:
        """The answers with the objects, and the activation of their tokens.

        Args:
            scene_id: See `ask`.
            situation: See `ask`.
            question: See `ask`.
            activation: ``"magnitude"`` or ``"frequency"``, see `frozenllm.core.analysis`.
            top: See `ask`.

        Raises:
            ValueError: See `ask`; or the activation is unknown.
        """
        measure = activation_named(activation)
        scene = self.scenes.read(scene_id)
        tokens: dict[str, Tensor] = {}
        if self.model.llm is None:
            answers, outputs = self._ask(scene, situation, question, top)
        else:
            with tapped(self.model.llm) as taps:
                answers, outputs = self._ask(scene, situation, question, top)
            tokens[LAYER] = taps["adapter_out"]
        if "tokens" not in outputs:
            return View(scene, answers, torch.zeros(0, 6), {}, None)
        assert self.model.detector is not None
        objects = outputs["mask"][0]
        maps = {
            name: measure(found[:, objects])[0].float().cpu()
            for name, found in {HOST: outputs["tokens"], **tokens}.items()
        }
        boxes = self.model.detector.boxes(outputs["detected"])[0, objects].float().cpu()
        return View(scene, answers, boxes, maps, outputs["pose"][0].float().cpu())

    def points(self, scene: Scene) -> Tensor:
        """The scene's points as the model takes them (P, C); always the same ones."""
        count, number = len(scene.points), int(self.data.num_points)
        chosen = np.random.default_rng(0).choice(count, number, replace=count < number)
        color, height = bool(self.data.use_color), bool(self.data.use_height)
        return point_features(scene, scene.points[chosen, :3], chosen, color=color, height=height)

    @torch.inference_mode()
    def _ask(self, scene: Scene, situation: str, question: str, top: int) -> tuple[list[Answer], dict[str, Any]]:
        for name, text in (("situation", situation), ("question", question)):
            if not text.strip():
                raise ValueError(f"The {name} is empty.")
        outputs = self.model(self.points(scene)[None].to(self.device), [situation], [question])
        return top_answers(outputs["answers"][0], self.model.answers.names, top), outputs
