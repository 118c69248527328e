"""The builder of the config group ``model`` for SQA3D."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from frozenllm.core.training import call_with_options
from frozenllm.vqa.answers import AnswerSource, find_answers
from frozenllm.vqa.scenes.classes import MEAN_SIZES
from frozenllm.vqa.scenes.files import answers_of
from frozenllm.vqa.scenes.model import LLM, SituatedQA, check_blind, sees_scene
from frozenllm.vqa.scenes.text import WordSource, build_text
from frozenllm.vqa.scenes.votenet import SceneDetector


def build_sqa3d(
    *,
    answers: AnswerSource,
    words: WordSource | None,
    text: Mapping[str, Any],
    width: int = 256,
    in_channels: int = 4,
    threshold: float = 0.5,
    mean_sizes: Sequence[Sequence[float]] | None = None,
    detector: Mapping[str, Any] | None = None,
    llm: LLM = None,
    blind: str | None = None,
    **options: Any,
) -> SituatedQA:
    """SQA3D's host.

    Args:
        answers: The answer vocabulary: the answers, or the arguments of `frozenllm.vqa.scenes.files.answers_of`, with
            a key ``path`` for those in a file.
        words: The words that the LSTM knows, see `frozenllm.vqa.scenes.text.find_words`.
        text: ``kind`` (``"lstm"`` or ``"transformer"``) and the options of that encoder.
        width: Of all tokens.
        in_channels: Of a point beside its coordinates.
        threshold: See `SceneDetector`.
        mean_sizes: Mean sizes of the classes of objects; None for SQA3D's 18 classes of ScanNet.
        detector: Changes to mmdet3d's VoteNet, nested as its config is.
        llm: The config group ``llm``; None for the host alone.
        blind: See `SituatedQA`.
        **options: See `SituatedQA`.

    Raises:
        ImportError: The extra ``[scenes]`` is missing.
        ValueError: A source cannot be read, or an option is unknown or does not fit.
    """
    check_blind(blind, llm)
    names = find_answers(answers, answers_of)  # first: what is wrong with the data is said before anything is built
    encoder = build_text(text, width, words)
    scene = None
    if sees_scene(blind):
        sizes = MEAN_SIZES if mean_sizes is None else mean_sizes
        scene = SceneDetector(sizes, in_channels=in_channels, overrides=detector, threshold=threshold)
    return call_with_options(
        SituatedQA, options, "the config group model", encoder, scene, names, width=width, llm=llm, blind=blind
    )
