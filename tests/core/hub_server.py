"""A model hub on loopback, as far as reading repositories goes: ``/<org>/<name>/resolve/<revision>/<file>``.

Large files are redirected to a second server, as the real hub redirects to its store, with the headers that it sends.
"""

from __future__ import annotations

import hashlib
import socket
import threading
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import pytest
from huggingface_hub import constants
from huggingface_hub.utils import close_session

from frozenllm.core.weights import ranges

LARGE = (".safetensors", ".bin")


class HubServer:
    """Serves folders as repositories until it is closed.

    Attributes:
        url: Where it listens.
        repositories: ``org/name`` -> folder.
        revisions: (``org/name``, branch or tag) -> commit.
        faults: What to do wrong: ``status`` and ``store_status`` (answer of the hub and of the store), ``gated``,
            ``ignore_range``, ``shift_range``, ``short`` (by one byte, in agreement with Content-Length), ``cut``
            (the store closes the connection half-way), ``stuck`` (it closes it at once), ``other_commit`` and
            ``other_etag`` (after so many requests), ``slow`` (seconds per 64 KiB).
        requests: (method, path, Range header or None, status) of every request.
        served: Bytes sent per path, headers of the protocol not counted.
        sending: Answers that are being sent.
        most_sending: The most of them at a time.
        tokens: Authorization headers that the hub was sent.
        store_saw_token: Whether the store was ever sent one.
    """

    def __init__(self) -> None:
        self.repositories: dict[str, Path] = {}
        self.revisions: dict[tuple[str, str], str] = {}
        self.faults: dict = {}
        self.requests: list[tuple[str, str, str | None, int]] = []
        self.served: Counter[str] = Counter()
        self.sending = self.most_sending = 0
        self.tokens: set[str | None] = set()
        self.store_saw_token = False
        self.lock = threading.Lock()
        self._servers = [self._start(_Hub), self._start(_Store)]
        self.url = f"http://127.0.0.1:{self._servers[0].server_port}"
        self.store_url = f"http://localhost:{self._servers[1].server_port}"  # another host, as on the real hub

    def add(self, name: str, folder: Path, commit: str = "c" * 40) -> None:
        """Serve a folder as a repository whose main branch is at ``commit``."""
        self.repositories[name] = folder
        self.revisions[name, "main"] = self.revisions[name, commit] = commit

    def forget(self) -> None:
        """Clear the statistics."""
        with self.lock:
            self.requests.clear()
            self.served.clear()

    def large_bytes(self) -> int:
        """Bytes sent from safetensors and ``.bin`` files."""
        return sum(count for path, count in self.served.items() if path.endswith(LARGE))

    def close(self) -> None:
        for server in self._servers:
            server.shutdown()
            server.server_close()

    def _start(self, handler: type[_Handler]) -> ThreadingHTTPServer:
        server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (handler,), {"hub": self}))
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return server


