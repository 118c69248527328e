"""The data set of situated questions: a question, the words for where it is asked, and a sample of the scene's points.

Random choices come from the global generators, which the engine seeds for each sample.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from frozenllm.core.training import UNREADABLE, TolerantDataset
from frozenllm.vqa.data.records import check_choice
from frozenllm.vqa.scenes.arrays import Scene, SceneFolder
from frozenllm.vqa.scenes.augment import Augmentation
from frozenllm.vqa.scenes.classes import IGNORED
from frozenllm.vqa.scenes.files import SituatedQuestion, question_type
from frozenllm.vqa.scenes.pose import to_aligned

logger = logging.getLogger(__name__)

UNKNOWN = -2
"""Target of a question whose answer is not in the dictionary: always wrong. Training data has none of them."""
SITUATIONS = ("main", "random", "all")
MEAN_COLOR = (109.8, 97.2, 83.8)  # of ScanNet's vertices (SQA3D, after ScanRefer)
_FLOOR = 0.99  # the percentile (not the fraction) of heights that is taken for the floor's (VoteNet)


class SQA3DDataset(TolerantDataset):
    """Questions with the scenes that they are about.

    A sample is ``{"inputs": {"points", "situation", "question"}, "targets": {"answer", "pose", "boxes", "classes",
    "semantic", "instance"}, "question_id", "question_type", "answer", "scene_id"}``:

    - ``points`` (P, C) float32: x, y, z in metres; red, green, blue less their mean, by 256; height above the floor.
    - ``situation``, ``question``: texts.
    - ``targets["answer"]``: class, `UNREADABLE` or `UNKNOWN`; ``answer``: its text.
    - ``pose`` (7,) float32: position and quaternion x, y, z, w, see `frozenllm.vqa.scenes.pose`.
    - ``boxes`` (K, 6) float32, centre and size; ``classes`` (K,) int64.
    - ``semantic`` (P,) int64, class or -1; ``instance`` (P,) int64, row of ``boxes`` or -1.

    Args:
        questions: The questions.
        answers: The answers in the order of their classes.
        scenes: The prepared scenes.
        num_points: P; points are drawn with replacement where a scene has fewer.
        train: Leave out questions whose answer is not among the classes (as SQA3D does), and see `TolerantDataset`.
        augment: How scenes are varied; None for not at all.
        situations: ``"main"``: the situation. ``"random"``: it or one of its alternatives, drawn anew each time.
            ``"all"``: every question once with each of them.
        use_color: Points have colours.
        use_height: Points have heights.
        on_error: See `TolerantDataset`; ``"raise"`` also checks at once that all scenes are there.

    Raises:
        ValueError: No question is left, none of the scenes is there, or an option is unknown.
    """

    def __init__(
        self,
        questions: Sequence[SituatedQuestion],
        answers: Sequence[str],
        scenes: SceneFolder,
        *,
        num_points: int = 40_000,
        train: bool = False,
        augment: Augmentation | None = None,
        situations: str = "main",
        use_color: bool = True,
        use_height: bool = True,
        on_error: str = "raise",
    ) -> None:
        check_choice("situations", situations, SITUATIONS)
        if num_points < 1:
            raise ValueError(f"num_points must be positive, not {num_points}.")
        self.index = {answer: place for place, answer in enumerate(answers)}
        self.questions = [
            (q, text) for q in _answerable(questions, self.index, train) for text in _texts(q, situations)
        ]
        super().__init__(len(self.questions), train=train, on_error=on_error)
        self.scenes = scenes
        self.num_points = num_points
        self.augment = augment
        self.situations = situations
        self.use_color = use_color
        self.use_height = use_height
        self._check_scenes()

    @property
    def channels(self) -> int:
        """C: numbers of a point."""
        return 3 + 3 * self.use_color + self.use_height

    def read(self, index: int) -> dict[str, Any]:
        """The sample.

        Raises:
            BrokenSample: Its scene is missing or damaged.
        """
        question, text = self.questions[index]
        scene = self.scenes.read(question.scene_id)
        if self.situations == "random":
            text = random.choice((question.situation, *question.alternatives))
        count = len(scene.points)
        chosen = np.random.choice(count, self.num_points, replace=count < self.num_points)
        xyz, boxes = scene.points[chosen, :3], scene.boxes
        pose = to_aligned(np.array(question.pose), scene.centre, scene.align)
        if self.augment is not None:
            move = self.augment.draw()
            xyz, boxes, pose = move.points(xyz), move.boxes(boxes), move.pose(pose)
        targets = {
            "answer": self.index.get(question.answer, UNKNOWN),
            "pose": _float(pose),
            "boxes": _float(boxes),
            "classes": torch.from_numpy(scene.classes),
            "semantic": torch.from_numpy(scene.semantic[chosen]),
            "instance": torch.from_numpy(scene.instance[chosen]),
        }
        points = point_features(scene, xyz, chosen, color=self.use_color, height=self.use_height)
        return self._sample(question, text, points, targets)

    def placeholder(self, index: int) -> dict[str, Any]:
        """Points at the origin without objects, with the answer `UNREADABLE`."""
        nothing = torch.full((self.num_points,), IGNORED)
        targets = {
            "answer": UNREADABLE,
            "pose": torch.tensor([0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0]),
            "boxes": torch.zeros(0, 6),
            "classes": torch.zeros(0, dtype=torch.int64),
            "semantic": nothing,
            "instance": nothing.clone(),
        }
        return self._sample(*self.questions[index], torch.zeros(self.num_points, self.channels), targets)

    def _sample(self, question: SituatedQuestion, text: str, points: Tensor, targets: dict[str, Any]) -> dict[str, Any]:
        return {
            "inputs": {"points": points, "situation": text, "question": question.question},
            "targets": targets,
            "question_id": question.question_id,
            "question_type": question_type(question.question),
            "answer": question.answer,
            "scene_id": question.scene_id,
        }

    def _check_scenes(self) -> None:
        wanted = sorted({question.scene_id for question, _ in self.questions})
        missing = [scene for scene in wanted if self.scenes.missing(scene)]
        if missing and (self.on_error == "raise" or len(missing) == len(wanted)):
            raise ValueError(
                f"{self.scenes.path} lacks {len(missing)} of the {len(wanted)} scenes that are asked about, such as "
                f"{missing[0]} ({self.scenes.missing(missing[0])[0]}): prepare them with "
                "python -m frozenllm.vqa.scenes.prepare, or give data.scenes=... or data.on_error=skip."
            )
        if missing:
            logger.warning(
                "%s lacks %d of %d scenes that are asked about.", self.scenes.path, len(missing), len(wanted)
            )


def point_features(scene: Scene, xyz: np.ndarray, chosen: np.ndarray, *, color: bool, height: bool) -> Tensor:
    """Points of a scene as a model takes them.

    Args:
        scene: The scene.
        xyz: (P, 3), where the points are now.
        chosen: (P,), which of the scene's vertices they are.
        color: See `SQA3DDataset`.
        height: See `SQA3DDataset`.

    Returns:
        (P, C) float32.
    """
    parts = [xyz]
    if color:  # of a copy: SQA3D's code normalises its stored scene anew with every sample
        parts.append((scene.points[chosen, 3:6] - MEAN_COLOR) / 256.0)
    if height:  # of the scene as it stood before it was augmented, as in SQA3D's code
        z = scene.points[:, 2]
        parts.append((z[chosen] - np.percentile(z, _FLOOR))[:, None])
    return _float(np.concatenate(parts, axis=1))


def _answerable(
    questions: Sequence[SituatedQuestion], index: Mapping[str, int], train: bool
) -> Sequence[SituatedQuestion]:
    known = [question for question in questions if question.answer in index]
    if not known:
        raise ValueError(
            f"Not one of {len(questions)} questions has an answer of the dictionary of {len(index)}: it belongs to "
            "other data."
        )
    if len(known) < len(questions):
        what = "Left out" if train else "Counts as wrong"
        logger.info("%s: %d questions with answers outside the dictionary.", what, len(questions) - len(known))
    return known if train else questions


def _texts(question: SituatedQuestion, situations: str) -> tuple[str, ...]:
    return (question.situation, *question.alternatives) if situations == "all" else (question.situation,)


def _float(array: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32))
