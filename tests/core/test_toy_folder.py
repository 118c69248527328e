"""Folders of toy data: whole or not at all, once, and never over something else."""

from __future__ import annotations

import json
import multiprocessing
from pathlib import Path

import pytest

from frozenllm.core.toy_folder import MANIFEST, default_root, write_once

SETTINGS = {"data": "numbers", "format": 1, "sizes": (3, 4)}


def numbers(folder: Path) -> None:
    (folder / "sub").mkdir()
    for i in range(50):
        (folder / "sub" / f"{i}.txt").write_text(str(i))


def write(root: Path) -> None:
    write_once(root, "numbers", SETTINGS, numbers)


def test_written_once(tmp_path: Path) -> None:
    root = tmp_path / "deep" / "numbers"
    assert write_once(str(root), "numbers", SETTINGS, numbers) == root
    stamp = (root / MANIFEST).stat().st_mtime_ns
    write(root)
    assert (root / MANIFEST).stat().st_mtime_ns == stamp
    assert json.loads((root / MANIFEST).read_text())["data"] == "numbers"
    assert root.stat().st_mode & 0o777 == 0o755
    assert [path.name for path in root.parent.iterdir()] == ["numbers"]


def test_something_else_is_left_alone(tmp_path: Path) -> None:
    root = tmp_path / "numbers"
    write(root)
    with pytest.raises(ValueError, match="numbers holds toy data written with other settings: name another folder"):
        write_once(root, "numbers", {**SETTINGS, "format": 2}, numbers)
    mine = tmp_path / "mine"
    mine.mkdir()
    write(mine)  # empty: nothing to lose
    (mine / MANIFEST).unlink()
    with pytest.raises(ValueError, match="mine holds something else than toy data"):
        write(mine)
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="something else than toy data"):
        write(tmp_path / "file")
    with pytest.raises(ValueError, match=r"cannot be written to .*file/below"):
        write(tmp_path / "file" / "below")


def test_a_crash_leaves_nothing(tmp_path: Path) -> None:
    def crash(folder: Path) -> None:
        numbers(folder)
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_once(tmp_path / "numbers", "numbers", SETTINGS, crash)
    assert not list(tmp_path.iterdir())


def test_processes_at_the_same_time(tmp_path: Path) -> None:
    root = tmp_path / "numbers"
    with multiprocessing.get_context("fork").Pool(4) as pool:
        pool.map(write, [root] * 8)
    assert len(list((root / "sub").iterdir())) == 50
    assert [path.name for path in tmp_path.iterdir()] == ["numbers"]


def test_the_default_is_in_the_cache_and_tells_settings_apart(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    first = write_once(None, "numbers", SETTINGS, numbers)
    assert first == default_root("numbers", SETTINGS)
    assert first.parent == tmp_path / "frozenllm" / "toy"
    assert default_root("numbers", {**SETTINGS, "format": 2}) != first