@contextmanager
def serve_hub(home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    """A server that huggingface_hub takes for the hub, with caches under ``home``; nothing else can be reached."""
    server = HubServer()
    template = server.url + "/{repo_id}/resolve/{revision}/{filename}"
    for name, value in {
        "ENDPOINT": server.url,
        "HUGGINGFACE_CO_URL_TEMPLATE": template,
        "HF_HUB_CACHE": str(home / "hub"),
        "HF_HOME": str(home),
        "HF_HUB_OFFLINE": False,
    }.items():
        monkeypatch.setattr(constants, name, value)
    monkeypatch.setattr(ranges, "FIRST_WAIT", 0.01)
    monkeypatch.setattr("huggingface_hub.utils._http.time", SimpleNamespace(sleep=lambda _seconds: None))
    monkeypatch.delenv("FROZENLLM_CACHE", raising=False)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    connect = socket.socket.connect

    def guarded(self: socket.socket, address: tuple) -> None:
        assert self.family == socket.AF_UNIX or address[0] in ("127.0.0.1", "::1"), f"{address} is not this machine"
        connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", guarded)
    try:
        yield server
    finally:
        close_session()
        server.close()


class _Handler(BaseHTTPRequestHandler, ABC):
    hub: HubServer
    protocol_version = "HTTP/1.1"
    wbufsize = 65536

    def do_HEAD(self) -> None:
        self.answer()

    def do_GET(self) -> None:
        self.answer()

    @abstractmethod
    def answer(self) -> None: ...

    def reply(self, status: int, headers: dict[str, str], body: bytes = b"") -> None:
        with self.hub.lock:
            self.hub.requests.append((self.command, self.path, self.headers.get("Range"), status))
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        with self.hub.lock:
            self.hub.sending += 1
            self.hub.most_sending = max(self.hub.most_sending, self.hub.sending)
        try:
            self.send(body)
        finally:
            with self.hub.lock:
                self.hub.sending -= 1

    def send(self, body: bytes) -> None:
        faults, sent = self.hub.faults, 0
        limit = len(body)
        if isinstance(self, _Store) and len(body) > 4096 and (faults.get("cut") or faults.get("stuck")):
            limit = 0 if faults.get("stuck") else len(body) // 2
        while sent < limit:
            part = body[sent : min(sent + 65536, limit)]
            try:
                self.wfile.write(part)
                self.wfile.flush()
            except ConnectionError:  # the client was killed
                self.close_connection = True
                return
            sent += len(part)
            with self.hub.lock:
                self.hub.served[self.path] += len(part)
            if faults.get("slow"):
                threading.Event().wait(faults["slow"])
        if limit < len(body):
            self.close_connection = True

    def serve_file(self, path: Path, headers: dict[str, str]) -> None:
        data, faults = path.read_bytes(), self.hub.faults
        asked = self.headers.get("Range")
        if asked is None or faults.get("ignore_range"):
            self.reply(200, {**headers, "Accept-Ranges": "bytes"}, data)
            return
        first, last = (int(part) for part in asked.removeprefix("bytes=").split("-"))
        if first >= len(data):
            self.reply(416, {"Content-Range": f"bytes */{len(data)}"})
            return
        last = min(last, len(data) - 1)
        first += faults.get("shift_range", 0)
        headers["Content-Range"] = f"bytes {first}-{last}/{len(data)}"
        body = data[first : last + 1]
        if faults.get("short"):
            body = body[:-1]
        self.reply(206, headers, body)

    def log_message(self, *args) -> None:
        pass


class _Hub(_Handler):
    def answer(self) -> None:
        hub, faults = self.hub, self.hub.faults
        hub.tokens.add(self.headers.get("Authorization"))
        parts = self.path.strip("/").split("/")
        name = "/".join(parts[:2])
        if len(parts) < 5 or parts[2] != "resolve" or name not in hub.repositories:
            self.reply(404, {"X-Error-Code": "RepoNotFound", "X-Error-Message": "Repository not found"})
            return
        if faults.get("gated"):
            self.reply(403, {"X-Error-Code": "GatedRepo", "X-Error-Message": "Access to this model is restricted."})
            return
        if faults.get("status"):
            self.reply(faults["status"], {})
            return
        commit = hub.revisions.get((name, parts[3]))
        if commit is None:
            self.reply(404, {"X-Error-Code": "RevisionNotFound"})
            return
        path = hub.repositories[name].joinpath(*parts[4:])
        headers = {"X-Repo-Commit": commit}
        if not path.is_file():
            self.reply(404, {**headers, "X-Error-Code": "EntryNotFound"})
            return
        etag = f'"{hashlib.sha256(path.read_bytes()).hexdigest()}"'
        if path.suffix not in LARGE:
            self.serve_file(path, {**headers, "ETag": etag})
            return
        if faults.get("other_commit") and len(hub.requests) > faults["other_commit"]:
            headers["X-Repo-Commit"] = "d" * 40
        if faults.get("other_etag") and len(hub.requests) > faults["other_etag"]:
            etag = '"other"'
        location = f"{hub.store_url}/{name}/{'/'.join(parts[4:])}"
        size = str(path.stat().st_size)
        self.reply(302, {**headers, "X-Linked-Etag": etag, "X-Linked-Size": size, "Location": location})


class _Store(_Handler):
    def answer(self) -> None:
        self.hub.store_saw_token |= "Authorization" in self.headers
        parts = self.path.strip("/").split("/")
        path = self.hub.repositories["/".join(parts[:2])].joinpath(*parts[2:])
        if self.hub.faults.get("store_status"):
            self.reply(self.hub.faults["store_status"], {})
            return
        self.serve_file(path, {"ETag": f'"store-{path.stat().st_size}"'})
