"""Recalls over a gallery without the matrix: chunks change nothing, and a killed evaluation goes on."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from frozenllm.core.training import compose_config, train
from frozenllm.vqa import retrieve
from frozenllm.vqa.data import GalleryDataset, flickr30k
from frozenllm.vqa.retrieval import model_scorer, stream_recalls
from frozenllm.vqa.runs import load_run
from frozenllm.vqa.scoring import ranks_of_images, recalls
from frozenllm.vqa.train import CONFIG

OWN = [(5 * i, 5 * i + 5) for i in range(12)]
SCORES = np.random.default_rng(0).normal(size=(12, 60)).astype(np.float32)
for _image, (_start, _end) in enumerate(OWN):
    SCORES[_image, _start:_end] += 1.5  # better than chance, worse than perfect


class Scorer:
    """Looks scores up; fails after a number of calls."""

    def __init__(self, calls: int | None = None) -> None:
        self.left = calls
        self.largest = 0

    def __call__(self, images: Sequence[int], captions: Sequence[int]) -> np.ndarray:
        if self.left is not None:
            if not self.left:
                raise KeyboardInterrupt
            self.left -= 1
        self.largest = max(self.largest, len(images))
        return SCORES[np.asarray(images), np.asarray(captions)]


WANTED = recalls(*ranks_of_images(SCORES, OWN))


@pytest.mark.parametrize(("image_block", "pair_chunk"), [(1, 1), (5, 7), (100, 1000)])
def test_chunks_change_nothing(image_block: int, pair_chunk: int) -> None:
    scorer = Scorer()
    assert stream_recalls(scorer, OWN, image_block=image_block, pair_chunk=pair_chunk, progress=False) == WANTED
    assert scorer.largest <= pair_chunk
    assert 0 < WANTED["ir@1"] < 100


def test_killed_evaluation_goes_on(tmp_path: Path) -> None:
    state = tmp_path / "counts.npz"
    options = {"image_block": 2, "pair_chunk": 10, "state": state, "fingerprint": "a", "progress": False}
    with pytest.raises(KeyboardInterrupt):
        stream_recalls(Scorer(calls=50), OWN, **options)
    assert state.exists()
    with pytest.raises(ValueError, match="another checkpoint or gallery"):
        stream_recalls(Scorer(), OWN, **{**options, "fingerprint": "b"})
    rest = Scorer(calls=60 // 10 + 12 * 6 - 40)  # fewer calls than from the start
    assert stream_recalls(rest, OWN, **options) == WANTED
    assert not state.exists()
    state.write_bytes(b"PK nothing")
    with pytest.raises(ValueError, match="damaged"):
        stream_recalls(Scorer(), OWN, **options)


def test_command_equals_the_whole_matrix(
    tmp_path: Path, flickr_root: Path, tiny: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    overrides = ["task=retrieval", "llm=bundled", f"data.root={flickr_root}", *tiny, f"runs={tmp_path}", "name=it"]
    result = train(compose_config(CONFIG, [*overrides, "runtime.stop_after=2", "data.batch_size=4"]))
    path = f"{result.run_dir}/checkpoints/last.pt"
    model, cfg = load_run(path)
    settings = {k: v for k, v in cfg.data.val.items() if k != "type"}
    data = flickr30k(**{**settings, "part": "test", "limit": None})
    assert isinstance(data, GalleryDataset)
    with torch.no_grad():
        pixels = torch.stack([data[i]["inputs"]["pixel_values"] for i in range(len(data))])
        whole = model(pixels, gallery_ids=data.gallery_ids, gallery_mask=data.gallery_mask)["rank"].numpy()
    score = model_scorer(model, data, torch.device("cpu"), batch=3)
    pairs = np.array_split(np.arange(whole.size), 9)
    again = np.concatenate([score(*(part.tolist() for part in np.divmod(some, whole.shape[1]))) for some in pairs])
    np.testing.assert_allclose(again, whole.ravel(), rtol=0, atol=5e-3 * np.abs(whole).max() + 1e-3)  # kept in float16
    retrieve.main([str(result.run_dir), "--split", "test", "--pair-chunk", "64"])
    printed = json.loads(capsys.readouterr().out)
    assert set(printed) == {f"{way}@{k}" for way in ("ir", "tr") for k in (1, 5, 10)}
    assert json.loads((Path(result.run_dir) / "retrieval.jsonl").read_text())["ir@1"] == printed["ir@1"]
    with pytest.raises(SystemExit, match=r"error: There is no checkpoint at /no/such.pt\."):
        retrieve.main(["/no/such.pt"])
