"""The learning rate of every epoch of the ImageNet recipes, against the official code's curve."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from timm.scheduler import CosineLRScheduler

from frozenllm.core.training import compose_config
from frozenllm.core.training.composition import resolve
from frozenllm.core.training.registry import PARAM_SCHEDULERS
from frozenllm.core.training.run import train
from frozenllm.core.training.schedule import WarmupSchedule
from frozenllm.core.training.settings import engine_settings
from frozenllm.vision2d.train import CONFIG

RECIPES = {f"imagenet_vit_{size}{tail}": 300 for size in ("tiny", "small", "base") for tail in ("", "_llama")}
RECIPES |= {"imagenet_vit_small_100ep": 100, "imagenet_vit_small_llama_100ep": 100}


def official_rates(epochs: int, batch: int = 256, processes: int = 4, warmup_epochs: int = 20) -> list[float]:
    """What the official main.py trains each epoch with: 5e-4 at 512, the scheduler stepped after the epoch."""
    base = 5e-4 * batch * processes / 512.0
    optimizer = torch.optim.AdamW([torch.zeros(1, requires_grad=True)], lr=base)
    scheduler = CosineLRScheduler(
        optimizer, t_initial=epochs, lr_min=1e-5, warmup_t=warmup_epochs, warmup_lr_init=1e-6, cycle_limit=1
    )
    rates = []
    for epoch in range(epochs):
        rates.append(optimizer.param_groups[0]["lr"])
        scheduler.step(epoch)
    return rates


def engine_rates(recipe: str, processes: int = 4, epoch_length: int = 3) -> list[list[float]]:
    """Rates that the engine's own scheduler sets, for every iteration of every epoch."""
    cfg = resolve(compose_config(CONFIG, [f"recipe={recipe}", "data.root=unused"]))
    settings = engine_settings(cfg, "unused", torch.device("cuda"), "ddp", processes)
    entry = dict(settings["param_scheduler"][0])
    assert entry.pop("type") == WarmupSchedule.__name__
    assert entry.pop("convert_to_iter_based")
    parameter = torch.zeros(1, requires_grad=True)
    optimizer = torch.optim.AdamW([parameter], lr=settings["optim_wrapper"]["optimizer"]["lr"])
    scheduler = PARAM_SCHEDULERS.get("WarmupSchedule").build_iter_from_epoch(
        optimizer=optimizer, epoch_length=epoch_length, **entry
    )
    rates = []
    for _ in range(settings["train_cfg"]["max_epochs"]):
        rates.append([])
        for _ in range(epoch_length):
            rates[-1].append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            scheduler.step()
    return rates


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_epochs_rate_is_the_official_codes(recipe: str) -> None:
    expected = official_rates(RECIPES[recipe])
    got = engine_rates(recipe)
    assert len(got) == len(expected) == RECIPES[recipe]
    assert all(len(set(epoch)) == 1 for epoch in got)  # it changes between epochs only
    assert [epoch[0] for epoch in got] == pytest.approx(expected, rel=1e-12)
    # The official code's habits, written out: two epochs at the start value, a peak below 1e-3, an end above 1e-5.
    assert expected[0] == expected[1] == 1e-6
    assert expected[19] < max(expected[20:22]) == max(expected) < 1e-3
    assert expected[-1] > 1e-5


def test_a_run_trains_with_these_rates(tmp_path: Path, digits_root: Path) -> None:
    """What the engine reports of a real run: the same curve, shortened."""
    from tinydomain.helpers import history

    overrides = ["recipe=digits", "llm=none", "schedule=deit", "schedule.epochs=8", "schedule.warmup_epochs=3",
                 "optim.lr=5e-4", "optim.lr_batch=512", "data.batch_size=512", "schedule.warmup_lr=1e-6",
                 "schedule.min_lr=1e-5", "model.depth=1", "model.embed_dim=16", "runtime.val_interval=8",
                 f"data.root={digits_root}", f"runs={tmp_path}", "runtime.console=false",
                 "runtime.plots=false"]  # fmt: skip
    lines = history(train(compose_config(CONFIG, overrides)).run_dir)
    rates = {line["epoch"]: line["lr"] for line in lines if line["kind"] == "train"}
    expected = official_rates(8, batch=512, processes=1, warmup_epochs=3)
    assert list(rates.values()) == pytest.approx(expected, rel=1e-9)
    assert list(rates) == list(range(1, 9))
