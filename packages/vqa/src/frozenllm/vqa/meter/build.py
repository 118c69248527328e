"""The builders of the config group ``model``."""

from __future__ import annotations

from typing import Any

from frozenllm.core.training import call_with_options
from frozenllm.vqa.answers import AnswerSource, find_answers
from frozenllm.vqa.meter.encoders import ImageEncoder, Source, TextEncoder
from frozenllm.vqa.meter.model import LLM, MeterRetrieval, MeterTrunk, MeterVQA
from frozenllm.vqa.toy import write_encoders

TOY = "toy"


def build_trunk(
    image_encoder: Source,
    text_encoder: Source,
    *,
    pretrained: bool = True,
    image_size: int | None = None,
    drop_layers: int = 1,
    **options: Any,
) -> MeterTrunk:
    """Encoders, fusion, frozen layer and poolers.

    Args:
        image_encoder: ``"toy"`` (written first where it is missing), a folder, a hub repository, or the fields of a
            `CLIPVisionConfig`, for random weights.
        text_encoder: The same for RoBERTa.
        pretrained: False takes only the configuration from a folder or repository.
        image_size: See `ImageEncoder`.
        drop_layers: See `ImageEncoder`.
        **options: See `MeterTrunk`.

    Raises:
        ValueError: A source cannot be read, or an option is unknown or does not fit.
    """
    images = ImageEncoder(
        encoder_source(image_encoder, "clip"), pretrained=pretrained, image_size=image_size, drop_layers=drop_layers
    )
    texts = TextEncoder(encoder_source(text_encoder, "roberta"), pretrained=pretrained)
    return call_with_options(MeterTrunk, options, "the config group model", images, texts)


def build_vqa(
    *, answers: AnswerSource, llm: LLM = None, released: str | None = None, image_encoder: Source, text_encoder: Source,
    **options: Any,
) -> MeterVQA:  # fmt: skip
    """METER for question answering.

    Args:
        answers: The vocabulary, see `frozenllm.vqa.answers.find_answers`.
        llm: The config group ``llm``; None for the host alone.
        released: A checkpoint of METER's release to start from, see `frozenllm.vqa.meter.released`.
        image_encoder: See `build_trunk`.
        text_encoder: See `build_trunk`.
        **options: See `build_trunk`.
    """
    names = find_answers(answers)  # first: what is wrong with the data is said before anything is downloaded
    model = MeterVQA(build_trunk(image_encoder, text_encoder, llm=llm, **options), names)
    if released is not None:
        _start(model, released)
    return model


def build_retrieval(
    *,
    llm: LLM = None,
    released: str | None = None,
    image_encoder: Source,
    text_encoder: Source,
    freeze_match: bool = False,
    pair_chunk: int = 256,
    **options: Any,
) -> MeterRetrieval:
    """METER for image and text retrieval.

    Args:
        llm: The config group ``llm``; None for the host alone.
        released: A checkpoint of METER's release to start from, see `frozenllm.vqa.meter.released`.
        image_encoder: See `build_trunk`.
        text_encoder: See `build_trunk`.
        freeze_match: See `MeterRetrieval`.
        pair_chunk: See `MeterRetrieval`.
        **options: See `build_trunk`.
    """
    trunk = build_trunk(image_encoder, text_encoder, llm=llm, **options)
    model = MeterRetrieval(trunk, freeze_match=freeze_match, pair_chunk=pair_chunk)
    if released is not None:
        _start(model, released)
    return model


def encoder_source(source: Source, kind: str) -> Source:
    """A source as it stands, or the folder that ``"toy"`` means; ``kind`` is ``"clip"`` or ``"roberta"``."""
    return str(write_encoders() / kind) if source == TOY else source


def _start(model: MeterVQA | MeterRetrieval, path: str) -> None:
    from frozenllm.vqa.meter.released import load_released

    load_released(model, path)
