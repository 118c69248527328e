"""The robustness command under torchrun: two processes give the figures of one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from processes import call, torchrun
from toy_imagenet import WNIDS, arguments, figures, noise

from frozenllm.vision2d.robustness import main

COMMAND = "frozenllm.vision2d.robustness"
SETS = "sets=[imagenet,imagenet_a,imagenet_r,imagenet_sketch,imagenet_c/fog]"


def test_two_processes_give_the_figures_of_one(run: Path, family: dict[str, Path], tmp_path: Path) -> None:
    """An odd number of images, one of them broken; and a set that a run of one process has done already."""
    sketch = tmp_path / "sketch" / WNIDS[3]
    sketch.mkdir(parents=True)
    (sketch / "0.png").write_bytes(b"nothing")
    noise(np.random.default_rng(0)).save(sketch / "1.png")
    family = dict(family, imagenet_sketch=tmp_path / "sketch")
    more = [SETS, "on_error=skip", "batch_size=2", "runtime.console=true"]
    one, two = (arguments(run, family, tmp_path / name, *more) for name in ("one", "two"))
    main(one)
    main([*two, "sets=[imagenet_a]"])
    done = call(torchrun(2, COMMAND, *two), tmp_path)
    assert done.returncode == 0, done.stderr
    printed = done.stdout
    expected, got = figures(tmp_path / "one"), figures(tmp_path / "two")
    assert got == expected
    assert got["complete"]
    assert got["sets"]["imagenet"]["images"] == 7
    assert (got["sets"]["imagenet_sketch"]["images"], got["sets"]["imagenet_sketch"]["unreadable"]) == (1, 1)
    assert printed.count("has 1 of 9 sets: 8 are left") == 1, "one process speaks"
    assert printed.count("imagenet_c/fog/5  top-1") == 1
    assert printed.count("cannot be read as an image") == 1
    assert (tmp_path / "two" / "robustness.png").stat().st_size > 1000


def test_a_broken_image_ends_all_processes(run: Path, family: dict[str, Path], tmp_path: Path) -> None:
    broken = tmp_path / "sketch" / WNIDS[3] / "broken.png"
    broken.parent.mkdir(parents=True)
    broken.write_bytes(b"nothing")
    argv = arguments(run, dict(family, imagenet_sketch=tmp_path / "sketch"), tmp_path / "out")
    done = call(torchrun(2, COMMAND, *argv, "sets=[imagenet,imagenet_sketch]"), tmp_path)
    assert done.returncode != 0
    assert done.stderr.count(f"error: {broken} cannot be read as an image") == 1
    kept = figures(tmp_path / "out")
    assert not kept["complete"]
    assert list(kept["sets"]) == ["imagenet"]


def test_shares_are_all_images_once(monkeypatch: pytest.MonkeyPatch) -> None:
    from frozenllm.vision2d.robustness.evaluation import own_share

    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    for size in (0, 1, 2, 7, 50):
        for world in (1, 2, 3, 8):
            monkeypatch.setattr(torch.distributed, "get_world_size", lambda world=world: world)
            seen: list[int] = []
            for rank in range(world):
                monkeypatch.setattr(torch.distributed, "get_rank", lambda rank=rank: rank)
                share = own_share(list(range(size)))
                assert size // world <= len(share) <= -(-size // world)
                seen += [share[i] for i in range(len(share))]
            assert seen == list(range(size))
