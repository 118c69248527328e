"""Every config of the group ``data`` builds, on data in its format, and yields what the recipes say."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import Dataset

from frozenllm.core.training import DATASETS, compose_config
from frozenllm.core.training.composition import resolve
from frozenllm.video.data import collate_videos
from frozenllm.video.train import CONFIG

Roots = dict[str, Path]


@pytest.fixture(scope="module")
def roots(toy_frames_root: Path, toy_videos_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Roots:
    """Toy videos in every layout."""
    folders = tmp_path_factory.mktemp("folders")
    official = tmp_path_factory.mktemp("official")
    shutil.copytree(toy_videos_root / "videos", official / "20bn-something-something-v2")
    for name in ("labels", "train", "validation"):
        shutil.copy(toy_videos_root / f"{name}.json", official)
    for part in ("train", "val"):
        for line in (toy_videos_root / f"{part}.csv").read_text().splitlines():
            path, label = line.split(" ")
            (folders / part / label).mkdir(parents=True, exist_ok=True)
            shutil.copy(toy_videos_root / path, folders / part / label)
    return {"frames": toy_frames_root, "videos": toy_videos_root, "official": official, "folders": folders}


TOY = ["+data.toy.train_videos=24", "+data.toy.val_videos=8"]
CONFIGS: dict[str, Callable[[Roots], list[str]]] = {
    "toy_frames": lambda roots: [f"data.root={roots['frames']}", *TOY],
    "toy_videos": lambda roots: [f"data.root={roots['videos']}", *TOY],
    "ssv2_frames": lambda roots: [f"data.root={roots['frames']}"],
    "ssv2_videos": lambda roots: [f"data.root={roots['official']}"],
    "video_csv": lambda roots: [f"data.root={roots['videos']}"],
    "video_folder": lambda roots: [f"data.root={roots['folders']}", "data.num_classes=4"],
}


def test_every_config_is_tested() -> None:
    files = [file.name for file in (resources.files(CONFIG) / "data").iterdir()]
    assert {f.removesuffix(".yaml") for f in files if f.endswith(".yaml") and not f.startswith("_")} == set(CONFIGS)


def built(name: str, *overrides: str) -> tuple[Any, dict[str, Dataset]]:
    cfg = resolve(compose_config(CONFIG, ["recipe=moving_digits", f"data={name}", *overrides])).data
    return cfg, {part: DATASETS.build(dict(cfg[part])) for part in ("train", "val", "test")}


@pytest.mark.parametrize("name", CONFIGS)
def test_configs_build(name: str, roots: Roots) -> None:
    cfg, sets = built(name, *CONFIGS[name](roots))
    samples, frames, size = cfg.samples_per_video, cfg.num_frames, cfg.size
    assert [len(sets[part]) for part in ("train", "val", "test")] == [24, 8, 48]
    torch.manual_seed(0)
    batch = collate_videos([sets["train"][i] for i in range(3)])
    assert batch["inputs"].shape == (3 * samples, frames, 3, size, size)
    assert batch["inputs"].dtype == torch.float32
    assert batch["targets"].shape == (3 * samples,)
    for part, index in (("val", 7), ("test", 47)):
        sample = sets[part][index]
        assert sample["inputs"].shape == (frames, 3, size, size)
        assert sample["video"] == 7
        assert 0 <= sample["targets"] < 4
    assert sets["val"][7]["targets"] == sets["test"][42]["targets"]
    if not name.startswith("toy"):
        assert (samples, frames, size) == (2, 16, 224)
        assert cfg.train.transform.auto_augment == "rand-m7-n4-mstd0.5-inc1"
        assert (cfg.train.transform.hflip, cfg.train.transform.erase) == (0.0, 0.25)
        assert dict(cfg.test.views) == {"temporal": 2, "spatial": 3}


def test_a_missing_root_is_named() -> None:
    for name in ("ssv2_frames", "ssv2_videos", "video_csv", "video_folder"):
        with pytest.raises(ValueError, match=r"The value of data\.\w+ is missing: give data\.\w+=\.\.\.") as caught:
            built(name)
        assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match=r"nowhere/labels\.json does not exist; data\.labels should name"):
        built("ssv2_frames", "data.root=/nowhere")
