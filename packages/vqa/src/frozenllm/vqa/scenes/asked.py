"""Which objects of a scene a situated question is about, by its words, the person's pose and the annotated boxes."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from frozenllm.vqa.scenes.classes import CLASSES
from frozenllm.vqa.scenes.pose import UP, heading

DIRECTIONS = {
    "in front of me": 0, "ahead": 0, "looking at": 0, "facing": 0, "left": 90, "behind": 180, "right": -90,
}  # fmt: skip
"""Words -> degrees from where the person looks, anticlockwise."""
CONE = 45.0
"""Degrees to both sides of a direction. Chosen: a quarter of all around."""


def asked_about(question: str, pose: Tensor, boxes: Tensor, classes: Tensor) -> Tensor:
    """The objects that a question is about.

    With words of direction, the nearest object in each of the directions (whatever it is: "Is there a chair behind
    me?" is about what stands there); with "nearest", the nearest one; else all objects of the classes that it names.

    Args:
        question: The question.
        pose: (7,), where the person stands and looks, see `frozenllm.vqa.scenes.pose`.
        boxes: (K, 6), centre and size in metres.
        classes: (K,) int64.

    Returns:
        (K,) bool; none where the words say nothing of this.
    """
    found = torch.zeros(len(boxes), dtype=torch.bool)
    if not len(boxes):
        return found
    text = question.lower().rstrip("?")
    away = boxes[:, :2].cpu().double().numpy() - pose[:2].cpu().double().numpy()
    distance = np.linalg.norm(away, axis=1)
    if "nearest" in text or "closest" in text:
        found[int(distance.argmin())] = True
        return found
    ahead = heading(pose.cpu().double().numpy())
    left = np.cross(UP, ahead)
    angle = np.degrees(np.arctan2(away @ left[:2], away @ ahead[:2]))
    turns = {turn for words, turn in DIRECTIONS.items() if words in text}
    for turn in turns:
        inside = np.abs((angle - turn + 180) % 360 - 180) <= CONE
        if inside.any():
            found[int(np.where(inside, distance, np.inf).argmin())] = True
    if not turns:
        words = f" {text} ".replace(",", " ")
        named = [place for place, name in enumerate(CLASSES[:-1]) if f" {name} " in words or f" {name}s " in words]
        found |= torch.isin(classes.cpu(), torch.tensor(named, dtype=torch.int64))
    return found


def inside(boxes: Tensor, others: Tensor) -> Tensor:
    """Whether the middle of each box (K, 6) lies in each of the others (M, 6): (K, M) bool."""
    return ((boxes[:, None, :3] - others[:, :3]).abs() <= others[:, 3:6] / 2).all(dim=-1)
