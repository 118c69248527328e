"""The cache holds the same samples, notices damage, goes on where it stopped."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tinydomain.helpers import assert_same
from torch.utils.data import DataLoader

from frozenllm.core.training import BrokenSample
from frozenllm.motion import preprocess
from frozenllm.motion.cache import CachedScenes, read_index
from frozenllm.motion.data import argoverse1, argoverse2, collate_scenes
from frozenllm.motion.preprocess import main, verify, write_cache
from frozenllm.motion.shards import shard_name


def write(
    root: Path, folder: Path, split: str = "train", *, shard_size: int = 5, workers: int = 0, **options: Any
) -> list[str]:
    """A cache of toy Argoverse 1."""
    scenes = argoverse1(root, split, **options)
    return write_cache(
        scenes, folder / split, "argoverse1", split, shard_size=shard_size, workers=workers, progress=False
    )


def test_cached_samples_are_the_same_bit_for_bit(toy1: Path, toy2: Path, tmp_path: Path) -> None:
    for name, data, root in (("argoverse1", argoverse1, toy1), ("argoverse2", argoverse2, toy2)):
        for split in ("train", "test" if data is argoverse2 else "test_obs"):
            for options in ({}, {"use_map": False, "max_agents": 1}):
                folder = tmp_path / f"{name}{len(options)}"
                source = data(root, split, **options)
                write_cache(source, folder / split, name, split, shard_size=5, progress=False)
                cached = data(None, split, cache=folder, **options)  # the source is not needed any more
                assert isinstance(cached, CachedScenes)
                assert len(cached) == len(source)
                for a, b in zip(source, cached, strict=True):
                    assert_same(dict(a), dict(b))
                assert verify(cached, progress=False) == []


def test_workers_write_and_read_the_same(toy1: Path, tmp_path: Path) -> None:
    write(toy1, tmp_path / "a")
    write(toy1, tmp_path / "b", workers=2)
    files = sorted(path.name for path in (tmp_path / "a" / "train").iterdir())
    assert files == ["cache.json", *(shard_name(i) for i in range(3))]
    for file in files:
        assert (tmp_path / "a/train" / file).read_bytes() == (tmp_path / "b/train" / file).read_bytes()
    cached = argoverse1(None, "train", cache=tmp_path / "a")
    cached[0]  # opened before the workers start
    assert len(pickle.loads(pickle.dumps(cached))) == 12
    plain, parallel = (list(DataLoader(cached, batch_size=5, num_workers=n, collate_fn=collate_scenes)) for n in (0, 2))
    assert_same(plain, parallel)


def test_a_stopped_run_goes_on(toy1: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scenes, read = argoverse1(toy1, "train"), []

    class Stopped(Exception):
        pass

    def counted(index: int, stop: int = 12) -> dict:
        read.append(index)
        if len(read) > stop:
            raise Stopped
        return type(scenes).read(scenes, index)

    monkeypatch.setattr(scenes, "read", lambda index: counted(index, stop=7))
    with pytest.raises(Stopped):
        write_cache(scenes, tmp_path, "argoverse1", "train", shard_size=5, progress=False)
    assert not read_index(tmp_path)["complete"]
    with pytest.raises(ValueError, match="is not complete: run python -m frozenllm"):
        CachedScenes(tmp_path, "argoverse1", "train", scenes.window)
    first = (tmp_path / shard_name(0)).stat().st_mtime_ns
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]
    read.clear()
    monkeypatch.setattr(scenes, "read", counted)
    write_cache(scenes, tmp_path, "argoverse1", "train", shard_size=5, progress=False)
    assert read == list(range(5, 12))
    assert (tmp_path / shard_name(0)).stat().st_mtime_ns == first
    read.clear()
    write_cache(scenes, tmp_path, "argoverse1", "train", shard_size=5, progress=False)
    assert read == []  # a whole cache is left alone
    (tmp_path / shard_name(1)).write_bytes(b"short")
    write_cache(scenes, tmp_path, "argoverse1", "train", shard_size=5, progress=False)
    assert read == list(range(5, 10))
    monkeypatch.undo()
    for a, b in zip(scenes, CachedScenes(tmp_path, "argoverse1", "train", scenes.window), strict=True):
        assert_same(dict(a), dict(b))


def test_damage_is_noticed(toy1: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write(toy1, tmp_path)
    path = tmp_path / "train" / shard_name(1)
    cached, whole = argoverse1(None, "train", cache=tmp_path), path.read_bytes()
    # A future's bytes, found by its content: sample 7 is number 2 of the second file.
    at = whole.index(cached[7]["targets"]["future"].numpy().tobytes())
    path.write_bytes(whole[: at + 9] + bytes([whole[at + 9] ^ 1]) + whole[at + 10 :])
    with pytest.raises(BrokenSample, match=r"Sample 2 of .*shard-00001\.safetensors is damaged: its checksum differs"):
        argoverse1(None, "train", cache=tmp_path)[7]
    tolerant = argoverse1(None, "train", cache=tmp_path, on_error="skip")
    stand_in = tolerant[7]
    assert stand_in["track"] == ""
    assert stand_in["scenario"] == argoverse1(toy1, "train")[7]["scenario"]
    assert not stand_in["targets"]["valid"].any()
    assert tolerant.num_unreadable == 1
    assert "Skipped a sample: Sample 2" in caplog.text
    assert (
        argoverse1(None, "train", cache=tmp_path, on_error="skip", train=True)[7]["scenario"] == tolerant[8]["scenario"]
    )
    assert len(verify(tolerant, progress=False)) == 1
    path.write_bytes(whole[:-1])
    with pytest.raises(ValueError, match=r"shard-00001\.safetensors is missing or has another size"):
        argoverse1(None, "train", cache=tmp_path)
    path.write_bytes(b"\xff" * len(whole))
    with pytest.raises(BrokenSample, match=r"shard-00001\.safetensors cannot be read as a part of a cache"):
        argoverse1(None, "train", cache=tmp_path)[6]
    assert argoverse1(None, "train", cache=tmp_path, on_error="skip")[6]["track"] == ""


def test_broken_scenes_keep_their_sentence(toy1: Path, tmp_path: Path) -> None:
    shutil.copytree(toy1 / "train", tmp_path / "train")
    victim = sorted((tmp_path / "train/data").iterdir(), key=lambda path: int(path.stem))[6]
    victim.write_text("nonsense\n1\n")
    (tmp_path / "map_files").symlink_to(toy1 / "map_files")
    with pytest.raises(BrokenSample, match=rf"{victim.name} cannot be read as a sequence .*set data\.on_error to skip"):
        write(tmp_path, tmp_path / "cache")
    found = write(tmp_path, tmp_path / "cache", on_error="skip")
    assert [victim.name in sentence for sentence in found] == [True]
    with pytest.raises(BrokenSample, match=rf"{victim.name} cannot be read as a sequence .*set on_error to skip"):
        argoverse1(None, "train", cache=tmp_path / "cache")[6]
    cached, source = (
        argoverse1(tmp_path, "train", cache=cache, on_error="skip") for cache in (tmp_path / "cache", None)
    )
    for a, b in zip(source, cached, strict=True):
        assert_same(dict(a), dict(b))
    assert cached.num_unreadable == source.num_unreadable == 1


def test_another_cache_is_not_taken(toy1: Path, tmp_path: Path) -> None:
    write(toy1, tmp_path)
    for options, message in (
        ({"radius": 30.0}, "was made with radius 65.0 instead of 30.0: name another"),
        ({"history": 10, "horizon": 20}, "history 20 instead of 10, horizon 30 instead of 20"),
        ({"use_map": False}, "use_map True instead of False"),
    ):
        with pytest.raises(ValueError, match=message):
            argoverse1(None, "train", cache=tmp_path, **options)
        with pytest.raises(ValueError, match=message):
            write(toy1, tmp_path, **options)
    shutil.copytree(tmp_path / "train", tmp_path / "val")
    with pytest.raises(ValueError, match="split train instead of val"):
        argoverse1(None, "val", cache=tmp_path)
    with pytest.raises(
        ValueError, match=r"nothing holds no cache: make it with python -m frozenllm\.motion\.preprocess"
    ):
        CachedScenes(tmp_path / "nothing", "argoverse1", "train", argoverse1(toy1, "val").window)
    with pytest.raises(ValueError, match="5 samples per file, not 4"):
        write(toy1, tmp_path, shard_size=4)
    scenes = argoverse1(toy1, "val")
    with pytest.raises(ValueError, match="was made of other scenes"):
        write_cache(scenes, tmp_path / "train", "argoverse1", "train", shard_size=5, progress=False)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(ValueError, match="mine holds something else than a cache"):
        write_cache(argoverse1(toy1, "val"), tmp_path / "mine", "argoverse1", "val", progress=False)
    (tmp_path / "train" / "cache.json").write_text("{")
    with pytest.raises(ValueError, match=r"cache\.json cannot be read"):
        argoverse1(None, "train", cache=tmp_path)
    (tmp_path / "train" / "cache.json").write_text(json.dumps({"format": 99}))
    with pytest.raises(ValueError, match="another format"):
        argoverse1(None, "train", cache=tmp_path)


def test_the_command_writes_what_the_config_reads(
    toy1: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from frozenllm.core.training import DATASETS, compose_config
    from frozenllm.motion.train import CONFIG

    overrides = ["data=argoverse1", f"data.root={toy1}", f"data.cache={tmp_path / 'c'}", "data.radius=40"]
    main([*overrides, "--shard-size", "4"])
    shown = capsys.readouterr()
    assert f"{tmp_path / 'c'}/val: 6 samples." in shown.out
    assert "argoverse1 train: 100%" in shown.err
    assert "scene/s" in shown.err
    config = compose_config(CONFIG, overrides)
    for split in ("train", "val"):
        dataset = DATASETS.build(dict(config.data[split]))
        assert isinstance(dataset, CachedScenes)
        assert_same(dict(dataset[3]), dict(argoverse1(toy1, split, radius=40)[3]))
    main([*overrides, "--verify"])
    assert capsys.readouterr().out.count(": 0 samples cannot be read.") == 2
    main([*overrides, "--splits", "test_obs"])  # no split of the config, but submissions are made of it
    cached = argoverse1(None, "test_obs", cache=tmp_path / "c", radius=40)
    assert_same(dict(cached[2]), dict(argoverse1(toy1, "test_obs", radius=40)[2]))
    assert cached.names == argoverse1(toy1, "test_obs", radius=40).names
    (tmp_path / "file").touch()
    for arguments, message in (
        (["data=argoverse1", f"data.root={toy1}"], "error: Say where the cache goes: data.cache=/path."),
        ([*overrides, "data.radius=50"], "error: .*was made with radius 40"),
        ([*overrides, "--splits", "test"], "error: Argoverse 1 has the splits train, val, test_obs, not 'test'."),
        (["data=argoverse1", f"data.root={toy1}", f"data.cache={tmp_path / 'file'}"], "error: .*file"),
        (["data=argoverse1", "data.root=/nowhere", "data.cache=/x"], "error: /nowhere/train/data is missing"),
    ):
        with pytest.raises(SystemExit, match=message):
            main(arguments)
    assert preprocess.SHARD_SIZE == 256
    assert np.isfinite(torch.stack([s["targets"]["future"] for s in dataset]).numpy()).all()
