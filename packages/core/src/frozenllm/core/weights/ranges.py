"""Byte ranges of files on the hub: single requests that are checked, and downloads that go on where they stopped."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import constants, hf_hub_url
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status, tqdm

PIECE = 16 * 2**20  # bytes per request of a download
REQUESTS = 8  # at a time
ATTEMPTS = 5  # in a row without a byte received
FIRST_WAIT = 0.5  # seconds before the second attempt; doubled every time
_PASSING = (408, 429, 500, 502, 503, 504)  # answers that another attempt may change
_CONTENT_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+)")
# Base of all errors of the HTTP client, which is httpx or httpx2 depending on huggingface_hub's release.
TransportError: type[Exception] = HfHubHTTPError.__bases__[0]


class RemoteFile:
    """One file of a repository at one commit, read by byte ranges.

    Args:
        repository: ``org/name``.
        name: Path of the file in the repository.
        commit: Full hash of the commit.

    Attributes:
        where: Repository, file and commit, for messages.
        name: The file.
        size: Bytes in the file; None before the first request.
    """

    def __init__(self, repository: str, name: str, commit: str) -> None:
        self.where = f"{repository}@{commit[:12]}/{name}"
        self.name = name
        self.size: int | None = None
        self._url = hf_hub_url(repository, name, revision=commit)
        self._commit, self._etag = commit, ""
        self._lock = threading.Lock()

    def read(self, start: int, stop: int) -> bytes:
        """Bytes ``start`` to ``stop`` (not included).

        Raises:
            ValueError: The server answered with something else.
            HfHubHTTPError: The server refused.
        """
        received = bytearray()
        self.fetch(start, stop, received.extend)
        return bytes(received)

    def fetch(self, start: int, stop: int, write: Callable[[bytes], Any]) -> None:
        """Pass the bytes ``start`` to ``stop`` on as they arrive; goes on where a connection broke.

        Args:
            start: First byte.
            stop: The byte after the last one.
            write: Gets the chunks, in order.

        Raises:
            ValueError: As `read`.
            HfHubHTTPError: As `read`.
        """
        at, failures = start, 0
        while at < stop:
            try:
                for chunk in self._stream(at, stop):
                    write(chunk)
                    at += len(chunk)
                    failures = 0
            except TransportError as error:
                if isinstance(error, HfHubHTTPError) and error.response.status_code not in _PASSING:
                    raise
                failures += 1
                if failures == ATTEMPTS:
                    raise
                time.sleep(FIRST_WAIT * 2 ** (failures - 1))

    def _stream(self, start: int, stop: int) -> Iterator[bytes]:
        # Compression would change the bytes that a range counts.
        headers = {**build_hf_headers(), "Range": f"bytes={start}-{stop - 1}", "Accept-Encoding": "identity"}
        timeout = constants.HF_HUB_DOWNLOAD_TIMEOUT
        with get_session().stream("GET", self._url, headers=headers, timeout=timeout) as response:
            self._check(response, start, stop)
            left = stop - start
            for chunk in response.iter_bytes():
                left -= len(chunk)
                if left < 0:
                    break
                yield chunk
        if left:
            raise ValueError(f"{self.where}: the server sent {stop - start - left} bytes instead of {stop - start}.")

    def _check(self, response: Any, start: int, stop: int) -> None:
        if response.status_code == 416:
            raise ValueError(f"{self.where}: has no bytes {start}-{stop - 1}; the file is shorter than it should be.")
        hf_raise_for_status(response)
        if response.status_code != 206:
            raise ValueError(
                f"{self.where}: the server answered a request for a part with status {response.status_code} instead "
                "of 206; a proxy or mirror (HF_ENDPOINT) in between does not support byte ranges."
            )
        stated = response.headers.get("Content-Range", "")
        match = _CONTENT_RANGE.fullmatch(stated)
        length = response.headers.get("Content-Length", str(stop - start))
        if match is None or (int(match[1]), int(match[2]) + 1) != (start, stop) or length != str(stop - start):
            raise ValueError(
                f"{self.where}: asked for bytes {start}-{stop - 1}, the server answered with {stated or 'no range'} "
                f"and {length} bytes."
            )
        self._check_unchanged([*response.history, response], int(match[3]))

    def _check_unchanged(self, responses: list[Any], size: int) -> None:
        """Every answer must come from the same commit and the same content."""
        # Large files are redirected: the hub's own headers are on the first response, the store's on the last.
        commits = {r.headers[constants.HUGGINGFACE_HEADER_X_REPO_COMMIT] for r in responses if _names_commit(r)}
        linked = [r.headers.get(constants.HUGGINGFACE_HEADER_X_LINKED_ETAG) for r in responses]
        etag = next(filter(None, linked), None) or responses[-1].headers.get("ETag", "")
        with self._lock:
            if self.size is None:
                self.size, self._etag = size, etag
            same = (self.size, self._etag) == (size, etag)
        if not same or not commits <= {self._commit}:
            raise ValueError(f"{self.where}: the file changed while it was being read; try again.")


def _names_commit(response: Any) -> bool:
    return constants.HUGGINGFACE_HEADER_X_REPO_COMMIT in response.headers


@dataclass(frozen=True)
class Piece:
    """A byte range and the local file that collects it; the file's length says how much is there already."""

    remote: RemoteFile
    start: int
    stop: int
    path: Path

    @property
    def present(self) -> int:
        """Bytes received so far."""
        try:
            return min(self.path.stat().st_size, self.stop - self.start)
        except FileNotFoundError:
            return 0


def join_ranges(ranges: Iterable[tuple[int, int]], piece: int = PIECE) -> list[tuple[int, int]]:
    """Join byte ranges that touch or overlap, and cut the result into pieces.

    Args:
        ranges: (start, stop), in any order; empty ones are left out.
        piece: Longest range to return.
    """
    joined: list[list[int]] = []
    for start, stop in sorted(ranges):
        if start == stop:
            continue
        if joined and start <= joined[-1][1]:
            joined[-1][1] = max(joined[-1][1], stop)
        else:
            joined.append([start, stop])
    return [(at, min(at + piece, stop)) for start, stop in joined for at in range(start, stop, piece)]


def download(pieces: list[Piece], title: str) -> None:
    """Complete all pieces, several at a time.

    Args:
        pieces: What to fetch; what their files already hold is kept.
        title: Shown before the progress bar.

    Raises:
        ValueError: As `RemoteFile.read`; the pieces received so far stay.
        HfHubHTTPError: As `RemoteFile.read`.
    """
    total = sum(piece.stop - piece.start for piece in pieces)
    lock, stopped = threading.Lock(), threading.Event()
    progress = tqdm(
        total=total, initial=sum(piece.present for piece in pieces), desc=title, unit="B", unit_scale=True, delay=1,
        leave=False, disable=None,
    )  # fmt: skip

    def complete(piece: Piece) -> None:
        with piece.path.open("ab") as file:

            def write(chunk: bytes) -> None:
                if stopped.is_set():
                    raise InterruptedError
                file.write(chunk)
                file.flush()  # what was received stays, even if the process is killed
                with lock:
                    progress.update(len(chunk))

            piece.remote.fetch(piece.start + piece.present, piece.stop, write)

    with progress, ThreadPoolExecutor(REQUESTS) as pool:
        jobs = [pool.submit(complete, piece) for piece in pieces]
        try:
            done, _ = wait(jobs, return_when=FIRST_EXCEPTION)
            failed = next((job.exception() for job in done if job.exception()), None)
            if failed is not None:
                raise failed
        finally:
            stopped.set()
            pool.shutdown(cancel_futures=True)
