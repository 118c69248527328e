"""Recalls over a whole gallery without the matrix of its scores: every image meets every caption, block by block.

The rank of a right pair is the number of wrong ones that score at least as high, so counts are all that has to be kept:
first every pair that belongs together is scored, then block after block of images is compared with all captions. What
has been counted is written down after every block, and a killed evaluation goes on from there.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from frozenllm.core.training import UNREADABLE
from frozenllm.core.whole_files import whole_file
from frozenllm.vqa.data.captions import GalleryDataset
from frozenllm.vqa.meter.model import MeterRetrieval
from frozenllm.vqa.scoring import recalls

logger = logging.getLogger(__name__)

Scorer = Callable[[Sequence[int], Sequence[int]], np.ndarray]
"""Image numbers and caption numbers, equally many -> the score of every pair, float32."""


@dataclass
class Counts:
    """What has been counted so far.

    Attributes:
        right: (captions,) score of every caption with its own image.
        images_above: (captions,) other images that score at least as high.
        texts_above: (images,) other captions that score at least as high as the best of the image's own.
        done: Images that have met all captions.
    """

    right: np.ndarray
    images_above: np.ndarray
    texts_above: np.ndarray
    done: int = 0


def stream_recalls(
    score: Scorer,
    own: Sequence[tuple[int, int]],
    *,
    image_block: int = 8,
    pair_chunk: int = 256,
    state: str | os.PathLike[str] | None = None,
    fingerprint: str = "",
    progress: bool = True,
) -> dict[str, float]:
    """Recalls of a gallery.

    Args:
        score: Scores pairs; it is never asked for more than ``pair_chunk`` at a time.
        own: The range of every image's captions; captions are numbered in the order of their images.
        image_block: Images after which the counts are written down.
        pair_chunk: Pairs that are scored at a time.
        state: File for the counts; None keeps them in memory alone. It is removed at the end.
        fingerprint: What the counts belong to: a file with another one is refused.
        progress: Show a bar.

    Returns:
        See `recalls`.

    Raises:
        ValueError: A size is not positive, or the file belongs to another evaluation.
    """
    if image_block < 1 or pair_chunk < 1:
        raise ValueError(f"image_block and pair_chunk must be positive, not {image_block} and {pair_chunk}.")
    path = None if state is None else Path(state)
    images, captions = len(own), own[-1][1]
    image_of = np.repeat(np.arange(images), [end - start for start, end in own])
    counts = None if path is None or not path.exists() else _read(path, fingerprint, captions, images)
    with tqdm(total=images, initial=counts.done if counts else 0, unit="image", disable=not progress) as bar:
        if counts is None:
            right = _in_chunks(score, image_of, np.arange(captions), pair_chunk)
            counts = Counts(right, np.zeros(captions, np.int64), np.zeros(images, np.int64))
            _write(path, counts, fingerprint)
        while counts.done < images:
            for image in range(counts.done, min(counts.done + image_block, images)):
                start, end = own[image]
                others = np.concatenate([np.arange(start), np.arange(end, captions)])
                found = _in_chunks(score, np.full(len(others), image), others, pair_chunk)
                counts.images_above[others] += found >= counts.right[others]
                counts.texts_above[image] = int((found >= counts.right[start:end].max()).sum())
                counts.done += 1
                bar.update()
            _write(path, counts, fingerprint)
    if path is not None:
        path.unlink(missing_ok=True)
    return recalls(counts.images_above, counts.texts_above)


def model_scorer(model: MeterRetrieval, data: GalleryDataset, device: torch.device, *, batch: int = 64) -> Scorer:
    """Scores of a model: images and captions are encoded once and kept (in float16 on the CPU), pairs are fused.

    Args:
        model: The model, in eval mode on the device.
        data: The gallery.
        device: Where it computes.
        batch: Images or captions that are encoded at a time.

    Raises:
        ValueError: An image cannot be read.
    """

    @torch.inference_mode()
    def encode() -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        images, texts, masks = [], [], []
        for start in tqdm(range(0, len(data), batch), desc="encoding images", leave=False):
            samples = [data[i] for i in range(start, min(start + batch, len(data)))]
            for place, sample in enumerate(samples):
                if sample["targets"] == UNREADABLE:
                    name = data.images[start + place].image.name
                    raise ValueError(f"{name} cannot be read: a gallery is only scored whole.")
            pixels = torch.stack([sample["inputs"]["pixel_values"] for sample in samples]).to(device)
            images += list(model.trunk.encode_image(pixels).half().cpu())
        for start in tqdm(range(0, len(data.gallery_ids), batch), desc="encoding captions", leave=False):
            mask = data.gallery_mask[start : start + batch]
            length = int(mask.sum(1).max())
            ids, mask = data.gallery_ids[start : start + batch, :length].to(device), mask[:, :length].to(device)
            texts += list(model.trunk.encode_text(ids, mask).half().cpu())
            masks += list(mask.cpu())
        return images, texts, masks

    images, texts, masks = encode()

    @torch.inference_mode()
    def score(image_numbers: Sequence[int], caption_numbers: Sequence[int]) -> np.ndarray:
        image = torch.stack([images[i] for i in image_numbers]).to(device, torch.float32)
        text = torch.nn.utils.rnn.pad_sequence([texts[j] for j in caption_numbers], batch_first=True)
        mask = torch.nn.utils.rnn.pad_sequence([masks[j] for j in caption_numbers], batch_first=True)
        pooled = model.trunk.join(image, text.to(device, torch.float32), mask.to(device))
        return model.rank(pooled)[:, 0].float().cpu().numpy()

    return score


def fingerprint_of(checkpoint: str | os.PathLike[str], data: GalleryDataset) -> str:
    """What an evaluation's counts belong to: the checkpoint's bytes, the images' names and all captions."""
    digest = hashlib.sha256()
    with open(checkpoint, "rb") as file:
        while part := file.read(1 << 20):
            digest.update(part)
    digest.update(json.dumps([(image.image_id, image.captions) for image in data.images]).encode())
    return digest.hexdigest()


def _in_chunks(score: Scorer, images: np.ndarray, captions: np.ndarray, size: int) -> np.ndarray:
    parts = [
        score(images[start : start + size].tolist(), captions[start : start + size].tolist())
        for start in range(0, len(images), size)
    ]
    return np.concatenate(parts) if parts else np.zeros(0, np.float32)


def _write(path: Path | None, counts: Counts, fingerprint: str) -> None:
    if path is None:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as scratch, open(scratch, "wb") as file:
        np.savez(
            file,
            right=counts.right,
            images_above=counts.images_above,
            texts_above=counts.texts_above,
            done=counts.done,
            fingerprint=fingerprint,
        )


def _read(path: Path, fingerprint: str, captions: int, images: int) -> Counts:
    try:
        with np.load(path, allow_pickle=False) as content:
            theirs = str(content["fingerprint"])
            counts = Counts(content["right"], content["images_above"], content["texts_above"], int(content["done"]))
    except (OSError, ValueError, KeyError, EOFError) as error:
        raise ValueError(f"{path} is damaged ({error}): remove it to start anew.") from error
    if theirs != fingerprint or counts.right.shape != (captions,) or counts.texts_above.shape != (images,):
        raise ValueError(f"{path} was written for another checkpoint or gallery: remove it to start anew.")
    logger.info("Going on after %d of %d images, from %s.", counts.done, images, path)
    return counts
