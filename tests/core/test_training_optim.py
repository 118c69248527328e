"""Parameter groups against a table written by hand, schedules against timm and closed forms."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from mmengine.optim.optimizer import amp_optimizer_wrapper
from tinydomain.helpers import read, run
from tinydomain.train import CONFIG, Host

from frozenllm.core.training import compose_config, param_groups
from frozenllm.core.training.optim import ScaledOptimWrapper
from frozenllm.core.training.schedule import WarmupSchedule, schedule_factor
from frozenllm.core.training.settings import scaled_lr

SPEC = dict(hidden_size=32, num_heads=4, num_kv_heads=2, head_dim=8, intermediate_size=48)


def table(groups: list[dict]) -> dict[str, tuple[float, float]]:
    """Name -> (learning rate, weight decay)."""
    return {name: (group["lr"], group["weight_decay"]) for group in groups for name in group["names"]}


@pytest.mark.parametrize("trainable", [False, True])
def test_param_groups_table(trainable: bool) -> None:
    model = Host(llm={"kind": "random", "spec": SPEC, "trainable": trainable})
    options = dict(layer_decay=0.5, adapter_lr_mult=3.0, no_decay=["pos_embed"])
    got = table(param_groups(model, lr=1.0, weight_decay=0.05, **options))
    expected = {
        "pos_embed": (0.125, 0.0),  # listed, though it has three dimensions
        "patch_embed.weight": (0.125, 0.05),
        "patch_embed.bias": (0.125, 0.0),
        "blocks.0.0.weight": (0.25, 0.05),
        "blocks.0.0.bias": (0.25, 0.0),
        "blocks.1.0.weight": (0.5, 0.05),
        "blocks.1.0.bias": (0.5, 0.0),
        "llm.adapter_in.weight": (3.0, 0.05),
        "llm.adapter_out.weight": (3.0, 0.05),
        "norm.weight": (1.0, 0.0),
        "norm.bias": (1.0, 0.0),
        "head.weight": (1.0, 0.05),
        "head.bias": (1.0, 0.0),
    }
    inserted = {name: value for name, value in got.items() if name.startswith("llm.block.")}
    assert {k: v for k, v in got.items() if k not in inserted} == expected
    # The block's own layers are none of the host's: no layer decay, though their names say "layers.0".
    assert bool(inserted) == trainable
    assert all(lr == 1.0 and decay in (0.0, 0.05) for lr, decay in inserted.values())


def test_param_groups_exceptions() -> None:
    """The official point cloud code's three groups: decayed, undecayed at a tenth, adapters at half without decay."""
    model = Host(llm={"kind": "random", "spec": SPEC})
    groups = [{"match": r"adapter_", "lr_mult": 0.5, "weight_decay": 0.0}, {"match": "adapter|head", "lr_mult": 9.0}]
    got = table(param_groups(model, 5e-4, 0.05, no_decay=["pos_embed"], no_decay_lr_mult=0.1, groups=groups))
    assert got["llm.adapter_in.weight"] == got["llm.adapter_out.weight"] == (2.5e-4, 0.0)
    assert got["head.weight"] == (9.0 * 5e-4, 0.05)
    assert got["head.bias"] == (9.0 * 5e-4, 0.0)
    assert got["blocks.0.0.weight"] == (5e-4, 0.05)
    assert got["norm.weight"] == got["blocks.0.0.bias"] == got["pos_embed"] == (5e-4 * 0.1, 0.0)
    with pytest.raises(ValueError, match=r"optim\.groups has match, lr_mult and weight_decay"):
        param_groups(model, 1.0, 0.0, groups=[{"pattern": "head"}])
    with pytest.raises(ValueError, match=r"optim\.groups: '\(' is not a regular expression"):
        param_groups(model, 1.0, 0.0, groups=[{"match": "("}])


def test_param_groups_without_options_and_without_parameters() -> None:
    model = Host()
    got = table(param_groups(model, lr=0.1, weight_decay=0.2))
    assert {lr for lr, _ in got.values()} == {0.1}
    assert len(got) == len(list(model.parameters()))
    model.head.weight.requires_grad_(False)
    assert "head.weight" not in table(param_groups(model, lr=0.1, weight_decay=0.2))
    with pytest.raises(ValueError, match="no trainable parameters"):
        param_groups(model.requires_grad_(False), lr=0.1, weight_decay=0.2)


