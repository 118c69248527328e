"""The text side of `pretrain_lm.py`: documents, their split, the tokenizer, and the training windows.

Nothing here keeps state: the batch of step k is a function of (seed, k), so a resumed run sees what it would have seen.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

BOS = "<s>"  # the only special token; its id is 0


@dataclass(frozen=True)
class Document:
    """One file, cut into three contiguous parts: training, then validation, then held-out."""

    name: str
    sha256: str
    train: str
    validation: str
    heldout: str


def read_documents(paths: Sequence[str | Path], validation: float = 0.025, heldout: float = 0.05) -> list[Document]:
    """Reads text files and splits each one.

    Args:
        paths: UTF-8 text files, or directories of which every `*.txt` file is read.
        validation: share of each file that selects the checkpoint, just before the held-out part.
        heldout: share at the end of each file that only the reported figures see.

    Returns:
        One document per file, sorted by name.
    """
    files: list[Path] = []
    for path in map(Path, paths):
        if path.is_dir():
            found = sorted(path.glob("*.txt"))
            if not found:
                raise ValueError(f"The text directory {path} holds no *.txt file.")
            files += found
        elif path.is_file():
            files.append(path)
        else:
            raise ValueError(f"The text path {path} does not exist.")
    documents = []
    for file in sorted(files, key=lambda f: f.name):
        raw = file.read_bytes()
        try:
            text = raw.decode("utf-8")
        except UnicodeDecodeError as error:
            raise ValueError(f"{file} is not UTF-8 text (byte {error.start}).") from error
        if not text.strip():
            raise ValueError(f"The text file {file} is empty.")
        first = _paragraph_start(text, int(len(text) * (1 - heldout - validation)))
        second = max(first, _paragraph_start(text, int(len(text) * (1 - heldout))))
        parts = text[:first], text[first:second], text[second:]
        if not all(part.strip() for part in parts):
            raise ValueError(f"{file} is too short to be cut into training, validation and held-out paragraphs.")
        documents.append(Document(file.name, hashlib.sha256(raw).hexdigest(), *parts))
    return documents


def _paragraph_start(text: str, near: int, reach: int = 4000) -> int:
    """First paragraph start at or after a position: after a blank line if one is in reach, else after a line end."""
    for mark in ("\n\n", "\n"):
        found = text.find(mark, near, near + reach)
        if found >= 0:
            return found + len(mark)
    return near


def excerpt(documents: Sequence[Document], characters: int) -> str:
    """A short held-out text: the start of every document's held-out part, cut at line ends, blank lines between."""
    share = max(1, characters // len(documents))
    return "\n\n".join(d.heldout[: _paragraph_start(d.heldout, share, reach=2000)].strip() for d in documents) + "\n"


def train_tokenizer(texts: Sequence[str], vocab_size: int) -> Tokenizer:
    """Byte-level BPE: no normalisation and all 256 bytes in the alphabet, so any text decodes to itself."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[BOS],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    if tokenizer.get_vocab_size() != vocab_size:
        raise ValueError(f"The training text yields {tokenizer.get_vocab_size()} tokens, not vocab_size={vocab_size}.")
    return tokenizer


def merge_parts(tokenizer: Tokenizer) -> np.ndarray:
    """The two tokens each token was merged from, shape (vocab, 2); -1 for tokens that are no merge."""
    vocab = tokenizer.get_vocab()
    parts = np.full((tokenizer.get_vocab_size(), 2), -1, dtype=np.int64)
    for merge in json.loads(tokenizer.to_str())["model"]["merges"]:
        left, right = merge.split(" ") if isinstance(merge, str) else merge
        parts[vocab[left + right]] = vocab[left], vocab[right]
    return parts


def undo_merges(ids: np.ndarray, parts: np.ndarray, rate: float, rng: np.random.Generator) -> np.ndarray:
    """Splits tokens back into the two they were merged from, at random: the text stays, its tokenization varies.

    This is BPE-dropout's regularisation, done on ids so that a seed fixes it. Two rounds, so that long tokens may
    fall into up to four pieces.

    Args:
        ids: token ids, shape (n,), int64.
        parts: see `merge_parts`.
        rate: probability of splitting a token, per round.
        rng: source of randomness.

    Returns:
        Token ids of the same text, shape (m,), m >= n.
    """
    for _ in range(2):
        split = (rng.random(len(ids)) < rate) & (parts[ids, 0] >= 0)
        sizes = 1 + split
        first = (np.cumsum(sizes) - sizes)[split]
        pieces = parts[ids[split]]
        ids = np.repeat(ids, sizes)
        ids[first], ids[first + 1] = pieces[:, 0], pieces[:, 1]
    return ids


@dataclass(frozen=True)
class Windows:
    """Training windows of equal length over several tokenized documents, in a seeded order per epoch."""

    documents: list[np.ndarray]  # token ids, each (n_d,), int64
    parts: np.ndarray
    length: int
    batch_size: int
    split_rate: float
    bos_id: int
    seed: int

    def __post_init__(self) -> None:
        if self.steps_per_epoch < 1:
            raise ValueError(
                f"The training text gives fewer than {self.batch_size} windows of {self.length} tokens: "
                "use more text, or a smaller batch or window."
            )

    @property
    def steps_per_epoch(self) -> int:
        """Batches per pass. One window per document is kept back because each epoch starts at another offset."""
        return sum(max(0, len(d) // self.length - 1) for d in self.documents) // self.batch_size

    def batch(self, step: int) -> np.ndarray:
        """Rows of the start token and `length` tokens, shape (batch_size, length + 1), a function of seed and step.

        Half the rows are tokenized as at evaluation; the others have merges undone.
        """
        epoch, index = divmod(step, self.steps_per_epoch)
        order = np.random.default_rng((self.seed, 0, epoch))
        starts = []
        for number, ids in enumerate(self.documents):
            count = max(0, len(ids) // self.length - 1)
            phase = int(order.integers(self.length))
            starts += [(number, phase + i * self.length) for i in range(count)]
        chosen = order.permutation(len(starts))[index * self.batch_size : (index + 1) * self.batch_size]
        rng = np.random.default_rng((self.seed, 1, step))
        rows = np.full((self.batch_size, self.length + 1), self.bos_id, dtype=np.int64)
        for row, (number, start) in zip(rows, (starts[i] for i in chosen), strict=True):
            ids = self.documents[number][start : start + self.length]
            if self.split_rate > 0 and rng.random() < 0.5:
                ids = undo_merges(ids, self.parts, self.split_rate, rng)[: self.length]
            row[1:] = ids
        return rows
