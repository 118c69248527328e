"""VQAv2 and Flickr30k: protocols, vocabulary, METER's files, and everything that can be wrong with the files."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch

from frozenllm.core.training import UNREADABLE, BrokenSample, compose_config, train
from frozenllm.vqa.answers import find_answers
from frozenllm.vqa.data import answers_of, flickr30k, flickr30k_images, held_out_images, vqav2, vqav2_records
from frozenllm.vqa.images import MEAN, STD, clip_transform
from frozenllm.vqa.tasks import DrawMatches
from frozenllm.vqa.text import TextTokens, collate
from frozenllm.vqa.toy.scenes import SIZE
from frozenllm.vqa.train import CONFIG


@pytest.fixture
def options(encoders: Path) -> dict[str, Any]:
    return {"tokenizer": f"{encoders}/roberta", "max_text_len": 16, "image_size": SIZE}


def edit(root: Path, tmp_path: Path, name: str, key: str, change: Any) -> Path:
    """A copy of a data set with the list in one of its files changed."""
    copy = tmp_path / "copy"
    shutil.copytree(root, copy, dirs_exist_ok=True)
    content = json.loads((copy / name).read_text())
    content[key] = change(content[key])
    (copy / name).write_text(json.dumps(content))
    return copy


def test_honest_protocol_keeps_held_out_images_out(vqa_root: Path) -> None:
    train, val = (vqav2_records(str(vqa_root), part, held_out=10) for part in ("train", "val"))
    held = {record.image_id for record in val}
    assert len(held) == 10
    assert not held & {record.image_id for record in train}
    everything = vqav2_records(str(vqa_root), "train", protocol="meter")
    assert len(train) + len(val) == len(everything)
    meter_val = {record.question_id for record in vqav2_records(str(vqa_root), "val", protocol="meter")}
    assert meter_val < {record.question_id for record in everything}  # METER validates on what it trains on
    alone = {r.image_id for r in vqav2_records(str(vqa_root), "train", held_out=None)}
    assert all("train2014" in str(r.image.name) for r in train if r.image_id in alone)
    assert held_out_images([3, 1, 2, 2], 2) == held_out_images([2, 3, 1], 2)
    test = vqav2_records(str(vqa_root), "test")
    assert test[0].answers is None
    assert "test2015" in test[0].image.name


def test_vocabulary_is_that_of_the_training_part(vqa_root: Path) -> None:
    settings = {"root": str(vqa_root), "held_out": None}
    answers = answers_of(**settings, min_count=1)
    assert {"yes", "no", "0", "3", "red", "circle"} <= set(answers)
    majority = [record.majority for record in vqav2_records(str(vqa_root), "train", held_out=None)]
    frequent = answers_of(**settings, min_count=20)
    assert set(frequent) == {answer for answer in answers if majority.count(answer) >= 20}
    assert set(frequent) < set(answers)
    with pytest.raises(ValueError, match=r"data\.answers\.min_count"):
        answers_of(**settings, min_count=10**6)


def test_vocabularies_from_elsewhere(tmp_path: Path) -> None:
    assert find_answers(2) == ("answer 0", "answer 1")
    (tmp_path / "list.json").write_text('["b", "a"]')
    (tmp_path / "map.json").write_text('{"a": 1, "b": 0}')
    assert (
        find_answers({"path": str(tmp_path / "list.json")})
        == find_answers({"path": tmp_path / "map.json"})
        == ("b", "a")
    )
    (tmp_path / "bad.json").write_text("[1]")
    for name, words in (("bad.json", "not a vocabulary"), ("missing.json", "cannot be read")):
        with pytest.raises(ValueError, match=words):
            find_answers({"path": tmp_path / name})


def test_samples_of_questions(vqa_root: Path, options: dict[str, Any]) -> None:
    answers = {"root": str(vqa_root), "held_out": None, "min_count": 1}
    data = vqav2(str(vqa_root), "val", answers=answers, held_out=None, **options)
    names = find_answers(answers)
    for index in (0, len(data) - 1):
        sample, record = data[index], data.records[index]
        assert sample["inputs"]["pixel_values"].shape == (3, SIZE, SIZE)
        assert names[int(sample["targets"].argmax())] == record.majority
        assert sample["targets"].max() == 1.0
        assert sample["annotation"]["answers"] == record.answers
    batch = collate([data[0], data[1]])
    mask = batch["inputs"]["attention_mask"]
    assert int(mask.sum(1).max()) == mask.shape[1] < 16  # no longer than its longest question
    assert batch["question_id"] == [record.question_id for record in data.records[:2]]
    test = vqav2(str(vqa_root), "test", answers=answers, **options)[0]
    assert test["annotation"] is None
    assert not test["targets"].any()


def test_unknown_answers_are_left_out_of_training_alone(vqa_root: Path, options: dict[str, Any]) -> None:
    few = {"held_out": None, "answers": ["yes", "no"]}
    train = vqav2(str(vqa_root), "train", train=True, **few, **options)
    assert {record.answer_type for record in train.records} == {"yes/no"}
    val = vqav2(str(vqa_root), "val", **few, **options)
    assert len(val) == len(vqav2_records(str(vqa_root), "val", held_out=None))  # they count as wrong
    with pytest.raises(ValueError, match="belongs to other data"):
        vqav2(str(vqa_root), "train", train=True, held_out=None, answers=["zebra"], **options)


def test_questions_without_annotations(vqa_root: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    name = "v2_mscoco_val2014_annotations.json"
    some = edit(vqa_root, tmp_path, name, "annotations", lambda entries: entries[5:])
    with caplog.at_level(logging.WARNING):
        found = vqav2_records(str(some), "val", held_out=None)
    assert len(found) == len(vqav2_records(str(vqa_root), "val", held_out=None)) - 5
    assert "Left out 5 of" in caplog.text
    other = edit(vqa_root, tmp_path / "b", name, "annotations", lambda e: [{**a, "question_id": -1} for a in e])
    with pytest.raises(ValueError, match="Not one question of val2014 has an annotation"):
        vqav2_records(str(other), "val")


@pytest.mark.parametrize("damage", ["missing", "broken"])
def test_damaged_images(vqa_root: Path, tmp_path: Path, options: dict[str, Any], damage: str) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(vqa_root, copy)
    settings = {"answers": ["yes", "no", "red"], "held_out": None, **options}
    for part, subset in (("train", "train2014"), ("val", "val2014")):
        path = sorted((copy / subset).glob("*.jpg"))[0]
        path.unlink() if damage == "missing" else path.write_bytes(b"\xff\xd8 not really")
        data = vqav2(str(copy), part, train=part == "train", on_error="skip", **settings)
        hit = next(i for i, record in enumerate(data.records) if record.image.name == str(path))
        if part == "train":
            assert data[hit]["targets"].max() > 0  # the next readable one
        else:
            assert (data[hit]["targets"] == UNREADABLE).all()
        assert data.num_unreadable
        strict = vqav2(str(copy), part, train=part == "train", **settings)
        with pytest.raises(
            BrokenSample, match="does not exist" if damage == "missing" else "cannot be read as an image"
        ):
            strict[hit]


@pytest.mark.parametrize(("change", "words"), [
    ({"root": None}, r"give data\.root="), ({"root": "/no/such"}, "/no/such does not exist"),
    ({"part": "dev"}, "part must be"), ({"protocol": "mine"}, "protocol must be honest or meter"),
    ({"format": "h5"}, "format must be json or arrow"), ({"held_out": 0}, "held_out must be a whole number"),
    ({"format": "arrow"}, r"METER's arrow files"),
])  # fmt: skip
def test_wrong_options_give_one_sentence(vqa_root: Path, change: dict[str, Any], words: str) -> None:
    settings = {"root": str(vqa_root), "part": "train", **change}
    with pytest.raises(ValueError, match=words) as caught:
        vqav2_records(**settings)
    assert "\n" not in str(caught.value)


def test_damaged_json(vqa_root: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(vqa_root, copy)
    path = copy / "v2_OpenEnded_mscoco_val2014_questions.json"
    path.write_text(path.read_text()[:-100])
    with pytest.raises(ValueError, match="is not JSON"):
        vqav2_records(str(copy), "val")
    path.unlink()
    with pytest.raises(ValueError, match=r"cannot be read .* right folder"):
        vqav2_records(str(copy), "val")


def test_long_text_is_cut(options: dict[str, Any], caplog: pytest.LogCaptureFixture) -> None:
    tokens = TextTokens(options["tokenizer"], 8)
    with caplog.at_level(logging.WARNING):
        ids, mask = tokens("How many red circles are there " * 9)
        tokens("How many red circles are there " * 9)
    assert ids.shape == mask.shape == (8,)
    assert mask.all()
    assert (int(ids[0]), int(ids[-1])) == (0, 2)
    assert caplog.text.count("is cut to 8") == 1
    with pytest.raises(ValueError, match="tokenizer cannot be read from"):
        TextTokens("/no/such/folder", 8)


def write_arrow(path: Path, rows: dict[str, list[Any]]) -> None:
    table = pa.table(rows)
    with pa.OSFile(str(path), "wb") as sink, pa.RecordBatchFileWriter(sink, table.schema) as writer:
        writer.write_table(table)


NAMES = ["no", "yes", "red"]


def write_vqa_arrows(vqa_root: Path, folder: Path) -> None:
    """Toy questions with an answer of `NAMES` as METER's ``vqav2_train.arrow`` and ``vqav2_val.arrow``."""
    for part, subset in (("train", "train2014"), ("val", "val2014")):
        by_image: dict[int, list[Any]] = {}
        for record in vqav2_records(str(vqa_root), part, held_out=None):
            if record.majority in NAMES:
                by_image.setdefault(record.image_id, []).append(record)
        images = list(by_image)
        file = lambda i, subset=subset: vqa_root / subset / f"COCO_{subset}_{i:012d}.jpg"  # noqa: E731
        write_arrow(
            folder / f"vqav2_{part}.arrow",
            {
                "image": [file(i).read_bytes() for i in images],
                "questions": [[r.question for r in by_image[i]] for i in images],
                "answers": [[[r.majority] for r in by_image[i]] for i in images],
                "answer_labels": [[[NAMES.index(r.majority)] for r in by_image[i]] for i in images],
                "answer_scores": [[[0.9] for _ in by_image[i]] for i in images],
                "image_id": images,
                "question_id": [[r.question_id for r in by_image[i]] for i in images],
                "split": [part] * len(images),
            },
        )


