"""Words: how texts are split, their numbers, and their vectors from a GloVe file.

SQA3D's code splits at blanks after setting ``?`` and ``.`` apart, and leaves capitals as they are, which GloVe does not
know (``I``, ``What`` are unknown words there). Here texts are in lower case, and every punctuation mark is a word.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from frozenllm.vqa.scenes.files import sqa3d_questions

logger = logging.getLogger(__name__)

PADDING, UNKNOWN_WORD = 0, 1
MAX_LENGTH = 100  # words of a text (SQA3D)
GLOVE_WIDTH = 300
_WORD = re.compile(r"[a-z0-9]+(?:'[a-z]+)?|[^\sa-z0-9]")
_MILLION = 1 << 20


def split_words(text: str) -> list[str]:
    """The words of a text in lower case, punctuation apart; ``don't`` is one word."""
    return _WORD.findall(text.lower())


def words_of(root: str | None, *, format: str = "sqa3d") -> tuple[str, ...]:
    """All words of the training questions and their situations, alternatives included, in alphabetical order.

    Args:
        root: See `sqa3d_questions`.
        format: See `sqa3d_questions`.
    """
    words: set[str] = set()
    for question in sqa3d_questions(root, "train", format=format):
        for text in (question.question, question.situation, *question.alternatives):
            words.update(split_words(text))
    return tuple(sorted(words))


class Vocabulary:
    """Numbers of words: 0 is padding, 1 an unknown word.

    Args:
        words: The words, from number 2 on.
        max_length: Words of a text; what is longer is cut, which is logged once.

    Raises:
        ValueError: A word stands twice, or there is none.
    """

    def __init__(self, words: Sequence[str], max_length: int = MAX_LENGTH) -> None:
        if not words or len(set(words)) != len(words):
            raise ValueError("A vocabulary holds at least one word, and none twice.")
        if max_length < 1:
            raise ValueError(f"max_length must be positive, not {max_length}.")
        self.words = tuple(words)
        self.index = {word: number for number, word in enumerate(self.words, start=UNKNOWN_WORD + 1)}
        self.max_length = max_length
        self._warned = False

    def __len__(self) -> int:
        """V: numbers in use, padding and the unknown word included."""
        return len(self.words) + UNKNOWN_WORD + 1

    def encode(self, text: str) -> list[int]:
        """Numbers of a text's words; a text without words is one unknown word."""
        words = split_words(text)
        if len(words) > self.max_length and not self._warned:
            logger.warning("A text of %d words is cut to %d, and so will be others.", len(words), self.max_length)
            self._warned = True
        return [self.index.get(word, UNKNOWN_WORD) for word in words[: self.max_length]] or [UNKNOWN_WORD]

    def batch(self, texts: Iterable[str]) -> tuple[Tensor, Tensor]:
        """Numbers (B, L) int64 and where they are no padding (B, L) bool; L is the longest text's length."""
        rows = [torch.tensor(self.encode(text)) for text in texts]
        ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=PADDING)
        return ids, ids != PADDING


def glove(path: str | os.PathLike[str], vocabulary: Vocabulary, width: int = GLOVE_WIDTH) -> Tensor:
    """Vectors of a vocabulary's words, of a GloVe text file such as ``glove.6B.300d.txt``.

    Args:
        path: The file: a word and its numbers a line.
        vocabulary: The words.
        width: Numbers of a vector.

    Returns:
        (V, width) float32. Padding is 0; the unknown word, and words that the file lacks, are the file's ``unk`` as in
        SQA3D's code, or the mean of the vectors found where it has none.

    Raises:
        ValueError: The file is missing, is a pickle, or holds vectors of another width or none of the words.
    """
    path = Path(path).expanduser()
    if path.suffix in (".p", ".pkl", ".pickle"):
        raise ValueError(
            f"{path} is a pickle, which may run any code when it is read: give the text file glove.6B.300d.txt instead."
        )
    found: dict[str, Tensor] = {}
    wanted = {*vocabulary.words, "unk"}
    try:
        with (
            open(path, encoding="utf-8") as file,
            tqdm(total=path.stat().st_size // _MILLION, desc="GloVe", unit="MB", delay=1, leave=False) as bar,
        ):
            size = 0
            for number, line in enumerate(file, start=1):
                size += len(line)  # nearly bytes: words are the smaller part of a line
                if size >= _MILLION:
                    bar.update(size // _MILLION)
                    size %= _MILLION
                word, _, rest = line.rstrip("\n").partition(" ")
                if word in wanted:
                    found[word] = _vector(rest, width, f"{path}, line {number}")
    except OSError as error:
        raise ValueError(f"The word vectors {path} cannot be read ({error.strerror}).") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not a text file of word vectors ({error}).") from error
    known = [found[word] for word in vocabulary.words if word in found]
    if not known:
        raise ValueError(f"{path} holds none of the {len(vocabulary.words)} words of the training texts.")
    unknown = found["unk"] if "unk" in found else torch.stack(known).mean(0)
    lacking = [word for word in vocabulary.words if word not in found]
    if lacking:
        logger.info("%s lacks %d of %d words, such as %r.", path, len(lacking), len(vocabulary.words), lacking[0])
    vectors = [found.get(word, unknown) for word in vocabulary.words]
    return torch.stack([torch.zeros(width), unknown, *vectors])


def _vector(text: str, width: int, where: str) -> Tensor:
    try:
        numbers = [float(number) for number in text.split()]
    except ValueError as error:
        raise ValueError(f"{where}: this is no word vector ({error}).") from error
    if len(numbers) != width:
        raise ValueError(f"{where}: a word vector has {len(numbers)} numbers, not {width}.")
    vector = torch.tensor(numbers)
    if not vector.isfinite().all():
        raise ValueError(f"{where}: a word vector holds a number that is not finite.")
    return vector
