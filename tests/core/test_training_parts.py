"""Samplers, seeds, the moving average, and the switches that wrap the model."""

from __future__ import annotations

import random
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from tinydomain.helpers import read, run
from tinydomain.train import CONFIG, Host, Mix, Points

from frozenllm.core.training import ClassificationTask, build_model, compose_config
from frozenllm.core.training import data as data_module
from frozenllm.core.training.data import EpochSampler, SeededDataset
from frozenllm.core.training.ema import EMA
from frozenllm.core.training.registry import MODELS
from frozenllm.core.training.seeding import derive_seed
from frozenllm.core.training.sync_bn import synchronize_batch_norm


def ranks(world: int, **options: object) -> list[EpochSampler]:
    """The samplers of all processes, over 23 samples."""
    samplers = []
    for rank in range(world):
        with mock.patch.object(data_module, "get_dist_info", lambda rank=rank: (rank, world)):
            samplers.append(EpochSampler(range(23), seed=1, **options))
    return samplers


def test_processes_share_one_order() -> None:
    (alone,) = ranks(1, batch_size=8, drop_last=True)
    both = ranks(2, batch_size=4, drop_last=True)
    for epoch in (0, 1):
        for sampler in (alone, *both):
            sampler.set_epoch(epoch)
        order, parts = list(alone), [list(sampler) for sampler in both]
        assert len(order) == 16 == 2 * len(parts[0])
        for batch in range(2):
            together = {key for part in parts for key in part[4 * batch : 4 * batch + 4]}
            assert together == set(order[8 * batch : 8 * batch + 8])
        assert {key[0] for key in order} == {epoch}
    alone.set_epoch(0)
    first = [index for _, index, _ in alone]
    assert first != [index for _, index, _ in order]
    assert len(set(first)) == 16


def test_sampler_starts_in_mid_epoch() -> None:
    (sampler,) = ranks(1, batch_size=4, drop_last=True)
    whole = list(sampler)
    sampler.set_epoch(0, start=8)
    assert list(sampler) == whole[8:]
    assert len(sampler) == len(whole)


def test_evaluation_order_pads_at_its_end() -> None:
    parts = [[index for _, index, _ in sampler] for sampler in ranks(4, shuffle=False)]
    dealt = [index for turn in zip(*parts, strict=True) for index in turn]
    assert dealt == [*range(23), 0]


def test_repeated_augmentation_draws_each_copy_differently() -> None:
    parts = ranks(2, batch_size=3, drop_last=True, repeats=3)
    dealt = [key for turn in zip(*(list(p) for p in parts), strict=True) for key in turn]
    assert len(dealt) == 18
    assert len({index for _, index, _ in dealt}) == 6
    assert len(set(dealt)) == 18  # the same sample comes with another number, which seeds its augmentation


def test_too_little_data_is_one_sentence() -> None:
    with pytest.raises(ValueError, match=r"23 samples, but one update takes 48 \(data.batch_size 12 x 2 process"):
        ranks(2, batch_size=12, accumulate=2, drop_last=True)
    with pytest.raises(ValueError, match=r"drop_last=true"):
        ranks(1, accumulate=2)
    with pytest.raises(ValueError, match="The data set for val is empty"):
        SeededDataset([], seed=0, role="val")


def test_augmentation_is_a_function_of_seed_epoch_and_sample() -> None:
    dataset = SeededDataset(Points(8, augment=True), seed=3, role="train")
    first = dataset[0, 5, 0]["inputs"]
    for draws in (torch.rand, np.random.rand, lambda n: [random.random() for _ in range(n)]):
        draws(7)
    assert torch.equal(dataset[0, 5, 0]["inputs"], first)
    others = [dataset[1, 5, 0], dataset[0, 5, 1], SeededDataset(Points(8, augment=True), seed=4, role="train")[0, 5, 0]]
    assert not any(torch.equal(other["inputs"], first) for other in others)
    assert len({derive_seed(1, 23), derive_seed(12, 3), derive_seed(1, 2, 3)}) == 3


def test_only_the_first_batch_of_a_mode_is_put_into_a_sentence() -> None:
    """A mistake in a program that has worked keeps its type."""
    task, targets = ClassificationTask(torch.nn.Linear(4, 2)), torch.tensor([0, 1])
    with pytest.raises(ValueError, match=r"The model cannot take the first batch \(mat1 and mat2 shapes cannot be"):
        task(torch.ones(2, 3), targets, mode="loss")
    task(torch.ones(2, 4), targets, mode="loss")
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        task(torch.ones(2, 3), targets, mode="loss")
    with pytest.raises(ValueError, match="cannot take the first batch"):
        task(torch.ones(2, 3), targets, mode="predict")


