"""Which frames make a clip, against the official code's formulas; and which videos make an epoch."""

from __future__ import annotations

import multiprocessing
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from frozenllm.core.training.data import EpochSampler, SeededDataset
from frozenllm.core.training.seeding import seed_host
from frozenllm.video.data import VideoDataset, collate_videos, toy_frames
from frozenllm.video.sampling import DenseSampling, SegmentSampling, make_sampling

SEGMENTS = {"type": "segments", "num_frames": 4}


@given(st.integers(16, 400))
def test_test_views_are_the_official_ones(length: int) -> None:
    # The official loader reads all 2 x 16 frames in order and takes every second one of them.
    tick = length / 16.0
    both = sorted([int(tick / 2.0 + tick * x) for x in range(16)] + [int(tick * x) for x in range(16)])
    sampling = SegmentSampling(16)
    for view in range(2):
        assert sampling.view(length, view, 2).tolist() == both[view::2]


@given(st.integers(16, 400), st.integers(0, 99))
def test_random_frames_are_the_official_ones(length: int, seed: int) -> None:
    np.random.seed(seed)
    found = SegmentSampling(16).random(length)
    np.random.seed(seed)
    step = length // 16
    assert found.tolist() == [x * step + offset for x, offset in enumerate(np.random.randint(step, size=16))]


@given(st.integers(1, 200), st.integers(1, 40), st.booleans(), st.integers(1, 5), st.integers(0, 9))
def test_every_choice_is_in_the_video_and_in_order(
    length: int, num_frames: int, whole: bool, views: int, stride: int
) -> None:
    for sampling in (SegmentSampling(num_frames, whole=whole), DenseSampling(num_frames, stride=stride + 1)):
        choices = [sampling.random(length)] + [sampling.view(length, view, views) for view in range(views)]
        for choice in choices:
            assert choice.shape == (num_frames,)
            assert choice.min() >= 0
            assert choice.max() < length
            assert (np.diff(choice) >= 0).all()


def test_whole_segments_reach_the_end() -> None:
    def last(whole: bool) -> int:
        return max(int(SegmentSampling(16, whole=whole).random(47)[-1]) for _ in range(300))

    assert last(False) == 31  # as in the official code: two frames a segment, and 15 that are never seen
    assert last(True) == 46


def test_a_short_video_is_spread_over_the_clip() -> None:
    assert SegmentSampling(8).random(4).tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    assert SegmentSampling(8).view(4).tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    assert DenseSampling(4, stride=2).view(3).tolist() == [0, 2, 2, 2]


def test_dense_views_are_spread_from_start_to_end() -> None:
    sampling = DenseSampling(16, stride=4)  # windows of 61 frames
    assert [int(sampling.view(161, view, 5)[0]) for view in range(5)] == [0, 25, 50, 75, 100]
    assert sampling.view(161, 4, 5)[-1] == 160
    assert sampling.view(161)[0] == 50
    assert {int(sampling.random(63)[0]) for _ in range(100)} == {0, 1, 2}


def test_mistakes_in_the_sampling_are_named() -> None:
    for options, words in [
        ({"type": "sparse", "num_frames": 4}, "must be one of segments, dense"),
        ({"type": "segments"}, "num_frames"),
        ({"type": "dense", "num_frames": 4, "step": 2}, "step"),
        ({"num_frames": 0}, "whole number from 1"),
    ]:
        with pytest.raises(ValueError, match=words):
            make_sampling(options)


def dataset(root: Path, train: bool = True, **options: object) -> VideoDataset:
    transform = {"size": 16, **({"scale": [0.5, 1.0]} if train else {})}
    return toy_frames(
        str(root),
        "train" if train else "val",
        toy={"train_videos": 24, "val_videos": 8},
        train=train,
        sampling=SEGMENTS,
        transform=transform,
        **options,
    )


def epochs(loader: DataLoader, sampler: EpochSampler, number: int = 3) -> list[list[tuple[int, int, float]]]:
    """Videos, classes, and the sums of the pixels, by epoch."""
    found = []
    for epoch in range(number):
        sampler.set_epoch(epoch)
        seen = []
        for batch in loader:
            sums = batch["inputs"].double().sum((1, 2, 3, 4)).tolist()
            seen += list(zip(batch["video"].tolist(), batch["targets"].tolist(), sums, strict=True))
        found.append(seen)
    return found


