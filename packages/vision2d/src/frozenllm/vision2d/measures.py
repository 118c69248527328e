"""What the information-filtering study measures on one run: activations of all patches, and which of them matter."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset
from tqdm import tqdm

from frozenllm.core.analysis import Analysis, GradientCoherence, analyse, frequency, gradient_coherence, magnitude
from frozenllm.core.study import check_counts, read_studied, spread_indices, studied_device, validation_data
from frozenllm.core.training import UNREADABLE, SavedRun
from frozenllm.vision2d.data import ImageDataset
from frozenllm.vision2d.imagenet_s import IGNORED, MASKS, MaskedImages, SegmentationMasks, imagenet_s, ink
from frozenllm.vision2d.masks import TokenRule
from frozenllm.vision2d.model import FrozenLLMViT

PIXELS = "pixels"
"""The tap before all others: the patches' normalised pixels as tokens."""
GRADIENTS = 32
"""Samples whose gradients are compared: every two of them."""


@dataclass
class Measured:
    """Everything that was measured on a run: S images of N patches.

    Attributes:
        title: The run, as ``recipe/name``.
        analysis: Activations and ranks.
        names: ``<class>/<file>`` of each image.
        targets: (S,) class indices.
        relevant: (S, N) bool, patches on the object; None where nobody knows.
        counted: (S, N) bool, patches of which the mask says something.
        what: What ``relevant`` means, such as ``"the object"``.
        classes: Names of the classes, by index.
        coherence: Of the host's gradients, or None.
        own_classes: Whether the images are labelled with the model's own classes.
        images: The data.
        places: Index into it of each image.
        notes: What a reader should know.
    """

    title: str
    analysis: Analysis
    names: list[str]
    targets: Tensor
    relevant: Tensor | None
    counted: Tensor | None
    what: str
    classes: list[str]
    coherence: GradientCoherence | None
    own_classes: bool
    images: MaskedImages
    places: list[int]
    notes: list[str] = field(default_factory=list)


def host_module(model: FrozenLLMViT) -> nn.Module:
    """The module whose output enters the frozen layer, or would enter it."""
    return model.blocks[model.llm_index - 1] if model.llm_index else model.norm_pre


def measure(
    run: str | Path,
    *,
    masks: str | Path | None = None,
    rule: str = "majority",
    limit: int | None = None,
    weights: str = "auto",
    on_error: str | None = None,
    coherence: bool = True,
) -> Measured:
    """Analyse a finished run on its validation images, or on ImageNet-S.

    Args:
        run: The run folder, or one of its checkpoints.
        masks: Root of ImageNet-S; None for the run's own images, with masks where the data has them.
        rule: Which patches lie on the object, see `TokenRule`.
        limit: At most so many images, spread evenly.
        weights: See `frozenllm.core.training.read_run`.
        on_error: ``"raise"`` or ``"skip"``, for images or masks that cannot be read; None for the run's own choice.
        coherence: Whether to compare gradients, which takes a backward pass for each of `GRADIENTS` images.

    Raises:
        ValueError: The run, its data or the masks cannot be read, or an option is unknown.
    """
    check_counts(limit, 0)
    token_rule = TokenRule(rule)
    saved = read_studied(run, weights)
    model = saved.build()
    if not isinstance(model, FrozenLLMViT):
        raise ValueError(f"{saved.path} holds a {type(model).__name__}: this study is for vision transformers.")
    device = studied_device(saved)
    model.to(device)
    images, what = _images(saved, masks, on_error)
    grid = tuple(model.patch_embed.grid_size)
    chosen = spread_indices(len(images), limit)
    found: dict[str, list[Any]] = {"relevant": [], "counted": [], "targets": [], "places": [], "pixels": []}

    def batches() -> Iterator[Tensor]:
        for places, batch in _batches(saved, images, chosen):
            kept = batch["targets"] != UNREADABLE
            ids = batch["mask"][kept]
            on, counts = token_rule.tokens((ids > 0) & (ids != IGNORED), ids == IGNORED, grid)
            found["relevant"].append(on)
            found["counted"].append(counts)
            found["targets"].append(batch["targets"][kept])
            found["places"] += [place for place, keep in zip(places, kept.tolist(), strict=True) if keep]
            if kept.any():
                found["pixels"].append(_pixels(batch["inputs"][kept], grid))
                yield batch["inputs"][kept]

    analysis = analyse(model, batches(), grid=grid, host=host_module(model) if model.llm is None else None)
    pixels = torch.cat(found["pixels"])
    # What the picture itself gives: a network that learned nothing would pass it on.
    own = {("magnitude", PIXELS): magnitude(pixels), ("frequency", PIXELS): frequency(pixels)}
    analysis.activations = {**own, **analysis.activations}
    analysis.strengths = {PIXELS: magnitude(pixels, normalize=False), **analysis.strengths}
    places = found["places"]
    notes = list(analysis.notes)
    if images.num_unreadable:
        notes.append(f"{images.num_unreadable} of {len(chosen)} images were left out: they or their masks are broken.")
    gradients = None
    if coherence:
        gradients, note = _coherence(saved, model, device)
        notes += [note] if note else []
    names = getattr(images.reader, "class_to_idx", None) or {}
    return Measured(
        title=f"{saved.cfg.recipe}/{saved.cfg.name}",
        analysis=analysis,
        names=[images.name(place) for place in places],
        targets=torch.cat(found["targets"]),
        relevant=torch.cat(found["relevant"]) if images.mask is not None else None,
        counted=torch.cat(found["counted"]) if images.mask is not None else None,
        what=what,
        classes=[name for name, _ in sorted(names.items(), key=lambda item: item[1])],
        coherence=gradients,
        own_classes=masks is None,
        images=images,
        places=places,
        notes=notes,
    )


