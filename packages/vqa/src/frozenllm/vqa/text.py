"""Text: RoBERTa's tokenizer, and batches that are no longer than their longest text."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import default_collate

from frozenllm.core.weights.hub import check_hub
from frozenllm.vqa.toy import write_encoders

logger = logging.getLogger(__name__)

TOY = "toy"


class TextTokens:
    """Token ids of texts, all of one length.

    Args:
        source: A folder or hub repository with a fast tokenizer.
        max_length: Tokens of a text, those at its ends included. A longer one is cut, which is logged once.

    Raises:
        ValueError: There is no such tokenizer.
    """

    def __init__(self, source: str, max_length: int) -> None:
        from transformers import AutoTokenizer

        local = Path(source).expanduser()
        if not local.is_dir():
            check_hub(source)
        try:
            tokenizer = AutoTokenizer.from_pretrained(str(local) if local.is_dir() else source)
            self._backend = tokenizer.backend_tokenizer
        except (OSError, ValueError, AttributeError) as error:
            first = str(error).strip().splitlines()[0].removesuffix(".")
            raise ValueError(f"A fast tokenizer cannot be read from {source}: {first}.") from error
        if max_length < 3:
            raise ValueError(f"max_length must leave room for a word, not be {max_length}.")
        self._backend.no_truncation()
        self._backend.no_padding()
        self.padding = int(tokenizer.pad_token_id)
        self.end = int(tokenizer.eos_token_id)
        self.max_length = max_length
        self._warned = False

    def __call__(self, text: str) -> tuple[Tensor, Tensor]:
        """Ids (max_length,) int64, and where they are no padding (max_length,) bool."""
        ids = self._backend.encode(text).ids
        if len(ids) > self.max_length:
            if not self._warned:
                logger.warning(
                    "A text of %d tokens is cut to %d, and so will be others: %s", len(ids), self.max_length, text[:80]
                )
                self._warned = True
            ids = [*ids[: self.max_length - 1], self.end]
        padded = torch.full((self.max_length,), self.padding)
        padded[: len(ids)] = torch.tensor(ids)
        return padded, torch.arange(self.max_length) < len(ids)


def collate(samples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """A batch of samples as `frozenllm.vqa.data` makes them.

    Texts are cut to the longest of the batch: what they lose is padding. Entries beside ``inputs`` and ``targets`` stay
    lists, one entry per sample. Of a gallery, which all samples share, one copy is kept.
    """
    inputs = [dict(sample["inputs"]) for sample in samples]
    gallery = {key: inputs[0][key] for key in ("gallery_ids", "gallery_mask") if key in inputs[0]}
    batch = default_collate([{k: v for k, v in entry.items() if k not in gallery} for entry in inputs]) | gallery
    for ids, mask in (("input_ids", "attention_mask"), ("gallery_ids", "gallery_mask")):
        if ids in batch:
            length = int(batch[mask].sum(-1).max())
            batch[ids], batch[mask] = batch[ids][..., :length], batch[mask][..., :length]
    others = {key: [sample[key] for sample in samples] for key in samples[0] if key not in ("inputs", "targets")}
    return {"inputs": batch, "targets": default_collate([sample["targets"] for sample in samples]), **others}


def tokenizer_source(source: str) -> str:
    """A tokenizer's source as it stands, or the folder that ``"toy"`` means."""
    return str(write_encoders() / "roberta") if source == TOY else source
