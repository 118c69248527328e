"""ImageNet, -C, -A, -R and -Sketch with a few images each, and what a reference from the official code says of them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import datasets, transforms

from frozenllm.vision2d.robustness import main
from frozenllm.vision2d.robustness.sets import (
    class_indices,
    classes,
)

CONFIG = "frozenllm.vision2d.conf"
SIZE = 16
WNIDS = classes("imagenet")
SPEC = {"hidden_size": 32, "num_heads": 2, "num_kv_heads": 2, "head_dim": 16, "intermediate_size": 48}
OFFICIAL = [transforms.ToTensor(), transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))]
CLEAN = transforms.Compose([transforms.Resize(18, interpolation=3), transforms.CenterCrop(SIZE), *OFFICIAL])
CROPPED = transforms.Compose([transforms.CenterCrop(SIZE), *OFFICIAL])
FOLDERS = {"imagenet": "in1k", "imagenet_c": "in-c", "imagenet_a": "in-a", "imagenet_r": "in-r.tar"}
FOLDERS["imagenet_sketch"] = "sketch"


RECIPES = sorted(
    file.name.removesuffix(".yaml")
    for file in (resources.files(CONFIG) / "recipe").iterdir()
    if file.name.startswith("imagenet_")
)


def tiny(recipe: str, runs: Path, data: Path) -> list[str]:
    """Overrides that leave a recipe as it is, but for its widths, the block, the machine and the length."""
    spec = "{" + ",".join(f"{key}:{value}" for key, value in SPEC.items()) + "}"
    block = [f"+llm.spec={spec}", "llm.kind=random", "llm.source=null"] if "llama" in recipe else []
    model = ["+model.img_size=16", "+model.patch_size=8", "+model.embed_dim=24", "+model.depth=1", "+model.num_heads=2"]
    images = [f"data.{split}.transform.input_size={SIZE}" for split in ("train", "val")]
    length = ["data.batch_size=2", "data.val_batch_size=8", "schedule.epochs=2", "schedule.warmup_epochs=1"]
    machine = ["runtime.device=cpu", "runtime.threads=1", "runtime.workers=0", "runtime.precision=fp32"]
    machine += ["runtime.console=false", "runtime.plots=false", "runtime.checkpoint.keep=1"]
    return [*block, *model, *images, *length, *machine, f"data.root={data}", f"runs={runs}"]


def right_of_four(corruption: int, severity: int) -> int:
    return min(4, (corruption + 2 * severity) % 6)


def noise(rng: np.random.Generator, width: int = SIZE, height: int = SIZE) -> Image.Image:
    coarse = rng.integers(0, 256, (3, 4, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.NEAREST)


@torch.no_grad()
def predictions(model: torch.nn.Module, image: Image.Image, transform: Any) -> torch.Tensor:
    return model(transform(image)[None])[0]


def write_images(
    root: Path, family: str, model: torch.nn.Module, rng: np.random.Generator, count: int, right: int
) -> None:
    """So many images, the first ones filed under the class that is predicted when only the set's are allowed."""
    allowed = [class_indices()[wnid] for wnid in classes(family)]
    transform = CROPPED if family == "imagenet_c" else CLEAN
    for i in range(count):
        image = noise(rng) if family == "imagenet_c" else noise(rng, 20, 22)
        logits = predictions(model, image, transform)[allowed]
        best = int(logits.argmax()) if i < right else int(logits.argsort()[len(allowed) // 2])
        folder = root / classes(family)[best]
        folder.mkdir(parents=True, exist_ok=True)
        image.save(folder / f"{i}.png")


def arguments(run: Path, family: dict[str, Path], out: Path, *more: str) -> list[str]:
    data = [f"data.{name}={path}" for name, path in family.items()]
    runtime = ["runtime.device=cpu", "runtime.threads=1", "runtime.workers=0", "runtime.console=false", "batch_size=3"]
    return [f"checkpoint={run}", *data, *runtime, "partial=true", f"out={out}", *more]


def figures(out: Path) -> dict[str, Any]:
    return json.loads((out / "results.json").read_text())


@torch.no_grad()
def official(model: torch.nn.Module, folder: Path, transform: Any, mask: Sequence[bool] | None) -> float:
    """Top-1 as the official engine.py has it, on torchvision's ImageFolder with the labels of all the set's classes."""
    data = datasets.ImageFolder(str(folder), transform)
    allowed = [wnid for wnid, use in zip(WNIDS, mask or [True] * 1000, strict=True) if use]
    hits = [
        int(model(image[None])[:, torch.tensor(mask)].argmax() if mask else model(image[None]).argmax())
        == allowed.index(data.classes[target])
        for image, target in (data[i] for i in range(len(data)))
    ]
    return 100 * sum(hits) / len(hits)


def fails(argv: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one line that the command prints when it fails."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as caught:
        main(argv)
    assert caught.value.code == 1
    lines = capsys.readouterr().err.strip().splitlines()
    assert [line.partition(" ")[0] for line in lines] == ["error:"], lines
    return lines[0]