def test_soft_targets_and_batch_transform_only_in_training() -> None:
    task = ClassificationTask(Host(), batch_transform={"type": "Mix"}, label_smoothing=0.1)
    x, y = torch.randn(4, 6, 8), torch.tensor([0, 1, 2, 3])
    np.random.seed(0)
    mixed, soft = Mix()(x, y)
    task.eval()
    plain = task(x, y, mode="loss")["loss"]
    expected = torch.nn.functional.cross_entropy(task.model(x), y, label_smoothing=0.1)
    torch.testing.assert_close(plain, expected)
    task.train()
    task.model.eval()  # dropout off
    np.random.seed(0)
    loss = task(x, y, mode="loss")["loss"]
    by_hand = -(soft * task.model(mixed).log_softmax(-1)).sum(-1).mean()
    torch.testing.assert_close(loss, by_hand)
    predictions = task(x, y, mode="predict")
    assert [p["target"] for p in predictions] == [0, 1, 2, 3]
    torch.testing.assert_close(torch.stack([p["scores"] for p in predictions]), task(x))


def test_moving_average_by_hand_and_without_buffers(tmp_path: Path) -> None:
    common = ["model.norm=batch", "runtime.checkpoint.every_iters=1", "runtime.checkpoint.keep=9"]
    result = run(tmp_path, *common, "optim.ema={decay:0.75,evaluate:raw}", "runtime.stop_after=4")
    steps = [read(p) for p in sorted((Path(result.run_dir) / "checkpoints").glob("iter*"))]
    assert len(steps) == 4
    averages = [step["ema"] for step in steps]
    assert not any("running" in name or "extra_state" in name for name in averages[0])
    for before, after, live in zip(averages, averages[1:], (step["state_dict"] for step in steps[1:]), strict=False):
        for name, value in after.items():
            torch.testing.assert_close(value, 0.75 * before[name] + 0.25 * live[name])


def test_moving_average_changes_places_and_back() -> None:
    model = Host()
    runner = mock.Mock(model=model)
    hook = EMA(decay=0.5, evaluate="ema")
    hook.before_train(runner)
    average = {name: value.clone() for name, value in hook.average.items()}
    with torch.no_grad():
        for p in model.parameters():
            p.add_(1)
    live = {name: p.detach().clone() for name, p in model.named_parameters()}
    hook.before_val_epoch(runner)
    assert all(torch.equal(p, average[name]) for name, p in model.named_parameters())
    hook.after_val_epoch(runner)
    assert all(torch.equal(p, live[name]) for name, p in model.named_parameters())
    assert all(torch.equal(value, average[name]) for name, value in hook.average.items())


def test_synchronised_batchnorm_is_refused_where_a_layer_does_more() -> None:
    class WithActivation(torch.nn.BatchNorm1d):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x).relu()

    for device in ("cpu", "cuda"):
        with pytest.raises(ValueError, match="cannot synchronise 0: a WithActivation does more than a BatchNorm"):
            synchronize_batch_norm(torch.nn.Sequential(WithActivation(4)), torch.device(device))


def test_compile_switch_keeps_names(tmp_path: Path) -> None:
    result = run(tmp_path, "runtime.stop_after=2")
    names = set(read(Path(result.run_dir) / "checkpoints" / "last.pt")["state_dict"])
    compiled = run(tmp_path, "name=compiled", "runtime.compile={backend:eager}", "schedule.epochs=2")
    state = read(Path(compiled.run_dir) / "checkpoints" / "last.pt")["state_dict"]
    assert set(state) == names
    assert compiled.metrics["accuracy/top1"] > 50


def test_model_options_win_over_the_llm_group() -> None:
    cfg = compose_config(CONFIG, ["+model.llm.output_norm=none", "llm.output_norm=unit"])
    assert build_model(cfg).llm.output_norm == "none"
    assert build_model(compose_config(CONFIG, ["llm=none", "~llm.spec"])).llm is None


def test_taken_names_are_refused() -> None:
    MODELS.register_module("Host", module=Host)  # the same again: no error
    with pytest.raises(ValueError, match=r"name 'Host' is taken by tinydomain\.train\.Host"):
        MODELS.register_module("Host", module=Mix)


def test_tensorboard_writes_events(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    result = run(tmp_path, "runtime.tensorboard=true", "schedule.epochs=2")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(Path(result.run_dir) / "tensorboard"))
    events.Reload()
    assert [event.step for event in events.Scalars("val/accuracy/top1")] == [12, 24]
