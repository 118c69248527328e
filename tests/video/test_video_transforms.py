"""Augmentation of clips: against timm's operations on single images, and the official code's sizes and places."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F
from torchvision.transforms import v2

from frozenllm.video.augment import OPERATIONS, VideoRandAugment
from frozenllm.video.transforms import CubeErasing, EvalTransform, TrainTransform, make_transform

PAPER = "rand-m7-n4-mstd0.5-inc1"


def picture(height: int = 60, width: int = 80) -> torch.Tensor:
    """A smooth colourful image, (3, H, W) uint8."""
    y, x = torch.meshgrid(torch.linspace(0, 1, height), torch.linspace(0, 1, width), indexing="ij")
    return (torch.stack([x, y, 0.5 + 0.5 * torch.sin(6 * x + 4 * y)]) * 200 + 20).to(torch.uint8)


def as_pil(image: torch.Tensor) -> Image.Image:
    return Image.fromarray(image.permute(1, 2, 0).numpy())


TIMM_NAMES = {"TranslateX": "TranslateXRel", "TranslateY": "TranslateYRel"}
INCREASING = ("Posterize", "Solarize", "Color", "Contrast", "Brightness", "Sharpness")


@pytest.fixture(scope="module")
def timm_augment() -> Any:
    """timm's module of operations."""
    return pytest.importorskip("timm.data.auto_augment", reason="timm is the oracle")


def by_timm(timm_augment: Any, operation: str, magnitude: float, image: torch.Tensor, sign: float) -> torch.Tensor:
    """timm's operation of the increasing set, at a magnitude from 0 to 10 and in a direction."""
    name = TIMM_NAMES.get(operation, operation + ("Increasing" if operation in INCREASING else ""))
    level_to_arg = timm_augment.LEVEL_TO_ARG[name]
    negate = timm_augment._randomly_negate
    timm_augment._randomly_negate = lambda value: sign * value
    try:
        arguments = level_to_arg(magnitude, {}) if level_to_arg else ()
    finally:
        timm_augment._randomly_negate = negate
    result = timm_augment.NAME_TO_OP[name](
        as_pil(image), *arguments, fillcolor=(128, 128, 128), resample=Image.Resampling.BILINEAR
    )
    return torch.from_numpy(np.asarray(result).copy()).permute(2, 0, 1)


SIGNED = {"Rotate", "Color", "Contrast", "Brightness", "Sharpness", "ShearX", "ShearY", "TranslateX", "TranslateY"}
# In PIL's coordinates a positive shift moves the other way; both directions are equally likely.
MIRRORED = {"TranslateX", "TranslateY"}
# Mean difference in grey levels of 255: rounding, borders of half a pixel, and shifts by whole pixels.
TOLERANCE = {"Rotate": 2.5, "ShearX": 2.5, "ShearY": 2.5, "TranslateX": 2.5, "TranslateY": 2.5, "Sharpness": 1.0}


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("magnitude", [0.0, 3.0, 7.0, 7.4, 10.0])
def test_operations_are_timms(operation: str, magnitude: float, timm_augment: Any) -> None:
    image = picture()
    for sign in (1.0, -1.0) if operation in SIGNED else (1.0,):
        level = sign * magnitude / 10 * (-1 if operation in MIRRORED else 1)
        ours = VideoRandAugment().apply(image[None], operation, level)[0]
        theirs = by_timm(timm_augment, operation, magnitude, image, sign)
        difference = (ours.int() - theirs.int()).abs().float().mean().item()
        assert difference <= TOLERANCE.get(operation, 0.6), (sign, difference)
        if magnitude == 7 and operation not in ("AutoContrast", "Equalize"):
            changed = (ours.int() - image.int()).abs().float().mean().item()
            assert changed > 3 * difference  # it does something, and not by the tolerance
    assert set(timm_augment._RAND_INCREASING_TRANSFORMS) == {
        TIMM_NAMES.get(op, op + ("Increasing" if op in INCREASING else "")) for op in OPERATIONS
    }


def test_the_papers_setting_is_read(timm_augment: Any) -> None:
    augment = VideoRandAugment.parse(PAPER)
    assert (augment.mean, augment.std, augment.num_ops, augment.prob) == (7.0, 0.5, 4, 0.5)
    theirs = timm_augment.rand_augment_transform(PAPER, {})
    assert theirs.num_layers == 4
    assert {op.prob for op in theirs.ops} == {0.5}
    for name in ("rand-m7-n4-mstd0.5", "augmix-m3", "rand-m12-inc1", "rand-m7-w0-inc1"):
        with pytest.raises(ValueError, match="auto_augment"):
            VideoRandAugment.parse(name)


def test_draws_are_those_of_timm(monkeypatch: pytest.MonkeyPatch) -> None:
    """Number and kind of applied operations, magnitudes and directions, over many clips."""
    augment, calls = VideoRandAugment.parse(PAPER), []
    monkeypatch.setattr(augment, "apply", lambda clip, operation, level: calls.append((operation, level)) or clip)
    torch.manual_seed(0)
    for _ in range(3000):
        augment(torch.zeros(1))
    assert abs(len(calls) / 3000 - 4 * 0.5) < 0.08
    levels = torch.tensor([abs(level) for _, level in calls])
    assert abs(levels.mean() - 0.7) < 0.005
    assert abs(levels.std() - 0.05) < 0.005
    for operation in OPERATIONS:
        mine = torch.tensor([level for name, level in calls if name == operation])
        assert abs(len(mine) / len(calls) - 1 / 15) < 0.015
        assert abs((mine < 0).float().mean() - (0.5 if operation in SIGNED else 0)) < 0.12