def rates(schedule: dict, epochs: int, epoch_length: int = 1) -> list[float]:
    """Learning rate of every iteration, from base 1."""
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=1.0)
    scheduler = WarmupSchedule(optimizer, epoch_length=epoch_length, epochs=epochs, **schedule)
    out = []
    for _ in range(epochs * epoch_length):
        out.append(optimizer.param_groups[0]["lr"])
        scheduler.step()
    return out


def test_deit_schedule_equals_timm_stepped_after_each_epoch() -> None:
    timm_scheduler = pytest.importorskip("timm.scheduler")
    base, warmup_lr, min_lr, epochs = 1e-3, 1e-6, 1e-5, 30
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=base)
    reference = timm_scheduler.CosineLRScheduler(
        optimizer, t_initial=epochs, lr_min=min_lr, warmup_t=5, warmup_lr_init=warmup_lr
    )
    expected = []
    for epoch in range(epochs):
        expected.append(optimizer.param_groups[0]["lr"])
        reference.step(epoch)
    shape = dict(shape="cosine", warmup=5, start=warmup_lr / base, end=min_lr / base)
    got = rates(shape | dict(shift=False, per_epoch=True, delay=1), epochs, epoch_length=3)
    assert expected[0] == expected[1] == warmup_lr
    assert got[::3] == got[1::3] == got[2::3]
    assert [base * factor for factor in got[::3]] == pytest.approx(expected, rel=1e-12)


def test_schedule_shapes() -> None:
    cosine = rates(dict(shape="cosine", warmup=1, start=0.1, end=0.2), epochs=5, epoch_length=10)
    assert cosine[0] == pytest.approx(0.1)
    assert cosine[10] == pytest.approx(1.0)
    assert cosine[30] == pytest.approx(0.6)  # half way from 1 to 0.2
    assert cosine[-1] == pytest.approx(0.2 + 0.8 * 0.5 * (1 + math.cos(math.pi * 39 / 40)))
    linear = rates(dict(shape="linear", end=0.0), epochs=4)
    assert linear == pytest.approx([1, 0.75, 0.5, 0.25])
    steps = rates(dict(shape="step", milestones=[2, 3], gamma=0.5), epochs=4)
    assert steps == [1, 1, 0.5, 0.25]
    assert rates(dict(shape="constant", warmup=2), epochs=4) == [0, 0.5, 1, 1]
    assert schedule_factor(99, epochs=10) == 0.0  # past the end: the last value
    with pytest.raises(ValueError, match=r"schedule\.shape must be one of"):
        rates(dict(shape="triangle"), epochs=2)
    with pytest.raises(ValueError, match="must be shorter than the run"):
        rates(dict(shape="cosine", warmup=2), epochs=2)


def test_gradient_scaling_leaves_autocast_to_the_task(monkeypatch: pytest.MonkeyPatch) -> None:
    """Losses are computed outside of it, whatever the precision."""
    monkeypatch.setattr(amp_optimizer_wrapper, "is_cuda_available", lambda: True)
    model = Host()
    wrapper = ScaledOptimWrapper(dtype="bfloat16", optimizer=torch.optim.SGD(model.parameters(), lr=0.1))
    with wrapper.optim_context(model):
        assert not torch.is_autocast_enabled("cpu")


def test_linear_scaling_and_group_rates_reach_the_optimizer(tmp_path: Path) -> None:
    overrides = ["optim.lr=0.4", "optim.lr_batch=32", "optim.layer_decay=0.5", "optim.adapter_lr_mult=2"]
    cfg = compose_config(CONFIG, overrides)
    assert scaled_lr(cfg, world_size=1) == pytest.approx(0.1)
    assert scaled_lr(cfg, world_size=8) == pytest.approx(0.8)
    result = run(tmp_path, *overrides, "runtime.stop_after=2", "schedule=constant", "schedule.warmup_epochs=0")
    saved = read(Path(result.run_dir) / "checkpoints" / "last.pt")["optimizer"]["param_groups"]
    by_name = {name: group["lr"] for group in saved for name in group["names"]}
    assert by_name["head.weight"] == pytest.approx(0.1)
    assert by_name["blocks.0.0.weight"] == pytest.approx(0.025)
    assert by_name["llm.adapter_in.weight"] == pytest.approx(0.2)
