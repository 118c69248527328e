"""The toy data: what is asked can be seen, cannot be guessed, and is in the real data sets' formats."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from transformers import AutoTokenizer, CLIPVisionModel, RobertaModel

from frozenllm.vqa.toy import write_flickr, write_vqa
from frozenllm.vqa.toy.questions import balanced, candidates, captions, prior
from frozenllm.vqa.toy.scenes import CELL, COLORS, SIZE, Thing, draw, random_scene

SCENE = (Thing(0, 0, "red", "circle"), Thing(0, 2, "red", "square"), Thing(2, 1, "blue", "square"))


def test_answers_are_those_of_the_scene() -> None:
    asked = dict(candidates(SCENE))
    assert asked["What color is the circle?"] == "red"
    assert "What color is the square?" not in asked  # there are two
    assert asked["What shape is the blue thing?"] == "square"
    assert asked["How many red things are there?"] == asked["How many squares are there?"] == "2"
    assert asked["How many triangles are there?"] == "0"
    assert (asked["Is there a red square?"], asked["Is there a blue circle?"]) == ("yes", "no")
    assert asked["What color is the thing at the top right?"] == "red"
    assert "What color is the thing at the center?" not in asked
    pair = (Thing(0, 0, "red", "circle"), Thing(2, 1, "blue", "square"))
    relations = dict(candidates(pair))
    assert (relations["Is the circle left of the square?"], relations["Is the square left of the circle?"]) == (
        "yes",
        "no",
    )
    assert (relations["Is the circle above the square?"], relations["Is the square above the circle?"]) == ("yes", "no")


def test_scenes_can_be_seen() -> None:
    image = np.asarray(draw(SCENE, np.random.default_rng(0)), dtype=int)
    assert image.shape == (SIZE, SIZE, 3)
    for thing in SCENE:
        middle = image[thing.row * CELL + CELL // 2, thing.column * CELL + CELL // 2]
        assert tuple(middle) == COLORS[thing.color]
    assert image[CELL : 2 * CELL, CELL : 2 * CELL].min() > 200  # nothing at the center


def test_every_wording_has_equally_many_of_each_answer() -> None:
    generator = np.random.default_rng(0)
    questions = balanced([random_scene(generator) for _ in range(300)], 4, generator)
    counts: dict[str, dict[str, int]] = defaultdict(lambda: defaultdict(int))
    for question in questions:
        counts[question.text][question.answer] += 1
    assert all(len(set(answers.values())) == 1 and len(answers) > 1 for answers in counts.values())
    by_hand = sum(next(iter(answers.values())) for answers in counts.values()) / len(questions)
    assert prior(questions) == pytest.approx(100 * by_hand)
    assert prior(questions) < 42
    assert {q.answer_type for q in questions} == {"yes/no", "number", "other"}


def test_captions_name_every_object() -> None:
    for text in captions(SCENE, 5, np.random.default_rng(0)):
        assert all(thing.name in text.lower() for thing in SCENE)


def test_files_are_those_of_the_real_sets(vqa_root: Path, flickr_root: Path) -> None:
    questions = json.loads((vqa_root / "v2_OpenEnded_mscoco_train2014_questions.json").read_text())["questions"]
    annotations = json.loads((vqa_root / "v2_mscoco_train2014_annotations.json").read_text())["annotations"]
    assert {q["question_id"] for q in questions} == {a["question_id"] for a in annotations}
    first = annotations[0]
    assert len(first["answers"]) == 10
    assert set(first) >= {"question_type", "answer_type", "multiple_choice_answer", "image_id"}
    assert (vqa_root / "train2014" / f"COCO_train2014_{questions[0]['image_id']:012d}.jpg").is_file()
    assert not (vqa_root / "v2_mscoco_test-dev2015_annotations.json").exists()
    images = json.loads((flickr_root / "karpathy" / "dataset_flickr30k.json").read_text())["images"]
    assert [sum(image["split"] == split for image in images) for split in ("train", "val", "test")] == [24, 6, 8]
    with Image.open(flickr_root / "flickr30k-images" / images[0]["filename"]) as image:
        assert image.size == (SIZE, SIZE)


def test_written_once_and_the_same_each_time(tmp_path: Path) -> None:
    options = {"train": 20, "val": 4, "test": 1}
    first, second = write_vqa(tmp_path / "a", **options), write_vqa(tmp_path / "b", **options)
    for path in sorted(first.rglob("*")):
        if path.is_file():
            assert path.read_bytes() == (second / path.relative_to(first)).read_bytes()
    before = (first / "toy.json").stat().st_mtime_ns
    write_vqa(first, **options)
    assert (first / "toy.json").stat().st_mtime_ns == before
    with pytest.raises(ValueError, match="other settings"):
        write_vqa(first, train=21, val=4, test=1)
    with pytest.raises(ValueError, match="other settings"):
        write_flickr(first)
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "mine.txt").write_text("x")
    with pytest.raises(ValueError, match="something else"):
        write_vqa(tmp_path / "c", **options)


def test_encoders_are_transformers_folders(encoders: Path) -> None:
    assert CLIPVisionModel.from_pretrained(encoders / "clip").config.hidden_size == 32
    assert RobertaModel.from_pretrained(encoders / "roberta", add_pooling_layer=False).config.pad_token_id == 1
    tokenizer = AutoTokenizer.from_pretrained(encoders / "roberta")
    ids = tokenizer("How many red circles are there?")["input_ids"]
    assert (ids[0], ids[-1]) == (0, 2)  # RoBERTa's numbers
    assert tokenizer.decode(ids, skip_special_tokens=True) == "How many red circles are there?"
    assert len(ids) < 12  # words of the toy text are single pieces, mostly
