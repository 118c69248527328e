"""The host for SQA3D: proposals of VoteNet read the situation, then the question; a frozen layer; pooling; heads.

The layers are those of SQA3D's ScanQA variant with its auxiliary task. The paper puts the frozen layer "after the
vision-language fusion" and says no more (section 4.5): here it stands behind the last guided attention, on the object
tokens, and proposals that are no objects are masked in it as everywhere else.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from frozenllm.core import build_llm_layer
from frozenllm.vqa.answers import AnswerSpace
from frozenllm.vqa.scenes.mcan import AttentionPool, GuidedAttention, SelfAttention
from frozenllm.vqa.scenes.text import TransformerText, WordEncoder
from frozenllm.vqa.scenes.votenet import SceneDetector

LLM = Mapping[str, Any] | str | None
BLIND = (None, "situation", "scene", "both")
OBJECTS = ("features", "boxes", "both")
POSE = 7  # position x, y, z and quaternion x, y, z, w


class SituatedQA(nn.Module):
    """Answers to questions about a scene, from where somebody stands in it.

    The host's weights are drawn before the frozen layer is built: under one seed, hosts with and without start equal.

    Args:
        text: The encoder of situations and questions.
        detector: The scene encoder; None where ``blind`` leaves nothing for it to do.
        answers: The answer vocabulary, which checkpoints carry with them.
        width: Of all tokens.
        heads: Attention heads.
        layers: Self-attention layers on each text, and guided ones by each text.
        dropout: In attention, pooling and the head for the pose.
        pool_hidden: Inside the pooling networks.
        pool_out: Of every pooled vector.
        answer_dropout: In the head for the answers.
        objects: What a proposal's token is made of: ``"features"`` (SQA3D: they say nothing about where it is, but for
            what its surroundings give away), ``"boxes"`` (its predicted box and classes) or ``"both"``.
        llm: The frozen layer, see `frozenllm.core.build_llm_layer`; None for the host alone.
        blind: What the model does not see: ``"situation"``, ``"scene"``, ``"both"`` (the question alone), or None.

    Attributes:
        llm: The frozen layer, or None.

    Raises:
        ValueError: An option is unknown, or does not fit the others.
    """

    def __init__(
        self,
        text: WordEncoder | TransformerText,
        detector: SceneDetector | None,
        answers: Sequence[str],
        *,
        width: int = 256,
        heads: int = 8,
        layers: int = 2,
        dropout: float = 0.1,
        pool_hidden: int = 256,
        pool_out: int = 512,
        answer_dropout: float = 0.3,
        objects: str = "features",
        llm: LLM = None,
        blind: str | None = None,
    ) -> None:
        super().__init__()
        check_blind(blind, llm)
        if sees_scene(blind) != (detector is not None):
            raise ValueError(f"A model with blind={blind} and {'a' if detector else 'no'} detector is a contradiction.")
        if objects not in OBJECTS:
            raise ValueError(f"model.objects must be one of {', '.join(OBJECTS)}, not {objects!r}.")
        self.width = width
        self.blind = blind
        self.answers = AnswerSpace(answers)
        self.text = text
        self.text_map = nn.Sequential(nn.Linear(width, width), nn.GELU())  # one for both texts, as in SQA3D's code
        self.situation_layers = SelfAttention(width, heads, layers, dropout)
        self.question_layers = SelfAttention(width, heads, layers, dropout)
        self.situation_pool = AttentionPool(width, pool_hidden, pool_out, dropout)
        self.question_pool = AttentionPool(width, pool_hidden, pool_out, dropout)
        self.detector = detector
        self.object_map: nn.Sequential | None = None
        self.box_map: nn.Linear | None = None
        if detector is not None:
            if objects != "boxes":
                self.object_map = nn.Sequential(nn.Linear(detector.width, width), nn.GELU())
            if objects != "features":
                self.box_map = nn.Linear(6 + detector.num_classes, width)
            self.by_situation = GuidedAttention(width, heads, layers, dropout)
            self.by_question = GuidedAttention(width, heads, layers, dropout)
            self.object_pool = AttentionPool(width, pool_hidden, pool_out, dropout)
            self.pose_head = _head(2 * pool_out, width, POSE, dropout)
        self.answer_head = _head((2 + (detector is not None)) * pool_out, width, len(answers), answer_dropout)
        self.llm = build_llm_layer(width, llm, adapter_init="default")

    def read(self, situation: Sequence[str], question: Sequence[str]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Texts -> situation tokens (B, S, width) with their mask (B, S), question tokens and mask likewise."""
        s, s_mask = self.text(situation)
        q, q_mask = self.text(question)
        s = self.situation_layers(self.text_map(s), s_mask)
        return s, s_mask, self.question_layers(self.text_map(q), q_mask), q_mask

    def fuse(
        self, predictions: Mapping[str, Tensor], s: Tensor, s_mask: Tensor, q: Tensor, q_mask: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Object tokens (B, K, width) that have read both texts, as they enter the frozen layer; mask (B, K) bool.

        Args:
            predictions: Of the detector.
            s: See `read`; so are the others.
            s_mask: See `read`.
            q: See `read`.
            q_mask: See `read`.
        """
        assert self.detector is not None
        mask = self.detector.counts(predictions)
        parts = []
        if self.object_map is not None:
            parts.append(self.object_map(predictions["aggregated_features"].transpose(1, 2)))
        if self.box_map is not None:
            seen = torch.cat([self.detector.boxes(predictions), predictions["sem_scores"].softmax(-1)], dim=-1)
            parts.append(self.box_map(seen.detach()))
        objects = self.by_situation(torch.stack(parts).sum(dim=0), s, mask, s_mask)
        return self.by_question(objects, q, mask, q_mask), mask

    def forward(self, points: Tensor, situation: Sequence[str], question: Sequence[str]) -> dict[str, Any]:
        """Answer.

        Args:
            points: (B, P, 3 + channels) float32: coordinates in metres, z up, colours, height; see the data set.
            situation: B texts.
            question: B texts.

        Returns:
            ``answers``: logits (B, answers); and, where the scene is seen, ``pose`` (B, 7), ``tokens`` (B, K, width)
            that entered the frozen layer, ``mask`` (B, K) bool of proposals that are objects, ``detected`` (the
            detector's predictions) and ``points``.
        """
        if self.blind in ("situation", "both"):
            situation = [""] * len(question)  # one unknown word: SQA3D's code keeps their number, which tells things
        s, s_mask, q, q_mask = self.read(situation, question)
        pooled = [self.situation_pool(s, s_mask), self.question_pool(q, q_mask)]
        if self.detector is None:
            return {"answers": self.answer_head(torch.cat(pooled, dim=1))}
        predictions = self.detector(points)
        tokens, mask = self.fuse(predictions, s, s_mask, q, q_mask)
        changed = tokens if self.llm is None else self.llm(tokens, mask=mask)
        objects = self.object_pool(changed, mask)
        return {
            "answers": self.answer_head(torch.cat([*pooled, objects], dim=1)),
            "pose": self.pose_head(torch.cat([pooled[0], objects], dim=1)),
            "tokens": tokens,
            "mask": mask,
            "detected": predictions,
            "points": points,
        }


def sees_scene(blind: str | None) -> bool:
    """Whether a model with this ``blind`` looks at the scene."""
    return blind not in ("scene", "both")


def check_blind(blind: str | None, llm: LLM) -> None:
    """Say what does not fit.

    Raises:
        ValueError: ``blind`` is unknown, or leaves a frozen layer without tokens.
    """
    if blind not in BLIND:
        raise ValueError(f"model.blind must be null, {', '.join(filter(None, BLIND))}, not {blind!r}.")
    kind = llm.get("kind", "pretrained") if isinstance(llm, Mapping) else llm
    if not sees_scene(blind) and kind not in (None, "none"):
        raise ValueError(f"A model with blind={blind} has no objects for a frozen layer to work on: use llm=none.")


def _head(width: int, hidden: int, out: int, dropout: float) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Dropout(dropout), nn.Linear(hidden, out))
