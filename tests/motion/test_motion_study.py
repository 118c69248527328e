"""The information-filtering study of motion runs: driven lanes, figures by definition, files, the host alone."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from studies import TAPS, gone, one, short_runs
from torch import Tensor

from frozenllm.core.analysis.relevance import auroc
from frozenllm.core.analysis.study import Study, read_study
from frozenllm.core.study import HOST, LAYER, WEIGHTS, read_studied, validation_data
from frozenllm.motion import study as motion_study
from frozenllm.motion.driven import driven_lanes
from frozenllm.motion.models import MMTransformer
from frozenllm.motion.pictures import activations
from frozenllm.motion.scene import LANE_ATTRIBUTES
from frozenllm.motion.testing import random_inputs
from frozenllm.motion.toy import write_toy_argoverse2
from frozenllm.motion.train import CONFIG

TOY = {"train": 6, "val": 4, "test": 1}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_toy_argoverse2(tmp_path_factory.mktemp("study") / "traffic", **TOY)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, root: Path) -> dict[str, Path]:
    """Two runs of four steps."""
    wanted = ["recipe=traffic", f"data.root={root}", "data.batch_size=2"]
    wanted += [f"data.toy.{name}={value}" for name, value in TOY.items()]
    return short_runs(CONFIG, [*wanted, f"runs={tmp_path_factory.mktemp('runs')}"])


@pytest.fixture(scope="module")
def found(runs: dict[str, Path]) -> dict[str, Study]:
    return {arm: motion_study.study(run, samples=2) for arm, run in runs.items()}


def line(start: tuple[float, float], end: tuple[float, float], vectors: int = 9) -> Tensor:
    points = torch.tensor(start) + torch.linspace(0, 1, vectors + 1)[:, None] * (
        torch.tensor(end) - torch.tensor(start)
    )
    return torch.cat([points[:-1], points.diff(dim=0)], dim=1)


def driven(lanes: list[Tensor], future: Tensor, valid: Tensor | None = None, crossing: int | None = None) -> list[bool]:
    attributes = torch.zeros(1, len(lanes), len(LANE_ATTRIBUTES))
    if crossing is not None:
        attributes[0, crossing, LANE_ATTRIBUTES.index("crossing")] = 1
    stacked = torch.stack(lanes)[None]
    inputs = {"lanes": stacked, "lanes_valid": torch.ones(stacked.shape[:3], dtype=torch.bool)}
    valid = torch.ones(len(future), dtype=torch.bool) if valid is None else valid
    return driven_lanes({**inputs, "lane_attributes": attributes}, future[None], valid[None])[0].tolist()


AHEAD = torch.stack([torch.arange(1, 31) * 1.0, torch.zeros(30)], dim=1)  # 10 m/s along x
LANES = {
    "here": line((-5, 0.4), (15, 0.4)),
    "next": line((15, 0.4), (60, 0.4)),
    "beside": line((-5, 3.9), (60, 3.9)),
    "oncoming": line((60, -1.0), (-5, -1.0)),
    "across": line((10, -20), (10, 20)),
}


def test_lanes_that_are_driven_are_those_under_the_way_and_along_it():
    assert driven(list(LANES.values()), AHEAD) == [True, True, False, False, False]


def test_a_lane_change_drives_two_lanes_and_a_stop_none():
    change = AHEAD.clone()
    change[15:, 1] = 3.9
    assert driven(list(LANES.values()), change) == [True, False, True, False, False]
    assert not any(driven(list(LANES.values()), torch.zeros(30, 2)))


def test_gaps_crossings_and_single_steps_do_not_count():
    valid = torch.zeros(30, dtype=torch.bool)
    valid[20:] = True
    assert driven([LANES["here"], LANES["next"]], AHEAD, valid) == [False, True]
    assert driven([LANES["here"], LANES["next"]], AHEAD, crossing=1) == [True, False]
    short = line((7.6, 0.0), (9.4, 0.0))  # nearest at two steps alone
    assert driven([LANES["here"], short], AHEAD) == [True, False]
    assert not any(driven([LANES["here"]], AHEAD, torch.zeros(30, dtype=torch.bool)))


def test_driven_lanes_turn_with_the_scene():
    angle = torch.tensor(0.7)
    turn = torch.stack([torch.stack([angle.cos(), -angle.sin()]), torch.stack([angle.sin(), angle.cos()])])
    turned = [torch.cat([lane[:, :2] @ turn.T, lane[:, 2:] @ turn.T], dim=1) for lane in LANES.values()]
    assert driven(turned, AHEAD @ turn.T) == driven(list(LANES.values()), AHEAD)


def test_figures_of_the_host_alone_are_those_of_the_definition(runs, found):
    saved = read_studied(runs["none"])
    data, model, values = validation_data(saved), saved.build(), []
    for index in range(len(data)):
        sample = data[index]
        inputs = {name: value[None] for name, value in sample["inputs"].items()}
        with torch.no_grad():
            active = activations(model, inputs)[:, inputs["agents"].shape[1] :]
        truth = driven_lanes(inputs, sample["targets"]["future"][None], sample["targets"]["valid"][None])
        lanes = inputs["lanes_valid"].any(-1) & (inputs["lane_attributes"][..., LANE_ATTRIBUTES.index("crossing")] == 0)
        values.append(auroc(active, truth, lanes))
    expected = torch.cat(values).nanmean().item()
    assert one(found["none"], motion_study.DRIVEN, HOST).value == pytest.approx(expected, rel=1e-4)


def test_taps_of_the_host_alone_and_of_the_layer(found):
    assert {finding.tap for finding in found["none"].findings} == {None, HOST}
    assert {finding.tap for finding in found["bundled"].findings} == {None, *TAPS, WEIGHTS}
    nearness = {one(study, motion_study.DRIVEN, None, "nearness alone").value for study in found.values()}
    assert len(nearness) == 1  # of the data alone


def test_proposals_of_the_stacked_transformer_become_polylines():
    torch.manual_seed(0)
    spec = {"hidden_size": 48, "num_heads": 4, "num_kv_heads": 2, "head_dim": 12, "intermediate_size": 96}
    model = MMTransformer(12, 3, insert="after_subgraph", llm={"kind": "random", "spec": spec, "seed": 3}, dim=16,
                          hidden=24, width=8, layers=1, position_dim=8).eval()  # fmt: skip
    inputs = random_inputs(2, 4, 5, history=6, points=4)
    _, active = motion_study.scene_activations(model, inputs)
    assert {values.shape for values in active.values()} == {(2, 9)}
    torch.testing.assert_close(active[LAYER, "magnitude"], activations(model, inputs))


def test_the_command_prints_and_saves(runs, capsys):
    motion_study.main([str(runs["bundled"] / "checkpoints" / "last.pt"), "--limit", "3", "--samples", "2"])
    assert motion_study.FOCAL in capsys.readouterr().out
    again = read_study(runs["bundled"])
    assert len(again.samples) == 2
    for sample in again.samples:
        assert sample.relevant[0]
        assert {mark.token for mark in sample.frames[0].marks} <= set(range(len(sample.relevant)))
    assert len(again.pictures) == 2


def test_data_that_is_gone_is_one_sentence(runs, root):
    with gone(root):
        (root / "mine").mkdir(parents=True)
        with pytest.raises(SystemExit, match=r"error: .*holds something else than toy data"):
            motion_study.main([str(runs["none"])])
