"""Bits per byte of a causal language model on a text.

The figure is defined so that models with different tokenizers, and byte-level n-grams, can be compared:

    bits per byte = (sum over the text's tokens of -ln p(token | context)) / ln 2 / (number of UTF-8 bytes)

where, for a text tokenized as t_1 ... t_n (no special tokens added by the tokenizer):

* every window the model sees starts with the beginning-of-sequence token, which is never predicted itself;
* the first window predicts t_1 ... t_W (W = `window`), so the first token is predicted from the start token alone;
* each later window moves on by S = `stride` tokens, sees W tokens and scores only the S newest, so that every scored
  token but those of the first window has at least W - S tokens of context. Each token is scored exactly once.

Several texts are independent documents: their nats and their bytes are summed before dividing.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import nn


def sequence_nats(
    model: nn.Module, ids: torch.Tensor, bos_id: int, window: int = 256, stride: int = 128, batch_size: int = 16
) -> float:
    """Total negative log-likelihood of one token sequence, by sliding windows (see the module's definition).

    Args:
        model: causal language model in the layout of transformers, called as `model(input_ids=...)`; it is evaluated
            in the mode and under the autocast it is given in.
        ids: token ids of one document, without a start token, shape (n,), int64.
        bos_id: id of the start token put in front of every window.
        window: tokens predicted from within one window, at most the model's number of positions.
        stride: tokens scored by each window after the first, 1 to `window`.
        batch_size: windows per forward pass.

    Returns:
        The sum of -ln p over all n tokens, in nats.
    """
    import torch

    if not 1 <= stride <= window:
        raise ValueError(f"stride must lie between 1 and window={window}, got {stride}.")
    count = ids.numel()
    length = min(window, count)
    spans = [(0, length)]  # (first token scored, end of the window)
    while spans[-1][1] < count:
        scored = spans[-1][1]
        spans.append((scored, min(scored + stride, count)))

    total = 0.0
    with torch.inference_mode():
        for first in range(0, len(spans), batch_size):
            part = spans[first : first + batch_size]
            # A last, shorter step still sees a full window: it reaches further back. All rows have one length.
            targets = torch.stack([ids[end - length : end] for _, end in part])
            start = torch.full((len(part), 1), bos_id, dtype=targets.dtype)
            logits = model(input_ids=torch.cat([start, targets[:, :-1]], dim=1), use_cache=False).logits
            nats = torch.nn.functional.cross_entropy(logits.float().transpose(1, 2), targets, reduction="none")
            for row, (scored, end) in zip(nats, part, strict=True):
                total += row[length - (end - scored) :].double().sum().item()
    return total


def bits_per_byte(
    directory: str | Path,
    texts: str | Sequence[str],
    window: int | None = None,
    stride: int | None = None,
    batch_size: int = 16,
) -> float:
    """Bits per byte of the model in a transformers-layout directory, computed in float32 on the CPU.

    Args:
        directory: holds `config.json`, the weights and `tokenizer.json`; the config names `bos_token_id`.
        texts: one text, or several independent documents.
        window: tokens per window; the model's number of positions by default.
        stride: tokens scored per later window; half a window by default.
        batch_size: windows per forward pass.

    Returns:
        Bits per UTF-8 byte, as the module defines it.
    """
    directory = Path(directory)
    for name in ("config.json", "tokenizer.json"):
        if not (directory / name).is_file():
            raise ValueError(f"{directory} has no {name}; a transformers-layout model directory is needed.")
    texts = [texts] if isinstance(texts, str) else list(texts)
    size = sum(len(text.encode("utf-8")) for text in texts)
    if size == 0:
        raise ValueError("Bits per byte needs a text that is not empty.")
    config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    bos_id = config.get("bos_token_id")
    if bos_id is None:
        raise ValueError(f"{directory / 'config.json'} names no bos_token_id, which every window starts with.")

    import torch
    from tokenizers import Tokenizer
    from transformers import AutoModelForCausalLM

    tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    window = window or config["max_position_embeddings"]
    stride = stride or max(1, window // 2)
    nats = 0.0
    for text in texts:
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        if ids:
            nats += sequence_nats(model, torch.tensor(ids), bos_id, window, stride, batch_size)
    return nats / math.log(2) / size