def test_frames_get_the_same_augmentation() -> None:
    frames = picture()[None].expand(5, -1, -1, -1)
    augment, crop = VideoRandAugment.parse("rand-m9-n4-p1.0-mstd0.5-inc1"), TrainTransform(32, auto_augment=PAPER)
    changed = 0
    for seed in range(30):
        torch.manual_seed(seed)
        clip = augment(frames)
        assert clip.dtype == torch.uint8
        assert clip.shape == frames.shape
        assert (clip == clip[:1]).all()
        changed += not torch.equal(clip[0], frames[0])
        cropped = crop(frames)
        assert cropped.shape == (5, 3, 32, 32)
        assert (cropped == cropped[:1]).all()
    assert changed >= 28


def test_one_frame_of_a_clip_is_augmented_as_a_clip_of_one() -> None:
    frames = torch.stack([picture(), picture().flip(1), picture().flip(2)])
    for operation in OPERATIONS:
        together = VideoRandAugment().apply(frames, operation, 0.7)
        for i in range(3):
            assert torch.equal(together[i], VideoRandAugment().apply(frames[i : i + 1], operation, 0.7)[0])


def test_erasing_takes_one_box_and_fresh_noise_in_every_frame() -> None:
    clip, erase = torch.full((6, 3, 40, 50), 9.0), CubeErasing(1.0)
    torch.manual_seed(0)
    shares = []
    for _ in range(50):
        erased = erase(clip)
        hit = erased != 9
        box = hit[0, 0]
        assert (hit == box).all()
        assert torch.equal(box, box.any(1)[:, None] & box.any(0)[None])
        noise = erased[:, :, box]
        assert not torch.equal(noise[0], noise[1])
        assert not torch.equal(noise[:, 0], noise[:, 1])
        assert noise.mean().abs() < 0.2
        assert abs(noise.std() - 1) < 0.2
        shares.append(box.float().mean().item())
    assert min(shares) >= 0.015
    assert max(shares) <= 0.36
    assert (clip == 9).all()  # the clip that came in stays
    erase = CubeErasing(0.25)
    assert abs(np.mean([(erase(clip) != 9).any() for _ in range(400)]) - 0.25) < 0.08


def test_training_crops_are_the_official_ones() -> None:
    """Share and ratio of the crop, and its resizing: bilinear, without smoothing, of normalised values."""
    transform = TrainTransform(32)
    boxes = []
    crop = transform.steps[0]
    assert isinstance(crop, v2.RandomResizedCrop)
    for seed in range(200):
        torch.manual_seed(seed)
        boxes.append(crop.make_params([torch.zeros(3, 240, 427)]))
    shares = [box["height"] * box["width"] / (240 * 427) for box in boxes]
    ratios = [box["width"] / box["height"] for box in boxes]
    assert 0.078 < min(shares) < 0.12
    assert max(shares) > 0.6
    assert 0.74 < min(ratios) < 0.8
    assert 1.25 < max(ratios) < 1.36
    frames = torch.stack([picture(240, 427)] * 2)
    torch.manual_seed(7)
    clip = transform(frames)
    box = boxes[7]
    values = (frames.float() / 255 - torch.tensor([0.485, 0.456, 0.406])[:, None, None]) / torch.tensor(
        [0.229, 0.224, 0.225]
    )[:, None, None]
    cut = values[..., box["top"] : box["top"] + box["height"], box["left"] : box["left"] + box["width"]]
    expected = F.interpolate(cut, (32, 32), mode="bilinear", align_corners=False)
    assert (clip - expected).abs().max() < 0.0176  # a grey level


def test_test_crops_are_the_official_ones() -> None:
    """Three crops along the longer side, as the official code cuts them; and the one in the middle."""
    for height, width in ((48, 85), (85, 48), (48, 48)):
        frames = torch.stack([picture(height, width)] * 2)
        transform = EvalTransform(32)
        resized = transform.resize(frames)
        scale = 32 / min(height, width)
        long = int(scale * max(height, width))
        assert resized.shape[-2:] == ((32, long) if width >= height else (long, 32))
        whole = F.interpolate(frames.float(), resized.shape[-2:], mode="bilinear", align_corners=False)
        assert (resized.float() - whole).abs().max() <= 1
        for index in range(3):
            start = int(index * (1.0 * (long - 32) / 2))
            cut = resized[..., :, start : start + 32] if width >= height else resized[..., start : start + 32, :]
            expected = v2.functional.normalize(cut.float() / 255, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
            torch.testing.assert_close(transform.crop(resized, index, 3), expected)
        torch.testing.assert_close(transform(frames), transform.crop(resized, 1, 3), atol=0.05, rtol=0)


def test_a_clip_is_not_mirrored_unless_asked() -> None:
    frames = picture(32, 32)[None]
    plain = {"scale": [1, 1], "ratio": [1, 1]}
    keep, turn = make_transform({"size": 32, **plain}, True), make_transform({"size": 32, "hflip": 1.0, **plain}, True)
    assert torch.equal(keep(frames), turn(frames).flip(-1))
    found = make_transform({"size": 32, **plain}, True)
    assert all(torch.equal(found(frames), keep(frames)) for _ in range(20))


def test_wrong_options_are_named() -> None:
    for options, train, words in [
        ({"size": 32, "colour": 1}, True, "transform for training has a wrong option: .*colour"),
        ({}, False, "transform for evaluation has a wrong option: .*size"),
        ({"size": 32, "interpolation": "lanczos"}, True, "one of bilinear, bicubic, not 'lanczos'"),
        ({"size": 32, "auto_augment": "rand-mx"}, True, "unknown part 'mx'"),
    ]:
        with pytest.raises(ValueError, match=words):
            make_transform(options, train)