@pytest.fixture(scope="module")
def expected(toy_frames_root: Path) -> list[list[tuple[int, int, float]]]:
    """Three epochs without workers."""
    data = SeededDataset(dataset(toy_frames_root), seed=0, role="train")
    sampler = EpochSampler(data, seed=0, batch_size=8, drop_last=True)
    return epochs(DataLoader(data, batch_size=8, sampler=sampler, collate_fn=collate_videos), sampler)


def test_every_epoch_sees_every_video_once_in_a_new_order(
    expected: list[list[tuple[int, int, float]]], toy_frames_root: Path
) -> None:
    labels = dataset(toy_frames_root).source.labels
    for epoch in expected:
        assert sorted(video for video, _, _ in epoch) == list(range(24))
        assert all(labels[video] == label for video, label, _ in epoch)
    orders = [[video for video, _, _ in epoch] for epoch in expected]
    assert orders[0] != orders[1] != orders[2] != orders[0]
    pixels = [{video: total for video, _, total in epoch} for epoch in expected]
    assert sum(pixels[0][video] == pixels[1][video] for video in range(24)) < 4  # frames and crops are new as well


@pytest.mark.parametrize(
    ("context", "workers", "persistent"),
    [("fork", 2, False), ("fork", 2, True), ("spawn", 1, True)],  # a spawned worker imports everything anew: seconds
)
def test_workers_change_nothing(
    context: str, workers: int, persistent: bool, expected: list[list[tuple[int, int, float]]], toy_frames_root: Path
) -> None:
    data = SeededDataset(dataset(toy_frames_root), seed=0, role="train")
    sampler = EpochSampler(data, seed=0, batch_size=8, drop_last=True)
    loader = DataLoader(
        data,
        batch_size=8,
        sampler=sampler,
        collate_fn=collate_videos,
        num_workers=workers,
        multiprocessing_context=context,
        persistent_workers=persistent,
    )
    assert epochs(loader, sampler) == expected


def rank_epochs(rank: int, root: str, store: str, queue: multiprocessing.Queue) -> None:
    """What one of two processes sees."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    data = SeededDataset(dataset(Path(root)), seed=0, role="train")
    sampler = EpochSampler(data, seed=0, batch_size=4, drop_last=True)
    loader = DataLoader(data, batch_size=4, sampler=sampler, collate_fn=collate_videos)
    queue.put((rank, epochs(loader, sampler, 2)))
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


def test_two_processes_share_an_epoch(
    expected: list[list[tuple[int, int, float]]], toy_frames_root: Path, tmp_path: Path
) -> None:
    context = multiprocessing.get_context("fork")  # the processes have imported everything already
    queue = context.Queue()
    processes = [
        context.Process(target=rank_epochs, args=(rank, str(toy_frames_root), str(tmp_path / "store"), queue))
        for rank in range(2)
    ]
    for process in processes:
        process.start()
    found = dict(queue.get(timeout=120) for _ in processes)
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    for epoch in range(2):
        for step in range(3):  # batches of 4 + 4 are the batch of 8 of one process, in turn
            one, two = (found[rank][epoch][4 * step : 4 * step + 4] for rank in range(2))
            dealt = [sample for pair in zip(one, two, strict=True) for sample in pair]
            assert dealt == expected[epoch][8 * step : 8 * step + 8]


def test_the_official_validation_draws_frames_and_views_do_not(toy_frames_root: Path) -> None:
    def clips(seed: int, **options: object) -> torch.Tensor:
        seed_host(seed)
        return dataset(toy_frames_root, train=False, **options)[0]["inputs"]

    assert torch.equal(clips(1, random_frames=True), clips(1, random_frames=True))
    assert not torch.equal(clips(1, random_frames=True), clips(2, random_frames=True))
    assert torch.equal(clips(1), clips(2))
    assert torch.equal(clips(1, views={"temporal": 2}), clips(2, views={"temporal": 2}))
