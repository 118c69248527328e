"""The toy data on disk: VQAv2's files, Karpathy's files and the small encoders, written once into the user's cache."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from frozenllm.core.toy_folder import write_once
from frozenllm.vqa.toy.encoders import write_image_encoder, write_text_encoder
from frozenllm.vqa.toy.questions import Question, balanced, captions
from frozenllm.vqa.toy.scenes import Scene, draw, random_scene
from frozenllm.vqa.toy.truth import write_truth

CAPTIONS = 5  # of an image, as in Flickr30k
CAPTIONED = 3  # most objects of a scene with captions, which name them all
_NUMBERS = {"0": "none", "1": "one", "2": "two", "3": "three"}
_JPEG = {"format": "JPEG", "quality": 95, "subsampling": 0}  # at this size, a colour must not bleed into its neighbours


def write_vqa(
    root: str | os.PathLike[str] | None = None,
    *,
    train: int = 1500,
    val: int = 300,
    test: int = 40,
    per_scene: int = 4,
    seed: int = 0,
) -> Path:
    """Toy scenes and questions in VQAv2's files, and beside them `frozenllm.vqa.toy.truth.TRUTH`.

    Args:
        root: The folder; None for one in the user's cache.
        train: Images of ``train2014``.
        val: Images of ``val2014``.
        test: Images of ``test2015``, whose questions have no annotations.
        per_scene: Questions an image, on average.
        seed: Of everything random.

    Returns:
        The folder.

    Raises:
        ValueError: The folder holds something else.
    """
    manifest = {"data": "toy vqa", "format": 2, "train": train, "val": val, "test": test}
    manifest |= {"per_scene": per_scene, "seed": seed}
    return write_once(root, "vqa", manifest, lambda folder: _write_vqa(folder, manifest))


def write_flickr(
    root: str | os.PathLike[str] | None = None, *, train: int = 1200, val: int = 50, test: int = 50, seed: int = 0
) -> Path:
    """Toy scenes and captions in Flickr30k's files with Karpathy's splits.

    Args:
        root: The folder; None for one in the user's cache.
        train: Images of the training part.
        val: Images of the validation part.
        test: Images of the test part.
        seed: Of everything random.

    Returns:
        The folder.

    Raises:
        ValueError: The folder holds something else.
    """
    manifest = {"data": "toy flickr30k", "format": 1, "train": train, "val": val, "test": test, "seed": seed}
    return write_once(root, "flickr30k", manifest, lambda folder: _write_flickr(folder, manifest))


def write_encoders(
    root: str | os.PathLike[str] | None = None, *, width: int = 64, layers: int = 1, seed: int = 0
) -> Path:
    """Small encoders with random weights: ``<root>/clip`` and ``<root>/roberta``, in transformers' layout.

    Args:
        root: The folder; None for one in the user's cache.
        width: Width of both.
        layers: Layers of both that are used; CLIP gets one more, which METER drops.
        seed: Of their weights.

    Returns:
        The folder.

    Raises:
        ValueError: The folder holds something else.
    """
    manifest = {"data": "toy encoders", "format": 1, "width": width, "layers": layers, "seed": seed}
    return write_once(root, "vqa-encoders", manifest, lambda folder: _write_encoders(folder, manifest))


def _scenes(number: int, generator: np.random.Generator, taken: set[Scene], most: int = 5) -> list[Scene]:
    """Scenes that are all different, also from those taken before."""
    scenes: list[Scene] = []
    while len(scenes) < number:
        scene = random_scene(generator, most)
        if scene not in taken:
            taken.add(scene)
            scenes.append(scene)
    return scenes


def _write_vqa(folder: Path, manifest: dict[str, Any]) -> None:
    generator = np.random.default_rng(manifest["seed"])
    taken: set[Scene] = set()
    known: list[tuple[int, Scene, str]] = []
    first = 1
    parts = (("train", "train2014", "train2014"), ("val", "val2014", "val2014"), ("test", "test2015", "test-dev2015"))
    for part, images, subset in parts:
        scenes = _scenes(manifest[part], generator, taken)
        ids = [first + index for index in range(len(scenes))]
        first += len(scenes)
        (folder / images).mkdir()
        for image_id, scene in zip(ids, scenes, strict=True):
            draw(scene, generator).save(folder / images / f"COCO_{images}_{image_id:012d}.jpg", **_JPEG)
        questions = balanced(scenes, manifest["per_scene"], generator)
        asked = _numbered(questions, ids)
        known += [(number, scenes[question.scene], question.text) for number, _, question in asked]
        entries = [{"image_id": image, "question": q.text, "question_id": number} for number, image, q in asked]
        _dump(folder / f"v2_OpenEnded_mscoco_{subset}_questions.json", subset, {"questions": entries})
        if part != "test":
            annotations = [_annotation(number, image, q, generator) for number, image, q in asked]
            _dump(folder / f"v2_mscoco_{subset}_annotations.json", subset, {"annotations": annotations})
    write_truth(folder, known)


def _numbered(questions: Sequence[Question], ids: Sequence[int]) -> list[tuple[int, int, Question]]:
    """(question id, image id, question): VQAv2's question ids are 1000 times the image's, and a number."""
    seen: dict[int, int] = {}
    numbered = []
    for question in questions:
        image = ids[question.scene]
        seen[image] = seen.get(image, -1) + 1
        numbered.append((1000 * image + seen[image], image, question))
    return numbered


def _annotation(number: int, image: int, question: Question, generator: np.random.Generator) -> dict[str, Any]:
    """VQAv2's entry: ten annotators, of whom some write the answer in another way."""
    said = [question.answer] * 10
    for index in range(int(generator.integers(0, 3))):
        said[index] = _NUMBERS.get(question.answer, f"the {question.answer}.".capitalize())
    order = generator.permutation(10)
    answers = [
        {"answer": said[i], "answer_confidence": "yes", "answer_id": place} for place, i in enumerate(order, start=1)
    ]
    return {
        "question_id": number,
        "image_id": image,
        "question_type": question.question_type,
        "answer_type": question.answer_type,
        "multiple_choice_answer": question.answer,
        "answers": answers,
    }


