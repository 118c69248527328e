"""A study on disk is the study in memory; nothing that does not fit together is written or read."""

import json

import numpy as np
import pytest
from PIL import Image

from frozenllm.core.analysis.study import FOLDER, Finding, Frame, Mark, Sample, Study, grid_marks, read_study


def _study() -> Study:
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (8, 12, 3), dtype=np.uint8))
    values = [0.0, 0.25, 0.5, 0.75, 1.0, 0.125]
    line = Mark("line", (0.0, 0.0, 0.5, 0.5, 1.0, 0.0), 3)
    frames = [Frame(picture, grid_marks(2, 3), "whole"), Frame(picture, [line])]
    sample = Sample("a digit", frames, {"magnitude": values}, key="digits/3.png")
    found = Finding("IoU", 0.5, tap="adapter_out", kind="magnitude", low=0.4, high=0.6, chance=0.3, samples=10)
    return Study("What is active?", "vision2d", [found], [sample], ["A note."], {"A curve": picture})


def test_a_study_survives_its_file(tmp_path):
    study = _study()
    assert study.save(tmp_path) == tmp_path / FOLDER
    again = read_study(tmp_path)
    assert (again.title, again.domain, again.findings, again.notes) == (
        study.title,
        study.domain,
        study.findings,
        study.notes,
    )
    for a, b in zip(again.samples[0].frames, study.samples[0].frames, strict=True):
        assert a.marks == b.marks
        assert a.caption == b.caption
        assert np.array_equal(np.asarray(a.picture), np.asarray(b.picture))
    assert again.samples[0].activations == study.samples[0].activations
    assert again.samples[0].key == study.samples[0].key == "digits/3.png"
    assert list(again.pictures) == ["A curve"]


def test_a_new_study_replaces_the_old_one(tmp_path):
    _study().save(tmp_path)
    Study("Another", "video").save(tmp_path)
    assert read_study(tmp_path).title == "Another"
    assert [path.name for path in tmp_path.iterdir()] == [FOLDER]
    assert [path.name for path in (tmp_path / FOLDER).iterdir()] == ["study.json"]


def test_no_study_is_none_and_a_damaged_one_is_named(tmp_path):
    assert read_study(tmp_path) is None
    _study().save(tmp_path)
    (tmp_path / FOLDER / "study.json").write_text("{")
    with pytest.raises(ValueError, match=r"study\.json cannot be read"):
        read_study(tmp_path)


def test_a_missing_picture_is_named(tmp_path):
    folder = _study().save(tmp_path)
    (folder / "sample0_frame0.png").unlink()
    with pytest.raises(ValueError, match=r"sample0_frame0\.png"):
        read_study(tmp_path)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"activations": {"magnitude": [0.0, 2.0]}, "frames": []}, "outside 0 to 1"),
        ({"activations": {"magnitude": [0.0, float("nan")]}, "frames": []}, "outside 0 to 1"),
        ({"activations": {"magnitude": [0.0], "frequency": [0.0, 1.0]}, "frames": []}, "different lengths"),
        ({"activations": {"magnitude": [0.0] * 3}}, "mark of token 3, but 3"),
        ({"relevant": [True]}, "different lengths"),
    ],
)
def test_what_does_not_fit_together_is_refused(tmp_path, change, sentence):
    study = _study()
    for name, value in change.items():
        setattr(study.samples[0], name, value)
    with pytest.raises(ValueError, match=sentence):
        study.save(tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_mark_needs_the_numbers_of_its_shape(tmp_path):
    study = _study()
    study.samples[0].frames[1].marks = [Mark("rect", (0.0, 0.5), 0)]
    with pytest.raises(ValueError, match="shape rect with 2 numbers"):
        study.save(tmp_path)


def test_grid_marks_tile_the_picture_in_row_order():
    marks = grid_marks(2, 3, first=1)
    assert [mark.token for mark in marks] == [1, 2, 3, 4, 5, 6]
    assert marks[0].xy == (0, 0, 1 / 3, 0.5)
    assert marks[5].xy == (2 / 3, 0.5, 1, 1)


def test_the_file_is_plain_json(tmp_path):
    document = json.loads((_study().save(tmp_path) / "study.json").read_text())
    assert document["samples"][0]["frames"][0]["picture"] == "sample0_frame0.png"
