"""What a run of `pretrain_lm.py` is made of. Imports nothing heavy: the command line is built from it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


def _setting(default: float, text: str) -> Any:
    return field(default=default, metadata={"help": text})


@dataclass(frozen=True)
class Settings:
    """What a run is made of; a run folder keeps its settings and refuses others."""

    vocab_size: int = _setting(2048, "tokens of the byte-level BPE, the start token among them")
    hidden_size: int = _setting(256, "width of the model")
    intermediate_size: int = _setting(688, "width of the gated feed-forward network")  # 8/3 of 256, a multiple of 16
    layers: int = _setting(6, "decoder layers")
    head_dim: int = _setting(32, "width of a head")
    window: int = _setting(256, "tokens predicted per row, and the model's number of positions")
    batch_size: int = _setting(8, "rows per step")
    learning_rate: float = _setting(1.5e-3, "peak learning rate")
    final_rate: float = _setting(0.02, "share of the peak learning rate left at the end of the cosine")
    warmup_steps: int = _setting(200, "steps of linear warm-up")
    weight_decay: float = _setting(0.1, "AdamW's decay of all matrices")
    dropout: float = _setting(0.1, "on embeddings and on what each sublayer adds, in training only")
    split_rate: float = _setting(0.1, "share of tokens split, in half of the rows and in each of two rounds")
    eval_every: int = _setting(300, "steps between validations")
    seed: int = _setting(0, "fixes weights, order of windows, dropout and splits")

    def __post_init__(self) -> None:
        if self.hidden_size % self.head_dim:
            raise ValueError(f"hidden_size={self.hidden_size} is not a multiple of head_dim={self.head_dim}.")


SMOKE = Settings(
    vocab_size=288, hidden_size=32, intermediate_size=64, layers=2, head_dim=16, window=32, warmup_steps=2, eval_every=5
)
