"""Mixup and cutmix of clips."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from frozenllm.video.data import collate_videos
from frozenllm.video.mixing import VideoMix


def constants(batch: int, shape: tuple[int, ...]) -> torch.Tensor:
    """Clips whose every pixel is the clip's number in the batch."""
    return torch.arange(float(batch)).view(-1, 1, 1, 1, 1).expand(batch, *shape).contiguous()


@settings(deadline=None, max_examples=60)
@given(
    st.integers(2, 6), st.integers(1, 5), st.integers(4, 24), st.integers(4, 24), st.integers(0, 999),
    st.sampled_from([0.0, 0.1]),
)  # fmt: skip
def test_cutmix_cuts_rows_and_columns_and_its_share_is_that_of_the_pixels(
    batch: int, frames: int, height: int, width: int, seed: int, smoothing: float
) -> None:
    torch.manual_seed(seed)
    mix = VideoMix(10, mixup_alpha=0.0, label_smoothing=smoothing)
    targets = torch.arange(batch)
    mixed, soft = mix(constants(batch, (frames, 3, height, width)), targets)
    for i in range(batch):
        partner = (i - 1) % batch
        cut = mixed[i] == partner
        assert (cut | (mixed[i] == i)).all()
        assert (cut == cut[:1, :1]).all()  # the same box in all frames and channels
        box = cut[0, 0]
        rows, columns = box.any(1), box.any(0)
        assert torch.equal(box, rows[:, None] & columns[None])  # a box
        share = box.double().mean().item()
        expected = torch.full((10,), smoothing / 10)
        expected[i] += (1 - smoothing) * (1 - share)
        expected[partner] += (1 - smoothing) * share
        torch.testing.assert_close(soft[i], expected, atol=1e-5, rtol=0)


def test_mixup_blends_clips_and_targets_alike() -> None:
    torch.manual_seed(0)
    mixed, soft = VideoMix(3, mixup_alpha=0.8, cutmix_alpha=0.0, label_smoothing=0.0)(
        constants(3, (2, 3, 4, 4)), torch.arange(3)
    )
    share = soft[1, 1].item()
    assert 0 < share < 1
    torch.testing.assert_close(mixed[1], torch.full((2, 3, 4, 4), share * 1 + (1 - share) * 0))
    torch.testing.assert_close(mixed[0], torch.full((2, 3, 4, 4), share * 0 + (1 - share) * 2))
    torch.testing.assert_close(soft.sum(1), torch.ones(3))
    assert type(mixed) is torch.Tensor


def test_clips_of_one_video_are_not_mixed_with_each_other() -> None:
    samples = [
        {"inputs": torch.full((2, 1, 3, 8, 8), float(v)), "targets": torch.full((2,), v), "video": torch.full((2,), v)}
        for v in range(4)
    ]
    batch = collate_videos(samples)
    torch.manual_seed(1)
    for _ in range(20):
        mixed, soft = VideoMix(4, mixup_alpha=0.0, label_smoothing=0.0)(batch["inputs"], batch["targets"])
        partners = [set(clip.unique().tolist()) for clip in mixed]
        if any(len(found) > 1 for found in partners):
            assert all(len(found) == 2 for found in partners)
            assert (soft.max(1).values < 1).all()
            return
    raise AssertionError("no batch was mixed")


def test_probabilities_are_kept() -> None:
    torch.manual_seed(0)
    clips, targets = constants(2, (1, 3, 8, 8)), torch.arange(2)

    def shares(**options: float) -> tuple[float, float, float]:
        """Of batches that stay, are blended, are cut."""
        stay = blend = 0
        for _ in range(300):
            mixed, _ = VideoMix(2, label_smoothing=0.0, **options)(clips, targets)
            whole = set(mixed.unique().tolist()) <= {0.0, 1.0}
            stay += torch.equal(mixed, clips)
            blend += not whole
        return stay / 300, blend / 300, 1 - (stay + blend) / 300

    assert shares(prob=0.0) == (1, 0, 0)
    assert shares(cutmix_alpha=0.0)[1] > 0.99
    stay, blend, _ = shares(prob=0.5)
    assert abs(blend - 0.25) < 0.1
    assert 0.4 < stay < 0.62  # an empty box leaves a batch as it is
    assert abs(shares(switch_prob=0.2)[1] - 0.8) < 0.1
    _, soft = VideoMix(4, prob=0.0, label_smoothing=0.1)(clips, targets)
    torch.testing.assert_close(soft[0], torch.tensor([0.925, 0.025, 0.025, 0.025]))


def test_mistakes_are_named() -> None:
    with pytest.raises(ValueError, match="two clips or more"):
        VideoMix(4)(constants(1, (1, 3, 8, 8)), torch.tensor([0]))
    with pytest.raises(ValueError, match="alphas from 0"):
        VideoMix(4, mixup_alpha=-1.0)
    with pytest.raises(ValueError, match="from 0 to 1"):
        VideoMix(4, prob=1.5)
