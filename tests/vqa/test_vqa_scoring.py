"""The official VQA accuracy rule by rule, and recalls against a brute-force computation."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from frozenllm.vqa.answers import build_vocabulary, soft_scores
from frozenllm.vqa.normalize import CONTRACTIONS, normalize, normalize_words, strip_punctuation
from frozenllm.vqa.scoring import ranks_of_images, recalls, vqa_accuracy, write_evalai


@pytest.mark.parametrize(("text", "wanted"), [
    ("Two", "2"), ("none", "0"), ("zero cats", "0 cats"), ("ten", "10"), ("eleven", "eleven"),
    ("a cat", "cat"), ("The cat on an apple", "cat on apple"), ("thea", "thea"),
    ("dont", "don't"), ("couldnt've", "couldn't've"), ("couldn'tve", "couldn't've"), ("Its", "its"),
    ("lets", "lets"), ("let's", "let's"), ("oclock", "o'clock"), ("im", "im"),
    ("red.", "red"), ("3.5", "3.5"), ("no. 3", "no 3"), ("u.s.a", "usa"), ("1.5.", "1.5"),
    ("red/blue", "red blue"), ("red / blue", "red blue"), ("red, blue", "red blue"), ("red,blue", "red blue"),
    ("1,000", "1000"), ("1,000/2", "10002"), ("cat-dog", "cat dog"), ("cat- dog", "cat dog"), ("t-shirt -", "tshirt"),
    ("What?!", "what"), ("  Red\tBall\n", "red ball"), ("one,two", "1 2"), ("", ""),
])  # fmt: skip
def test_normalisation(text: str, wanted: str) -> None:
    assert normalize(text) == wanted


def test_parts_of_the_normalisation() -> None:
    assert strip_punctuation("a-b") == "a b"  # no space beside it: it becomes one
    assert strip_punctuation("a- b") == "a b"  # a space beside it: it goes
    assert strip_punctuation("1,5-2") == "152"  # a grouped number: all of it goes
    assert normalize_words("The Two dogs") == "2 dogs"
    assert CONTRACTIONS["shouldnt've"] == CONTRACTIONS["shouldn'tve"] == "shouldn't've"
    assert CONTRACTIONS["somebody'd"] == "somebodyd"


@pytest.mark.parametrize("agree", range(11))
def test_agreement_of_annotators(agree: int) -> None:
    """Leave-one-out: an annotator who agrees has one match fewer among the others."""
    said = ["red"] * agree + [f"other {i}" for i in range(10 - agree)]
    wanted = (agree * min(1, (agree - 1) / 3) + (10 - agree) * min(1, agree / 3)) / 10 if agree else 0.0
    assert vqa_accuracy("red", said) == pytest.approx(wanted)
    assert [round(x, 1) for x in (0.0, 0.3, 0.6, 0.9, 1.0)][min(agree, 4)] == pytest.approx(wanted)


def test_answers_are_normalised_only_where_annotators_differ() -> None:
    assert vqa_accuracy("Red.", ["red"] * 10) == 0.0
    assert vqa_accuracy("Red.", ["red"] * 9 + ["blue"]) == 1.0
    assert vqa_accuracy("the two", ["2"] * 5 + ["Two!"] * 5) == 1.0
    assert vqa_accuracy("two\n", ["two"] * 10) == 1.0  # line breaks go in any case
    with pytest.raises(ValueError, match="annotators"):
        vqa_accuracy("red", [])


def test_soft_scores_and_vocabulary() -> None:
    said = ["red", "Red", "the red", "blue", "blue", "green", *["two"] * 4]
    assert soft_scores(said) == {"red": 0.9, "blue": 0.6, "green": 0.3, "2": 1.0}
    assert soft_scores(said, normalized=False)["red"] == 0.3
    answers = build_vocabulary(["no", "Two", "no", "2", "a no", "yes"], min_count=2)
    assert answers == ["no", "2"]  # in the order of their first appearance
    with pytest.raises(ValueError, match="min_count"):
        build_vocabulary(["no"], min_count=9)


def test_evalai_file(tmp_path: Path) -> None:
    given_answers = [{"question_id": 9, "answer": "red", "worth": 1}, {"question_id": 3, "answer": "2"}]
    assert write_evalai([*given_answers, given_answers[0]], tmp_path / "sub" / "a.json") == 2
    assert json.loads((tmp_path / "sub" / "a.json").read_text()) == [
        {"question_id": 3, "answer": "2"},
        {"question_id": 9, "answer": "red"},
    ]


def brute_force(scores: np.ndarray, own: list[tuple[int, int]]) -> dict[str, float]:
    """Recalls by sorting, wrong ones first among equals."""
    image_of = [i for i, (start, end) in enumerate(own) for _ in range(start, end)]
    figures = {}
    for k in (1, 5, 10):
        found = []
        for caption, image in enumerate(image_of):
            order = sorted(range(len(own)), key=lambda i, c=caption, r=image: (-scores[i, c], i == r))
            found.append(image in order[:k])
        figures[f"ir@{k}"] = 100 * float(np.mean(found))
        found = []
        for image in range(len(own)):
            order = sorted(range(len(image_of)), key=lambda c, i=image: (-scores[i, c], image_of[c] == i))
            found.append(any(image_of[c] == image for c in order[:k]))
        figures[f"tr@{k}"] = 100 * float(np.mean(found))
    return figures


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 4), min_size=1, max_size=9), st.integers(0, 10**6), st.sampled_from([2, 1000]))
def test_recalls_equal_brute_force(sizes: list[int], seed: int, levels: int) -> None:
    ends = np.cumsum(sizes).tolist()
    own = [(end - size, end) for end, size in zip(ends, sizes, strict=True)]
    scores = np.random.default_rng(seed).integers(0, levels, (len(sizes), ends[-1])).astype(np.float32)  # with ties
    assert recalls(*ranks_of_images(scores, own)) == pytest.approx(brute_force(scores, own))


def test_equal_scores_find_nothing() -> None:
    figures = recalls(*ranks_of_images(np.zeros((12, 24)), [(2 * i, 2 * i + 2) for i in range(12)]))
    assert set(figures.values()) == {0.0}
