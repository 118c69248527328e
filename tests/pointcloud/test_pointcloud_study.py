"""The information-filtering study of point cloud runs: masks, figures by definition, files, the host alone."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from studies import TAPS, gone, one, short_runs

from frozenllm.core.analysis import magnitude
from frozenllm.core.analysis.scores import Scores
from frozenllm.core.analysis.study import Study, read_study
from frozenllm.core.study import HOST, read_studied
from frozenllm.pointcloud import study as cloud_study
from frozenllm.pointcloud.data.scanobjectnn import read_mask
from frozenllm.pointcloud.look import spread
from frozenllm.pointcloud.toy import write_scanobjectnn
from frozenllm.pointcloud.train import CONFIG
from frozenllm.pointcloud.transforms import thin


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_scanobjectnn(tmp_path_factory.mktemp("study") / "scans", train=16, test=8, points=80)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, root: Path) -> dict[str, Path]:
    """Two runs of four steps on clouds with background, evaluated on the test split, thinned to 64 points."""
    wanted = ["recipe=shapes", f"data.root={root}", "data.variant=objectbg", "data.num_points=64"]
    wanted += [f"data.{role}.type=scanobjectnn" for role in ("train", "val", "test")]
    wanted += ["data.val.split=test", "data.val.part=all", "data.train.part=all", "data.batch_size=4"]
    return short_runs(CONFIG, [*wanted, f"runs={tmp_path_factory.mktemp('runs')}"])


@pytest.fixture(scope="module")
def found(runs: dict[str, Path]) -> dict[str, Study]:
    return {arm: cloud_study.study(run, samples=2) for arm, run in runs.items()}


def test_masks_are_in_the_official_form(root):
    """The key ``mask`` is -1 for the background, in clouds with background alone."""
    for name, partly in (("main_split/test_objectdataset.h5", True), ("main_split_nobg/test_objectdataset.h5", False)):
        with h5py.File(root / name) as file:
            mask = file["mask"][()]
        assert mask.shape == (8, 80)
        assert ((mask == -1).sum(axis=1) == (9 if partly else 0)).all()  # 12 %
        np.testing.assert_array_equal(read_mask(root / name), mask != -1)


def test_a_mask_that_is_missing_or_does_not_fit(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["data"] = np.zeros((2, 5, 3))
    assert read_mask(tmp_path / "a.h5") is None
    with h5py.File(tmp_path / "a.h5", "r+") as file:
        file["mask"] = np.zeros((2, 4))
    with pytest.raises(ValueError, match=r"a\.h5: mask must have shape \(2, 5\), not \(2, 4\)"):
        read_mask(tmp_path / "a.h5")


def test_figures_of_the_host_alone_are_those_of_the_definition(runs, found, root):
    with h5py.File(root / "main_split/test_objectdataset.h5") as file:
        clouds, mask = torch.tensor(file["data"][()]), file["mask"][()]
    points, model, shares = thin(clouds, 64), read_studied(runs["none"]).build(), []
    groups = model.group(points)
    with torch.no_grad():
        active = spread(magnitude(model.tokens(points)[:, 1:]), groups, points)
    for cloud, kept, values, known in zip(clouds, points, active, mask, strict=True):
        place = torch.cdist(kept, cloud).argmin(dim=1)  # which of the stored points it is
        on_object = torch.from_numpy(known)[place] != -1
        shares.append(float(values[on_object].sum() / values.sum()))
    assert one(found["none"], cloud_study.ON_OBJECT, HOST).value == pytest.approx(100 * np.mean(shares), rel=1e-4)


def test_the_host_alone_has_one_tap_and_the_layer_all(found):
    assert {finding.tap for finding in found["none"].findings} == {HOST}
    assert {finding.tap for finding in found["bundled"].findings} == TAPS


def test_measures_of_a_hand_made_cloud():
    """A cloud whose object is all that is active, and one without background, which says nothing."""
    values = torch.tensor([[1.0, 0.5, 0.0, 0.0], [1.0, 0.0, 0.0, 0.0]])
    on_object = torch.tensor([[True, True, False, False], [True, True, True, True]])
    scores = Scores()
    cloud_study._score(scores, values, HOST, "magnitude", on_object)
    study = Study("", "pointcloud", scores.findings())
    inside = one(study, cloud_study.ON_OBJECT, HOST)
    assert (inside.value, inside.chance, inside.samples) == (100, 50, 1)
    assert one(study, cloud_study.OF_OBJECT, HOST).value == 1
    assert one(study, "points above 0.3", HOST).value == pytest.approx(37.5)


def test_projections_keep_the_cloud_in_the_picture_and_upright():
    cloud = torch.tensor([[0.0, -1.0, 0.0], [0.0, 1.0, 0.0], [0.5, 0.0, 0.3]])
    for axes in cloud_study.VIEWS.values():
        places = cloud_study.project(cloud, axes)
        assert ((places >= 0) & (places <= 1)).all()
    front = cloud_study.project(cloud, cloud_study.VIEWS["from the front"])
    assert front[0, 1] > front[1, 1]  # lower in the picture
    assert front[2, 0] > front[0, 0]


def test_the_command_prints_and_saves(runs, capsys):
    cloud_study.main([str(runs["bundled"]), "--limit", "5", "--samples", "1"])
    assert cloud_study.OF_OBJECT in capsys.readouterr().out
    again = read_study(runs["bundled"])
    (sample,) = again.samples
    assert len(sample.frames) == 3
    assert all(len(frame.marks) == len(sample.relevant) == 64 for frame in sample.frames)
    assert {f.samples for f in again.findings} == {5}


def test_data_that_is_gone_is_one_sentence(runs, root):
    with gone(root), pytest.raises(SystemExit, match=r"error: .*test_objectdataset\.h5 does not exist"):
        cloud_study.main([str(runs["none"])])
