"""What ``frozenllm doctor`` tries of this package."""

from __future__ import annotations

import tempfile
from pathlib import Path

import timm
import torch

import frozenllm.vision2d  # noqa: F401  (registers the models)
from frozenllm.core.checkup import Check


def _host() -> str:
    model = timm.create_model("vit_tiny_patch16_224_frozenllm", img_size=32, num_classes=2, llm="bundled").eval()
    with torch.no_grad():
        scores = model(torch.zeros(1, 3, 32, 32))
    assert scores.shape == (1, 2)
    return f"timm {timm.__version__}, a host with the bundled block runs"


def _hugging_face() -> str:
    import datasets

    with tempfile.TemporaryDirectory() as folder:
        datasets.Dataset.from_dict({"label": [0, 1]}).save_to_disk(folder)
        if list(datasets.load_from_disk(folder)["label"]) != [0, 1]:
            raise RuntimeError("a saved data set is read back changed")
    return f"datasets {datasets.__version__} writes and reads"


def _shards() -> str:
    import webdataset

    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "shard.tar")
        with webdataset.TarWriter(path) as writer:
            writer.write({"__key__": "0", "cls": 1})
        if [sample["cls"] for sample in webdataset.WebDataset(path, shardshuffle=False).decode()] != [1]:
            raise RuntimeError("a written shard is read back changed")
    return f"webdataset {webdataset.__version__} writes and reads"


def _trainer() -> str:
    import accelerate

    accelerate.Accelerator(cpu=True)
    return f"accelerate {accelerate.__version__}"


CHECKS = (
    Check("host with the frozen layer", _host, "pip install --upgrade frozenllm-vision2d"),
    Check("[readers] data.source=hfds/", _hugging_face, "pip install 'frozenllm-vision2d[readers]'", ("datasets",)),
    Check("[readers] data.source=wds/", _shards, "pip install 'frozenllm-vision2d[readers]'", ("webdataset",)),
    Check("[transformers] Trainer", _trainer, "pip install 'frozenllm-vision2d[transformers]'", ("accelerate",)),
)
