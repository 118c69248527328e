"""Shared by the tests of 2D vision."""

from __future__ import annotations

import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from toy_imagenet import FOLDERS, WNIDS, noise, right_of_four, tiny, write_images

from frozenllm.core.training import compose_config, train
from frozenllm.vision2d.robustness import load_candidate
from frozenllm.vision2d.robustness.sets import ALEXNET_ERRORS, SEVERITIES
from frozenllm.vision2d.toy import write_digits
from frozenllm.vision2d.train import CONFIG


@pytest.fixture(scope="session")
def digits_root(cache_home: Path) -> Path:
    """The toy digits, written once."""
    return write_digits()


@pytest.fixture(scope="session")
def toy_imagenet(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Four images to train on and two to validate with, as folders and as tar files."""
    root = tmp_path_factory.mktemp("imagenet")
    rng = np.random.default_rng(0)
    for split, count in (("train", 4), ("val", 2)):
        for wnid in WNIDS[:count]:
            (root / "folders" / split / wnid).mkdir(parents=True)
            noise(rng, 20, 24).save(root / "folders" / split / wnid / "a.JPEG")
        (root / "tars").mkdir(exist_ok=True)
        with tarfile.open(root / "tars" / f"{split}.tar", "w") as archive:
            archive.add(root / "folders" / split, arcname=split)
    return {"folders": root / "folders", "tars": root / "tars"}


@pytest.fixture(scope="session")
def run(toy_imagenet: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint of a recipe, trained for a step; then with weights that tell images apart."""
    runs = tmp_path_factory.mktemp("runs")
    recipe = "imagenet_vit_tiny_llama"
    settings = [*tiny(recipe, runs, toy_imagenet["tars"]), "name=toy", "runtime.stop_after=1"]
    result = train(compose_config(CONFIG, [f"recipe={recipe}", *settings]))
    path = Path(result.run_dir) / "checkpoints" / "last.pt"
    checkpoint = torch.load(path, weights_only=True)
    generator = torch.Generator().manual_seed(1)
    for name, value in checkpoint["state_dict"].items():  # after a step all images look alike to it
        if value.is_floating_point() and value.ndim > 1:
            value.normal_(0, 0.6, generator=generator)
            if name in checkpoint["ema"]:
                checkpoint["ema"][name] = value.flip(0).clone()
    torch.save(checkpoint, path)
    return path


@pytest.fixture(scope="session")
def model(run: Path) -> torch.nn.Module:
    """The model of `run`."""
    return load_candidate(str(run)).model


@pytest.fixture(scope="session")
def family(tmp_path_factory: pytest.TempPathFactory, model: torch.nn.Module) -> dict[str, Path]:
    """Every data set of the family as users have it, with a few classes each.

    The images are random, and are filed under the classes that a reference written from the official code predicts for
    them, or under others: so the right figures are known, and are not those of chance.
    """
    root = tmp_path_factory.mktemp("family")
    rng = np.random.default_rng(5)
    write_images(root / "in1k" / "val", "imagenet", model, rng, 7, 5)
    write_images(root / "in-a", "imagenet_a", model, rng, 6, 4)
    (root / "in-a" / "README.txt").write_text("as in the download")
    write_images(root / "in-r", "imagenet_r", model, rng, 8, 6)
    with tarfile.open(root / "in-r.tar", "w") as archive:
        archive.add(root / "in-r", arcname="imagenet-r")
    write_images(root / "sketch", "imagenet_sketch", model, rng, 5, 2)
    for c, corruption in enumerate(ALEXNET_ERRORS):
        for severity in SEVERITIES:
            place = root / "in-c" / corruption / str(severity)
            write_images(place, "imagenet_c", model, rng, 4, right_of_four(c, severity))
    return {name: root / folder for name, folder in FOLDERS.items()}
