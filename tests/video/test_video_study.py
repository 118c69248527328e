"""The information-filtering study of video runs: figures by definition, files, the host alone, key frames."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from studies import TAPS, gone, one, short_runs

from frozenllm.core.analysis import magnitude
from frozenllm.core.analysis.scores import Scores
from frozenllm.core.analysis.study import Study, read_study
from frozenllm.core.study import HOST, LAYER, read_studied, validation_data
from frozenllm.video import study as video_study
from frozenllm.video.toy import TRUTH, write_toy_frames
from frozenllm.video.train import CONFIG
from frozenllm.video.truth import read_truth

TOY = {"train_videos": 8, "val_videos": 8, "moving": 8}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_toy_frames(tmp_path_factory.mktemp("study") / "toy", **TOY)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, root: Path) -> dict[str, Path]:
    """Two runs of four steps."""
    wanted = [f"+data.toy.{name}={value}" for name, value in TOY.items() if name != "moving"]
    wanted += ["recipe=resting_digits", f"data.root={root}", "data.batch_size=2"]
    return short_runs(CONFIG, [*wanted, f"runs={tmp_path_factory.mktemp('runs')}"])


@pytest.fixture(scope="module")
def found(runs: dict[str, Path]) -> dict[str, Study]:
    return {arm: video_study.study(run, samples=2) for arm, run in runs.items()}


def test_figures_of_the_host_alone_are_those_of_the_definition(runs, found, root):
    saved = read_studied(runs["none"])
    data, model = validation_data(saved), saved.build()
    known = json.loads((root / TRUTH).read_text())["videos"]
    shares, hits, above = [], [], []
    for index in range(len(data)):
        with torch.no_grad():
            active = magnitude(model.tokens(data[index]["inputs"][None]))[0].view(8, 4, 4)
        truth = known[data.source.name(index)]
        drawn = np.zeros((16, 32, 32))
        for frame, (left, top, right, bottom) in zip(drawn, truth["boxes"], strict=True):
            frame[top:bottom, np.arange(left, right) % 32] = 1
        covered = torch.from_numpy(drawn.reshape(8, 2, 4, 8, 4, 8).mean((1, 3, 5)) >= 0.5)
        shares.append(float(active[covered].sum() / active.sum()))
        moves = [any(pair) for pair in np.reshape(truth["moves"], (8, 2))]
        best = int(active.mean((1, 2)).argmax())
        hits.append(moves[best])
        above.append(float((active > 0.3).float().mean()))
    assert one(found["none"], video_study.ON_OBJECT, HOST).value == pytest.approx(100 * np.mean(shares), rel=1e-4)
    assert one(found["none"], video_study.TOP_FRAME, HOST).value == pytest.approx(100 * np.mean(hits))
    assert one(found["none"], "tokens above 0.3", HOST).value == pytest.approx(100 * np.mean(above), rel=1e-4)


def test_the_host_alone_has_one_tap_and_the_layer_all(found):
    assert {finding.tap for finding in found["none"].findings} == {HOST}
    assert {finding.tap for finding in found["bundled"].findings} == TAPS
    before, after = (one(found["bundled"], video_study.OF_OBJECT, tap).value for tap in (HOST, LAYER))
    change = one(found["bundled"], f"{video_study.OF_OBJECT}: change from host", LAYER)
    assert change.value == pytest.approx(after - before, abs=1e-6)
    assert change.low <= change.value <= change.high


def test_samples_show_every_time_of_the_clip(found):
    for study in found.values():
        assert len(study.samples) == 2
        for sample in study.samples:
            assert len(sample.frames) == 8
            assert sorted(mark.token for frame in sample.frames for mark in frame.marks) == list(range(128))
            assert len(sample.relevant) == 128
            assert any("moving" in frame.caption for frame in sample.frames)
            assert any("resting" in frame.caption for frame in sample.frames)


def test_moving_frames_that_alone_are_active_are_found():
    """Hand-made: two clips of four frames of one token; the second's moving frame is its most active one, the first's
    its least."""
    values = torch.tensor([[0.0, 0.5, 0.6, 1.0], [1.0, 0.2, 0.1, 0.0]])
    moves = torch.tensor([[True, False, False, False]] * 2)
    on_object = torch.tensor([[False, True, True, False], [True, True, False, False]])
    scores = Scores()
    video_study._score(scores, values, HOST, "magnitude", on_object, moves, (4, 1, 1))
    study = Study("", "video", scores.findings())
    assert one(study, video_study.KEY_FRAMES, HOST).value == pytest.approx(0.5)  # 0 and 1
    assert one(study, video_study.TOP_FRAME, HOST).value == pytest.approx(50)
    assert one(study, video_study.TOP_FRAME, HOST).chance == pytest.approx(25)
    assert one(study, video_study.ON_OBJECT, HOST).value == pytest.approx(100 * (1.1 / 2.1 + 1.2 / 1.3) / 2, rel=1e-5)
    assert one(study, "tokens above 0.7", HOST).value == pytest.approx(25)


def test_a_box_in_the_middle_covers_the_patches_in_the_middle(runs):
    data = validation_data(read_studied(runs["none"]))
    truth = read_truth(data)
    name = data.source.name(0)
    truth.videos[name] = {"boxes": [[8, 8, 24, 24]] * 16, "moves": [False] * 16}
    clip = truth.clip(0, (8, 4, 4))
    middle = torch.zeros(4, 4, dtype=torch.bool)
    middle[1:3, 1:3] = True
    assert (clip.on_object == middle).all()
    assert not clip.moves.any()


def test_the_command_prints_and_saves(runs, capsys):
    video_study.main([str(runs["bundled"]), "--limit", "4", "--samples", "1"])
    said = capsys.readouterr().out
    assert video_study.KEY_FRAMES in said
    again = read_study(runs["bundled"])
    assert again.domain == "video"
    assert len(again.samples) == 1
    assert {f.samples for f in again.findings if f.name == video_study.ON_OBJECT} == {4}
    assert all(isinstance(picture, Image.Image) and picture.width > 300 for picture in again.pictures.values())


def test_a_users_mistake_is_one_sentence(runs, root, tmp_path, capsys):
    with pytest.raises(SystemExit, match="error: The limit must be 1 or more"):
        video_study.main([str(runs["none"]), "--limit", "0"])
    with pytest.raises(SystemExit, match="is not the folder of a run"):
        video_study.main([str(tmp_path)])
    with gone(root):
        (root / "frames").mkdir(parents=True)
        with pytest.raises(SystemExit, match="holds something else than toy data"):
            video_study.main([str(runs["none"])])