def test_meters_arrow_files(vqa_root: Path, flickr_root: Path, tmp_path: Path, options: dict[str, Any]) -> None:
    """The same questions out of METER's files, with the vocabulary that the files imply."""
    write_vqa_arrows(vqa_root, tmp_path)
    answers = {"root": str(tmp_path), "format": "arrow"}
    assert answers_of(**answers) == tuple(NAMES)
    data = vqav2(str(tmp_path), "val", answers=answers, format="arrow", protocol="meter", **options)
    from_json = vqav2(str(vqa_root), "val", answers=NAMES, held_out=None, **options)
    places = {record.question_id: i for i, record in enumerate(from_json.records)}
    for index in (0, len(data) - 1):
        record = data.records[index]
        other = from_json[places[record.question_id]]
        torch.testing.assert_close(data[index]["inputs"], other["inputs"])
        assert data[index]["targets"].max() == pytest.approx(0.9)
        assert data[index]["annotation"] is None
    images = flickr30k_images(str(flickr_root), "test")
    write_arrow(
        tmp_path / "f30k_caption_karpathy_test.arrow",
        {
            "image": [Path(image.image.name).read_bytes() for image in images],
            "caption": [list(image.captions) for image in images],
            "image_id": [image.image_id for image in images],
            "split": ["test"] * len(images),
        },
    )
    packed = flickr30k_images(str(tmp_path), "val", format="arrow", protocol="meter")  # METER's val is the test part
    assert [(image.image_id, image.captions) for image in packed] == [(i.image_id, i.captions) for i in images]
    assert packed[0].image.open().tobytes() == images[0].image.open().tobytes()


