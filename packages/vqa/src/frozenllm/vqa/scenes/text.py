"""Text encoders: one network reads situations and questions alike, from plain strings.

The vocabulary (or the tokenizer's source) belongs to the encoder: a checkpoint is enough to read a new question.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from frozenllm.vqa.names import Names
from frozenllm.vqa.scenes.words import GLOVE_WIDTH, MAX_LENGTH, PADDING, Vocabulary, words_of
from frozenllm.vqa.scenes.words import glove as read_glove

WordSource = Sequence[str] | Mapping[str, Any]
"""The words themselves, or the arguments of `frozenllm.vqa.scenes.words.words_of`."""


class WordList(Names):
    """The words that a model knows; see `Names`."""

    what = "word list"
    single = "word"
    remedy = "evaluate it on the data that it was trained on"


class WordEncoder(nn.Module):
    """One LSTM layer over word vectors (SQA3D).

    Args:
        words: The words that have a vector of their own.
        width: Of the tokens.
        word_width: Of the word vectors.
        glove: A GloVe text file; its vectors stay as they are (SQA3D). None to learn the vectors.
        dropout: Of the entries of the word vectors.
        max_words: Words of a text; what is beyond is cut.

    Raises:
        ValueError: The word list is empty, or the file does not fit.
    """

    def __init__(
        self,
        words: Sequence[str],
        width: int,
        *,
        word_width: int = GLOVE_WIDTH,
        glove: str | None = None,
        dropout: float = 0.3,
        max_words: int = MAX_LENGTH,
    ) -> None:
        super().__init__()
        self.words = WordList(words)
        self.vocabulary = Vocabulary(words, max_words)
        if glove is None:
            self.vectors = nn.Embedding(len(self.vocabulary), word_width, padding_idx=PADDING)
        else:
            self.vectors = nn.Embedding.from_pretrained(read_glove(glove, self.vocabulary, word_width), freeze=True)
        self.dropout = nn.Dropout(dropout)
        self.lstm = nn.LSTM(word_width, width, batch_first=True)

    @torch.compiler.disable  # strings are no business of the compiler's
    def forward(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Tokens (B, L, width) of texts, and which are words (B, L) bool; what stands at the others is 0."""
        ids, mask = self.vocabulary.batch(texts)
        device = self.vectors.weight.device
        vectors = self.dropout(self.vectors(ids.to(device)))
        packed = pack_padded_sequence(vectors, mask.sum(dim=1), batch_first=True, enforce_sorted=False)
        tokens, _ = pad_packed_sequence(self.lstm(packed)[0], batch_first=True)
        return tokens, mask.to(device)


class TransformerText(nn.Module):
    """A RoBERTa in the LSTM's place, with a linear map to the width of the tokens.

    Args:
        source: A folder or hub repository with its configuration, weights and tokenizer; ``"toy"`` for a small one.
        width: Of the tokens.
        pretrained: False takes only the configuration.
        max_words: Tokens of a text, those at its ends included; what is beyond is cut.

    Raises:
        ValueError: The source cannot be read.
    """

    def __init__(self, source: str, width: int, *, pretrained: bool = True, max_words: int = MAX_LENGTH) -> None:
        super().__init__()
        from frozenllm.vqa.meter.encoders import TextEncoder
        from frozenllm.vqa.text import TextTokens, tokenizer_source

        folder = tokenizer_source(source)
        self.tokens = TextTokens(folder, max_words)
        self.encoder = TextEncoder(folder, pretrained=pretrained)
        self.map = nn.Linear(self.encoder.width, width)

    @torch.compiler.disable  # strings are no business of the compiler's
    def forward(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Tokens (B, L, width) of texts, and which are no padding (B, L) bool."""
        device = self.map.weight.device
        ids, masks = zip(*(self.tokens(text) for text in texts), strict=True)
        mask = torch.stack(masks)
        length = int(mask.sum(dim=1).max())
        mask = mask[:, :length].to(device)
        return self.map(self.encoder(torch.stack(ids)[:, :length].to(device), mask)), mask


_OWN = {"lstm": ("word_width", "glove", "dropout"), "transformer": ("source", "pretrained")}
"""Options that only one kind of encoder has: a config holds both kinds'."""


def build_text(options: Mapping[str, Any], width: int, words: WordSource | None) -> WordEncoder | TransformerText:
    """The text encoder that a config describes.

    Args:
        options: ``kind``, ``"lstm"`` or ``"transformer"``, and the options of that class.
        width: Of the tokens.
        words: The words that an LSTM knows; a transformer needs none.

    Raises:
        ValueError: The kind or an option is unknown, or something is missing.
    """
    from frozenllm.core.training import call_with_options

    options = dict(options)
    kind = options.pop("kind", "lstm")
    if kind not in _OWN:
        raise ValueError(f"model.text.kind must be lstm or transformer, not {kind!r}.")
    for key in (key for other, keys in _OWN.items() if other != kind for key in keys):
        options.pop(key, None)
    if kind == "lstm":
        if words is None:
            raise ValueError("A text encoder of the kind lstm needs its words: model.words.")
        return call_with_options(WordEncoder, options, "the config group model, text", find_words(words), width)
    source = options.pop("source", None)
    if source is None:
        raise ValueError("A text encoder of the kind transformer needs its source: model.text.source.")
    return call_with_options(TransformerText, options, "the config group model, text", source, width)


def find_words(source: WordSource) -> tuple[str, ...]:
    """The words that a config describes.

    Raises:
        ValueError: The data cannot be read.
    """
    return words_of(**source) if isinstance(source, Mapping) else tuple(source)
