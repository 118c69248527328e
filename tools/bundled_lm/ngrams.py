"""Byte-level n-gram language models: the baselines that a trained language model has to beat.

Probabilities are interpolated as Witten and Bell proposed (method C), down to a uniform distribution over 256 bytes:

    p(c | h) = (N(h c) + T(h) p(c | h')) / (N(h) + T(h))

N counts occurrences in the training text, T(h) is the number of distinct bytes seen after the context h, and h' is h
without its oldest byte. A context never seen falls through to the shorter one. Everything is exact and deterministic.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


class WittenBell:
    """Interpolated byte n-gram model of order 1 (unigram) to 3 (trigram: two bytes of context)."""

    def __init__(self, texts: Sequence[bytes], order: int) -> None:
        """Counts the n-grams of the training texts; no n-gram spans two texts.

        Args:
            texts: training documents.
            order: longest n-gram, 1 to 3 (the table of order n has 256^n cells).
        """
        if order not in (1, 2, 3):
            raise ValueError(f"order must be 1, 2 or 3, got {order}.")
        self.order = order
        self.counts: list[np.ndarray] = []  # one per order n: (256^(n-1), 256) int64, rows are contexts
        for n in range(1, order + 1):
            table = np.zeros(256**n, dtype=np.int64)
            for text in texts:
                table += np.bincount(_codes(text, n), minlength=256**n)
            self.counts.append(table.reshape(-1, 256))
        if self.counts[0].sum() == 0:
            raise ValueError("An n-gram model needs a training text that is not empty.")
        self.seen = [table.sum(axis=1) for table in self.counts]  # N(h) of every context
        self.kinds = [np.count_nonzero(table, axis=1) for table in self.counts]  # T(h)

    def bits_per_byte(self, texts: str | Sequence[str]) -> float:
        """Cross-entropy on the texts (independent documents), in bits per UTF-8 byte.

        The first bytes of a document, which lack a full context, are predicted by the shorter orders.
        """
        raw = [text.encode("utf-8") for text in ([texts] if isinstance(texts, str) else texts)]
        bits = sum(float(-np.log2(self._probabilities(text)).sum()) for text in raw if text)
        return bits / sum(len(text) for text in raw)

    def _probabilities(self, text: bytes) -> np.ndarray:
        """p(byte | context) of every byte, shape (len(text),), float64."""
        target = np.frombuffer(text, dtype=np.uint8).astype(np.int64)
        p = np.full(len(target), 1 / 256)
        for n, table in enumerate(self.counts, start=1):
            # Bytes with fewer than n - 1 predecessors keep the shorter order's estimate.
            code = _codes(text, n)
            context, tail = code >> 8, slice(n - 1, None)
            seen, kinds = self.seen[n - 1][context], self.kinds[n - 1][context]
            mixed = (table[context, target[tail]] + kinds * p[tail]) / np.maximum(seen + kinds, 1)
            p[tail] = np.where(seen > 0, mixed, p[tail])
        return p


def _codes(text: bytes, n: int) -> np.ndarray:
    """Every n-gram of the text as one number in base 256, oldest byte first, shape (max(0, len - n + 1),)."""
    data = np.frombuffer(text, dtype=np.uint8).astype(np.int64)
    size = max(0, len(data) - n + 1)
    code = np.zeros(size, dtype=np.int64)
    for i in range(n):
        code = code * 256 + data[i : i + size]
    return code