def _dump(path: Path, subset: str, content: dict[str, Any]) -> None:
    head = {"info": {"description": "toy scenes"}, "data_type": "toy", "data_subtype": subset}
    path.write_text(json.dumps({**head, **content}) + "\n")


def _write_flickr(folder: Path, manifest: dict[str, Any]) -> None:
    generator = np.random.default_rng(manifest["seed"])
    taken: set[Scene] = set()
    entries: list[dict[str, Any]] = []
    (folder / "flickr30k-images").mkdir()
    for split in ("train", "val", "test"):
        for scene in _scenes(manifest[split], generator, taken, CAPTIONED):
            name = f"{1000 + len(entries)}.jpg"
            draw(scene, generator).save(folder / "flickr30k-images" / name, **_JPEG)
            first = len(entries) * CAPTIONS
            sentences = [
                {"raw": text, "imgid": len(entries), "sentid": first + i, "tokens": text.lower().strip(".").split()}
                for i, text in enumerate(captions(scene, CAPTIONS, generator))
            ]
            entry = {"filename": name, "imgid": len(entries), "split": split, "sentences": sentences}
            entries.append({**entry, "sentids": [sentence["sentid"] for sentence in sentences]})
    (folder / "karpathy").mkdir()
    (folder / "karpathy" / "dataset_flickr30k.json").write_text(
        json.dumps({"images": entries, "dataset": "flickr30k"}) + "\n"
    )


def _write_encoders(folder: Path, manifest: dict[str, Any]) -> None:
    generator = np.random.default_rng(0)  # one tokenizer, whatever the weights' seed
    scenes = _scenes(400, generator, set())
    texts = [question.text for question in balanced(scenes, 4, generator)]
    texts += [text for scene in scenes for text in captions(scene, CAPTIONS, generator)]
    sizes = {"width": manifest["width"], "seed": manifest["seed"]}
    write_image_encoder(folder / "clip", layers=manifest["layers"] + 1, **sizes)
    write_text_encoder(folder / "roberta", texts, layers=manifest["layers"], **sizes)