def test_a_run_on_meters_files_is_judged_by_the_soft_score(vqa_root: Path, tmp_path: Path, tiny: list[str]) -> None:
    """They lack the annotators' answers, which the official accuracy needs: its recipe must not ask for that."""
    write_vqa_arrows(vqa_root, tmp_path)
    recipe = ["recipe=toy_vqa", f"data.root={tmp_path}", "data.format=arrow", "data.test=null", "llm=none", *tiny]
    short = ["data.train.limit=16", "data.val.limit=8", "data.batch_size=8", "schedule.epochs=1"]
    result = train(compose_config(CONFIG, [*recipe, *short, "schedule.warmup_epochs=0", f"runs={tmp_path}/runs"]))
    assert set(result.metrics) == {"vqa/soft"}
    assert result.best is not None
    assert result.best["metric"] == "vqa/soft"
    assert compose_config(CONFIG, ["recipe=vqav2"]).best == "vqa/overall"
    assert compose_config(CONFIG, ["recipe=vqav2_llama", "data.format=arrow"]).best == "vqa/soft"


def test_flickr_protocols_and_samples(flickr_root: Path, options: dict[str, Any]) -> None:
    root = str(flickr_root)
    sizes = {p: [len(flickr30k_images(root, part, protocol=p)) for part in ("train", "val", "test")]
             for p in ("honest", "meter")}  # fmt: skip
    assert sizes == {"honest": [24, 6, 8], "meter": [30, 8, 8]}
    train = flickr30k(root, "train", train=True, negatives=4, **{**options, "max_text_len": 60})
    assert len(train) == 24 * 5
    sample = train[7]
    assert sample["inputs"]["input_ids"].shape == (5, 60)
    assert sample["targets"] == 1
    own = {tuple(train.tokens(text)[0].tolist()) for text in train.images[1].captions}
    rows = [tuple(row) for row in sample["inputs"]["input_ids"].tolist()]
    assert rows[0] in own
    assert not set(rows[1:]) & own
    gallery = flickr30k(root, "val", **{**options, "max_text_len": 60})
    batch = collate([gallery[0], gallery[5]])
    assert batch["inputs"]["gallery_ids"].shape[0] == 30  # one copy, not one per image
    assert batch["own"] == [(0, 5), (25, 30)]
    with pytest.raises(ValueError, match="two images"):
        flickr30k(root, "train", train=True, limit=1, **options)


