"""One run at a time in a folder: a lock that its process cannot leave behind."""

from __future__ import annotations

import logging
import os
import socket
import time
from pathlib import Path

try:
    import fcntl
except ModuleNotFoundError:  # not a POSIX system
    fcntl = None  # type: ignore[assignment]

logger = logging.getLogger(__name__)

LOCK = ".lock"
_TAKEN = (11, 13, 35)  # EAGAIN and EACCES; 35 is EAGAIN on BSD and macOS
_held: dict[Path, tuple[int, int]] = {}  # folder -> (descriptor, process that holds it)


class FolderInUse(ValueError):
    """Another run is writing there."""


def hold(folder: Path) -> None:
    """Lock a folder for this process, until `let_go` or the process's end, however it comes.

    It is a POSIX record lock (`fcntl.lockf`): it dies with the process, loaders' workers do not inherit it, and NFS
    passes it on to other machines. Where the file system refuses locks, a warning says so and the run goes on.

    Raises:
        FolderInUse: Another process, or another run of this one, holds it.
        OSError: The folder cannot be written.
    """
    path = folder / LOCK
    if _held.get(folder, (0, 0))[1] == os.getpid():  # closing a second descriptor would give up the lock
        raise FolderInUse(_in_use(folder, "another run of this process"))
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            if not _lock(handle, folder):
                holder = os.read(handle, 200).decode(errors="replace").strip()
                raise FolderInUse(_in_use(folder, holder or "another process"))
            # The one that held it may have removed the file since it was opened here.
            if not path.exists() or not os.path.samestat(os.fstat(handle), path.stat()):
                os.close(handle)
                continue
            os.ftruncate(handle, 0)
            os.write(handle, f"process {os.getpid()} on {socket.gethostname()}, {time.ctime()}\n".encode())
        except BaseException:
            os.close(handle)
            raise
        _held[folder] = (handle, os.getpid())
        return


def let_go(folder: Path) -> None:
    """Unlock a folder that this process holds; nothing if it does not."""
    handle, pid = _held.pop(folder, (-1, 0))
    if pid != os.getpid():
        return
    try:
        (folder / LOCK).unlink(missing_ok=True)  # while it is locked, so that nobody's new file goes
    except OSError:  # a folder that has become read-only; the next run takes the file over
        pass
    finally:
        os.close(handle)


def _lock(handle: int, folder: Path) -> bool:
    try:
        if fcntl is None:
            raise OSError("the system has no POSIX locks")
        fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in _TAKEN:
            return False
        logger.warning(
            "%s cannot be locked (%s): see to it yourself that no other run writes there.",
            folder,
            error.strerror or error,
        )
    return True


def _in_use(folder: Path, holder: str) -> str:
    return (
        f"{folder} is in use by another run ({holder}): wait for its end or stop it, or choose another folder with "
        "name=... or runs=..."
    )
