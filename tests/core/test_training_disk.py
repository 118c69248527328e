"""Disks that are full, folders that cannot be written, two runs in one folder: nothing that was there is lost."""

from __future__ import annotations

import errno
import fcntl
import logging
import multiprocessing
import os
import resource
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from processes import call
from tinydomain.helpers import command, history, read, run

from frozenllm.core.training import checkpoint as files
from frozenllm.core.training.faults import RunStopped
from frozenllm.core.training.lock import LOCK, FolderInUse, hold, let_go

SAVING = "runtime.checkpoint.every_iters=2"


@pytest.fixture
def small_disk() -> Iterator[Path]:
    """A file system of its own that holds three checkpoints of the tiny domain, and not a fourth one."""
    with tempfile.TemporaryDirectory() as folder:
        mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=448k", "tmpfs", folder], capture_output=True)
        if mounted.returncode:
            pytest.skip("mounting a small disk needs rights that this process has not")
        try:
            yield Path(folder)
        finally:
            subprocess.run(["umount", "-l", folder], check=True)


def test_a_disk_that_fills_up_stops_the_run_and_loses_nothing(small_disk: Path) -> None:
    done = call(command(small_disk, "name=a", SAVING, "runtime.checkpoint.keep=9", "runtime.plots=false"), small_disk)
    folder = small_disk / "tiny" / "a" / "checkpoints"
    kept = sorted(folder.glob("iter_*.pt"))
    assert len(kept) > 1
    assert done.returncode == 1
    assert done.stderr == (
        f"error: {folder / f'iter_{2 * len(kept) + 2:08d}.pt'} cannot be written (No space left on device): training "
        f"stopped, and the last good checkpoint is {kept[-1]}; make room there and continue with resume=true.\n"
    )
    assert [read(path)["meta"]["iter"] for path in kept] == list(range(2, 2 * len(kept) + 1, 2))
    assert sorted(p.name for p in folder.iterdir()) == ["best.pt", *(p.name for p in kept), "last.pt"]
    assert (folder / "last.pt").samefile(kept[-1])
    # With the room of older checkpoints it goes on to its end.
    result = run(small_disk, "name=a", SAVING, "runtime.checkpoint.keep=1", "resume=true")
    assert result.finished
    assert len(history(result.run_dir)) > 3


def test_a_disk_that_is_full_from_the_start(small_disk: Path) -> None:
    (small_disk / "ballast").write_bytes(b"x" * (448 * 1024 - 8 * 4096))
    done = call(command(small_disk, "name=a", "runtime.plots=false"), small_disk)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert "(No space left on device)" in line
    (small_disk / "ballast").unlink()
    assert run(small_disk, "name=a", "resume=true").finished