def _images(saved: SavedRun, masks: str | Path | None, on_error: str | None) -> tuple[MaskedImages, str]:
    """The images to study with their masks, and what these show."""
    settings: dict[str, Any] = OmegaConf.to_container(saved.cfg.data.val, resolve=True)  # type: ignore[assignment]
    transform = settings.get("transform")
    policy = on_error or settings.get("on_error", "raise")
    if masks is not None:
        return imagenet_s(masks, transform, on_error=policy), "the object"
    data = validation_data(saved)
    assert isinstance(data, ImageDataset)
    if settings["type"] == "digits":
        return MaskedImages(data.reader, transform, ink, on_error=policy), "the digit's ink"
    folder = Path(str(getattr(data.reader, "root", "")))
    beside = folder.with_name(f"{folder.name}{MASKS}")
    if folder.is_dir() and beside.is_dir():
        return MaskedImages(data.reader, transform, SegmentationMasks(beside), on_error=policy), "the object"
    return MaskedImages(data.reader, transform, None, on_error=policy), "the object"


def _batches(saved: SavedRun, images: MaskedImages, chosen: list[int]) -> Iterator[tuple[list[int], dict[str, Tensor]]]:
    size = min(int(saved.cfg.data.val_batch_size or saved.cfg.data.batch_size), 64)  # every tap is kept meanwhile
    loader = DataLoader(Subset(images, chosen), batch_size=size, num_workers=saved.cfg.runtime.workers)
    with tqdm(total=len(chosen), desc="studying", unit="image", disable=not sys.stderr.isatty()) as bar:
        for number, batch in enumerate(loader):
            places = chosen[number * size : (number + 1) * size]
            yield places, batch
            bar.update(len(places))


def _pixels(images: Tensor, grid: tuple[int, int]) -> Tensor:
    """(B, C, H, W) -> (B, patches, pixels of a patch)."""
    side = images.shape[-2] // grid[0], images.shape[-1] // grid[1]
    return nn.functional.unfold(images, side, stride=side).mT


def _coherence(saved: SavedRun, model: FrozenLLMViT, device: torch.device) -> tuple[GradientCoherence | None, str]:
    """How alike the gradients of the run's own validation images are; or why that is not known."""
    try:
        data = validation_data(saved)
    except ValueError as error:
        return None, f"Gradients were not compared: {error}"
    assert isinstance(data, ImageDataset)

    def losses() -> Iterator[Tensor]:
        for index in spread_indices(len(data), GRADIENTS):
            image, target = data[index]
            if target != UNREADABLE:
                yield nn.functional.cross_entropy(model(image[None].to(device)), torch.tensor([target], device=device))

    # What a host alone has as well; the head is left out: its gradient differs by class whatever the tokens hold.
    own = [p for name, p in model.named_parameters() if not name.startswith(("llm.", "head."))]
    try:
        return gradient_coherence(losses(), own), ""
    except ValueError as error:
        return None, f"Gradients were not compared: {error}"