def test_matching_draws_half_of_each() -> None:
    torch.manual_seed(0)
    targets = torch.tensor([4, 4, 5, 6, 7, 7])
    drawn = torch.stack([DrawMatches()({"x": 1}, targets)[1] for _ in range(50)])
    assert (drawn.sum(1) == 3).all()  # another image, also where two captions share theirs
    assert drawn.float().mean(0).min() > 0.2
    inputs, labels = DrawMatches()({"x": 1}, targets)
    assert torch.equal((targets[inputs["match_with"]] == targets).long(), labels)
    with pytest.raises(ValueError, match="two different images"):
        DrawMatches()({}, torch.tensor([3, 3]))


def test_clip_transform() -> None:
    from PIL import Image
    from transformers import CLIPImageProcessor

    image = Image.effect_mandelbrot((90, 60), (-2, -1, 1, 1), 50).convert("RGB")
    found = clip_transform(32)(image)
    processor = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=32, image_mean=MEAN, image_std=STD)
    wanted = processor(image, return_tensors="pt")["pixel_values"][0]
    torch.testing.assert_close(found, wanted, rtol=0, atol=0.1)  # resampling differs in single pixels' last bits
    torch.manual_seed(0)
    assert not torch.equal(clip_transform(32, randaug=True)(image), found)
