"""The training loop of `pretrain_lm.py`: one folder holds a run, and the same call continues it.

The batch, the dropout and the split tokens of step k depend on (seed, k) only, so a run that was killed goes on from
its last checkpoint as if nothing had happened (exactly so with `steps`; with `minutes` the clock sets the rate).
"""

from __future__ import annotations

import json
import math
import signal
import sys
import time
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer
from torch import nn

from bundled_lm.corpus import BOS, Document, Windows, merge_parts
from bundled_lm.files import atomic
from bundled_lm.model import add_dropout, build_model
from bundled_lm.settings import Settings
from frozenllm.core.weights.heldout import sequence_nats

SAVE_SECONDS = 60  # between checkpoints, besides those after each validation
PRINT_STEPS = 50  # between progress lines


def learning_rate(settings: Settings, step: int, progress: float) -> float:
    """Linear warm-up in steps, then a cosine in progress (0 to 1) down to `final_rate` of the peak."""
    cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
    factor = settings.final_rate + (1 - settings.final_rate) * cosine
    return settings.learning_rate * factor * min(1.0, (step + 1) / max(1, settings.warmup_steps))


class Trainer:
    """Model, optimizer, batches and the state that a checkpoint holds."""

    def __init__(self, settings: Settings, documents: list[Document], tokenizer: Tokenizer, run: Path) -> None:
        """Prepares a run, from its last checkpoint where there is one.

        Args:
            settings: what to train.
            documents: the split text.
            tokenizer: trained on the documents' training parts.
            run: existing folder; `last.pt`, `best.safetensors` and `log.jsonl` are written there.
        """
        self.settings, self.run = settings, run
        bos_id = tokenizer.token_to_id(BOS)
        self.validation = [torch.tensor(tokenizer.encode(d.validation).ids) for d in documents]
        self.validation_bytes = sum(len(d.validation.encode("utf-8")) for d in documents)
        self.windows = Windows(
            documents=[torch.tensor(tokenizer.encode(d.train).ids).numpy() for d in documents],
            parts=merge_parts(tokenizer),
            length=settings.window,
            batch_size=settings.batch_size,
            split_rate=settings.split_rate,
            bos_id=bos_id,
            seed=settings.seed,
        )
        self.model = build_model(settings, bos_id)
        add_dropout(self.model, settings.dropout)
        matrices = [p for p in self.model.parameters() if p.ndim > 1]
        gains = [p for p in self.model.parameters() if p.ndim == 1]
        self.optimizer = torch.optim.AdamW(
            [{"params": matrices, "weight_decay": settings.weight_decay}, {"params": gains, "weight_decay": 0.0}],
            lr=settings.learning_rate,
            betas=(0.9, 0.98),
            fused=True,
        )
        self.step, self.seconds, self.best = 0, 0.0, math.inf
        self.losses: list[float] = []  # since the last validation
        if (run / "last.pt").exists():
            saved = torch.load(run / "last.pt", weights_only=True)
            self.model.load_state_dict(saved["model"])
            self.optimizer.load_state_dict(saved["optimizer"])
            self.step, self.seconds = saved["step"], saved["seconds"]
            self.best, self.losses = saved["best"], saved["losses"]
            print(f"continuing at step {self.step}, {self.seconds / 60:.1f} minutes in", flush=True)
        self._drop_later_records()

    def fit(self, minutes: float, steps: int) -> None:
        """Trains until the minutes or the steps (0: no limit) are used up; SIGINT and SIGTERM save and exit.

        The last weights of a run that ends by itself are validated, whatever the step."""
        stop: list[int] = []
        signals = (signal.SIGINT, signal.SIGTERM)
        previous = [signal.signal(number, lambda got, _frame: stop.append(got)) for number in signals]
        tokens = sum(map(len, self.windows.documents))
        size = sum(p.numel() for p in self.model.parameters())
        epoch = self.windows.steps_per_epoch
        print(f"{size:,} parameters, {tokens:,} training tokens, {epoch} steps an epoch", flush=True)
        began, saved_at, rate = time.monotonic() - self.seconds, time.monotonic(), 0.0
        try:
            while not stop:
                by_steps = self.step / steps if steps else 0.0
                progress = max(by_steps, self.seconds / 60 / minutes if minutes else 0.0)
                if progress >= 1:
                    break
                rate = learning_rate(self.settings, self.step, progress)
                self.losses.append(self._update(rate))
                self.step += 1
                self.seconds = time.monotonic() - began
                if self.step % self.settings.eval_every == 0:
                    self._validate(rate)
                    self.seconds = time.monotonic() - began
                    self._save()
                elif time.monotonic() - saved_at > SAVE_SECONDS:
                    saved_at = time.monotonic()
                    self._save()
                if self.step % PRINT_STEPS == 0 and progress > 0 and self.losses:
                    recent = self.losses[-PRINT_STEPS:]
                    left = self.seconds * (1 / progress - 1) / 60
                    print(
                        f"step {self.step}, epoch {self.step / epoch:.1f}, "
                        f"loss {sum(recent) / len(recent):.3f} nats per token, {left:.1f} minutes left",
                        flush=True,
                    )
            if self.losses and not stop:
                self._validate(rate)
            self._save()
        finally:
            for number, handler in zip(signals, previous, strict=True):
                signal.signal(number, handler)
        if stop:
            sys.exit("Stopped and saved; the same command goes on from here.")

    def _update(self, rate: float) -> float:
        """One optimizer step; returns the mean loss in nats per token."""
        self.model.train()
        torch.manual_seed(self.settings.seed * 1_000_003 + self.step)  # dropout
        rows = torch.from_numpy(self.windows.batch(self.step))
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        with torch.autocast("cpu", torch.bfloat16):
            logits = self.model(input_ids=rows[:, :-1], use_cache=False).logits
        loss = nn.functional.cross_entropy(logits.float().flatten(0, 1), rows[:, 1:].flatten())
        if not torch.isfinite(loss):
            raise ValueError(f"The loss is {loss.item()} at step {self.step}; lower --learning-rate.")
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss.item()

    def _validate(self, rate: float) -> None:
        """Measures bits per byte of the validation text, logs it, and keeps the weights if they are the best so far."""
        window = self.settings.window
        self.model.eval()
        with torch.autocast("cpu", torch.bfloat16):  # for speed; exported figures are float32
            nats = sum(
                sequence_nats(self.model, ids, self.windows.bos_id, window, max(1, window * 3 // 4))
                for ids in self.validation
            )
        bits = nats / math.log(2) / self.validation_bytes
        if bits < self.best:
            self.best = bits
            with atomic(self.run / "best.safetensors") as draft:
                save_file(self.model.model.state_dict(), draft)  # without the head, which is the embedding
        loss = sum(self.losses) / len(self.losses)
        record = {"step": self.step, "seconds": round(self.seconds, 1), "learning_rate": rate}
        record |= {"train_nats_per_token": loss, "validation_bits_per_byte": bits}
        with (self.run / "log.jsonl").open("a", encoding="utf-8") as log:
            log.write(json.dumps(record) + "\n")
        print(f"step {self.step}: validation {bits:.4f} bits per byte, best {self.best:.4f}", flush=True)
        self.losses = []

    def _save(self) -> None:
        state = {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict(), "losses": self.losses}
        with atomic(self.run / "last.pt") as draft:
            torch.save(state | {"step": self.step, "seconds": self.seconds, "best": self.best}, draft)

    def _drop_later_records(self) -> None:
        """Removes from the log what a killed run wrote after its last checkpoint: it is about to come again."""
        path = self.run / "log.jsonl"
        if path.exists():
            lines = path.read_text(encoding="utf-8").splitlines()
            kept = [line for line in lines if json.loads(line)["step"] <= self.step]
            with atomic(path) as draft:
                draft.write_text("".join(line + "\n" for line in kept), encoding="utf-8")