def test_a_file_that_may_not_grow_further(tmp_path: Path) -> None:
    """EFBIG, as under a quota; the writer of torch turns it into an error of its own."""
    path = tmp_path / "iter_00000001.pt"
    files.write_checkpoint({"format": files.FORMAT, "x": torch.arange(3)}, path)
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, old[1]))
    try:
        with pytest.raises(OSError, match="File too large") as error:
            files.write_checkpoint({"format": files.FORMAT, "x": torch.arange(99_999)}, path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
    assert error.value.errno == errno.EFBIG
    assert read(path)["x"].tolist() == [0, 1, 2]
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_a_folder_that_becomes_read_only(small_disk: Path) -> None:
    done = call(command(small_disk, "name=a", "runtime.stop_after=4"), Path("/"))
    assert done.returncode == 0, done.stderr
    folder = small_disk / "tiny" / "a" / "checkpoints"
    before = {p.name: p.read_bytes() for p in folder.iterdir()}
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    done = call(command(small_disk, "name=a", "resume=true"), Path("/"))
    assert done.returncode == 1
    assert done.stderr == (
        f"error: The run folder {folder.parent} cannot be written (Read-only file system): choose another with "
        "runs=...\n"
    )
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before


@pytest.mark.parametrize("what", ["open", "link"])
def test_a_checkpoint_that_is_refused_in_mid_run(what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The folder becomes read-only between two checkpoints."""
    whole = files.write_checkpoint if what == "open" else files.link_checkpoint

    def refuse(*arguments: Path) -> None:
        if "iter_00000006" in str(arguments):
            raise OSError(errno.EROFS, "Read-only file system")
        whole(*arguments)  # type: ignore[operator]

    monkeypatch.setattr(files, whole.__name__, refuse)
    with pytest.raises(RunStopped) as error:
        run(tmp_path, "name=a", SAVING)
    folder = tmp_path / "tiny" / "a" / "checkpoints"
    last = folder / ("iter_00000004.pt" if what == "open" else "iter_00000006.pt")
    assert str(error.value) == (
        f"{folder / 'iter_00000006.pt'} cannot be written (Read-only file system): training stopped, and the last good "
        f"checkpoint is {last}; make room there and continue with resume=true."
    )
    assert read(last)["meta"]["iter"] == int(last.stem[-1])
    monkeypatch.undo()
    assert run(tmp_path, "name=a", SAVING, "resume=true").finished
    assert not (tmp_path / "tiny" / "a" / LOCK).exists()


def test_two_runs_in_one_folder_are_refused(tmp_path: Path) -> None:
    """The second one, whatever it was told; and at once after the first was killed, the folder is free."""
    folder = tmp_path / "tiny" / "a"
    folder.mkdir(parents=True)
    context = multiprocessing.get_context("fork")
    ready = context.Event()
    first = context.Process(target=_hold_for_long, args=(folder, ready))
    first.start()
    ready.wait(30)
    pattern = rf"tiny/a is in use by another run \(process {first.pid} on .*\): wait for its end or stop it, or choose"
    for how in ("resume=true", "overwrite=true"):
        with pytest.raises(FolderInUse, match=pattern):
            run(tmp_path, "name=a", how)
    assert list(folder.iterdir()) == [folder / LOCK]
    first.kill()
    first.join()
    assert (folder / LOCK).exists()
    assert run(tmp_path, "name=a", "resume=true").finished
    assert not (folder / LOCK).exists()


def _hold_for_long(folder: Path, ready: object) -> None:
    hold(folder)
    worker = multiprocessing.get_context("fork").Process(target=_sleep)  # does not take the lock with it
    worker.start()
    ready.set()  # type: ignore[attr-defined]
    _sleep()


def _sleep() -> None:
    import time

    time.sleep(10)


def test_two_runs_of_one_process_are_refused(tmp_path: Path) -> None:
    hold(tmp_path)
    with pytest.raises(FolderInUse, match="another run of this process"):
        hold(tmp_path)
    let_go(tmp_path)
    hold(tmp_path)
    let_go(tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_file_system_without_locks_is_warned_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def no_locks(*_: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "lockf", no_locks)
    with caplog.at_level(logging.WARNING):
        assert run(tmp_path, "name=a", "runtime.stop_after=1").iterations == 1
    warnings = [record.getMessage() for record in caplog.records if "lock" in record.getMessage()]
    assert warnings == [
        f"{tmp_path / 'tiny' / 'a'} cannot be locked (No locks available): see to it yourself that no other run writes "
        "there."
    ]


def test_a_lock_whose_file_was_removed_meanwhile_is_taken_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between opening the file and locking it, the one that held it may have ended and removed it."""
    lock, calls = fcntl.lockf, []

    def remove_first(handle: int, how: int) -> None:
        calls.append(handle)
        if len(calls) == 1:
            (tmp_path / LOCK).unlink()
        lock(handle, how)

    monkeypatch.setattr(fcntl, "lockf", remove_first)
    hold(tmp_path)
    assert len(calls) == 2
    assert (tmp_path / LOCK).read_text().startswith(f"process {os.getpid()} on ")
    let_go(tmp_path)
