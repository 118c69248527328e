"""The training loss, against the definition written out for one sample at a time."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from frozenllm.motion.task import MotionTask, laplace_nll, winning_mode


def outputs_and_targets(seed: int, modes: int = 3, steps: int = 5) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    draw = torch.Generator().manual_seed(seed)
    valid = torch.rand(4, steps, generator=draw) < 0.6
    valid[0] = True
    outputs = {
        "trajectories": torch.randn(4, modes, steps, 2, generator=draw, requires_grad=True),
        "scales": (torch.rand(4, modes, steps, 2, generator=draw) + 0.1).requires_grad_(),
        "logits": torch.randn(4, modes, generator=draw, requires_grad=True),
    }
    return outputs, {"future": 2 * torch.randn(4, steps, 2, generator=draw), "valid": valid}


def by_hand(outputs: dict[str, Tensor], targets: dict[str, Tensor], regression: str, beta: float) -> dict[str, Tensor]:
    fits, entropies = [], []
    for b in range(4):
        known = targets["valid"][b].nonzero().flatten().tolist()
        if not known:
            continue
        last = known[-1]
        ends = [(outputs["trajectories"][b, k, last] - targets["future"][b, last]).norm() for k in range(3)]
        best = min(range(3), key=lambda k: float(ends[k].detach()))
        steps = []
        for t in known:
            error = (outputs["trajectories"][b, best, t] - targets["future"][b, t]).abs()
            if regression == "smooth_l1":
                error = torch.where(error < beta, error**2 / (2 * beta), error - beta / 2)
            else:
                scale = outputs["scales"][b, best, t]
                error = -torch.distributions.Laplace(outputs["trajectories"][b, best, t], scale).log_prob(
                    targets["future"][b, t]
                )
            steps.append(error.sum())
        fits.append(sum(steps) / len(steps))
        entropies.append(-outputs["logits"][b].log_softmax(dim=0)[best])
    return {"loss_regression": sum(fits) / len(fits), "loss_classification": 0.5 * sum(entropies) / len(entropies)}


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10_000), regression=st.sampled_from(["smooth_l1", "laplace"]))
def test_loss_is_as_defined(seed: int, regression: str) -> None:
    outputs, targets = outputs_and_targets(seed)
    task = MotionTask(nn.Identity(), regression=regression, beta=0.7, classification_weight=0.5)
    loss, wanted = task.loss(outputs, targets), by_hand(outputs, targets, regression, 0.7)
    assert loss.keys() == wanted.keys()
    for name in wanted:
        torch.testing.assert_close(loss[name], wanted[name])
    grads = [
        torch.autograd.grad(sum(losses.values()), list(outputs.values()), allow_unused=True)
        for losses in (loss, wanted)
    ]
    for a, b in zip(*grads, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            torch.testing.assert_close(a, b)


def test_what_is_not_known_does_not_matter() -> None:
    outputs, targets = outputs_and_targets(0)
    task = MotionTask(nn.Identity())
    noise = torch.where(targets["valid"][..., None], targets["future"], float("nan"))
    for name, value in task.loss(outputs, {**targets, "future": noise}).items():
        torch.testing.assert_close(value, task.loss(outputs, targets)[name])


def test_a_batch_without_any_future_has_no_loss() -> None:
    outputs, targets = outputs_and_targets(0)
    loss = MotionTask(nn.Identity()).loss(outputs, {**targets, "valid": torch.zeros(4, 5, dtype=torch.bool)})
    assert {value.item() for value in loss.values()} == {0.0}
    sum(loss.values()).backward()
    assert not outputs["trajectories"].grad.any()


def test_the_winner_is_the_nearest_at_the_last_known_step() -> None:
    trajectories = torch.zeros(1, 2, 3, 2)
    trajectories[0, 0, 1], trajectories[0, 1, 2] = torch.tensor([5.0, 0.0]), torch.tensor([9.0, 0.0])
    future = torch.tensor([[[0.0, 0.0], [5.0, 0.0], [9.0, 0.0]]])
    assert winning_mode(trajectories, future, torch.tensor([[True, True, True]])).item() == 1
    assert winning_mode(trajectories, future, torch.tensor([[True, True, False]])).item() == 0
    assert winning_mode(trajectories + 1, future, torch.tensor([[False] * 3])).item() == 0


def test_laplace_is_torchs() -> None:
    mean, target, scale = torch.randn(3, 50).unbind()
    scale = scale.abs() + 0.05
    torch.testing.assert_close(
        laplace_nll(mean, target, scale), -torch.distributions.Laplace(mean, scale).log_prob(target)
    )


def test_predictions_are_one_dict_per_sample() -> None:
    outputs, targets = outputs_and_targets(1)
    outputs = {name: value.detach() for name, value in outputs.items()}
    origin = torch.randn(4, 2, dtype=torch.float64)
    samples = MotionTask(nn.Identity()).predict(outputs, targets, scenario=list("abcd"), origin=origin)
    assert [s["scenario"] for s in samples] == list("abcd")
    assert torch.equal(samples[2]["origin"], origin[2])
    assert samples[2]["origin"].dtype == torch.float64
    torch.testing.assert_close(samples[1]["probabilities"], outputs["logits"][1].softmax(0))
    assert torch.equal(samples[3]["trajectories"], outputs["trajectories"][3])
    assert torch.equal(samples[3]["valid"], targets["valid"][3])


@pytest.mark.parametrize(("options", "words"), [
    ({"regression": "l2"}, "task.regression must be one of smooth_l1, laplace"),
    ({"beta": 0.0}, "task.beta must be positive"),
])  # fmt: skip
def test_wrong_options_give_one_sentence(options: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        MotionTask(nn.Identity(), **options)


def test_what_does_not_fit_gives_one_sentence() -> None:
    outputs, targets = outputs_and_targets(0)
    del outputs["scales"]
    with pytest.raises(ValueError, match=r"model\.scales=true"):
        MotionTask(nn.Identity(), regression="laplace").loss(outputs, targets)
    short = {"future": targets["future"][:, :3], "valid": targets["valid"][:, :3]}
    with pytest.raises(ValueError, match="predicts 5 steps, but the data has 3"):
        MotionTask(nn.Identity()).loss(outputs, short)
