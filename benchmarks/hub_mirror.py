"""A mirror of the hub with one model behind a slow link.

``python -m benchmarks.hub_mirror FOLDER MODEL MBIT [SECONDS]``: all connections share one bucket of bytes, and each
answer begins after some seconds. It prints its address; ``/statistics`` has what was sent and asked for.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx

COMMIT = "0" * 40
CHUNK_SECONDS = 0.002  # of the link, sent at once
MIN_CHUNK_BYTES, MAX_CHUNK_BYTES = 32 << 10, 1 << 20
LATE_SECONDS = 0.02  # that a thread which woke up late may catch up
LARGE = (".safetensors", ".gguf")


class Link:
    """A link of some bytes a second, which all connections share."""

    def __init__(self, bytes_per_second: float, latency_seconds: float = 0.0):
        self._rate, self._free_at, self._lock = bytes_per_second, 0.0, threading.Lock()
        self.latency_seconds = latency_seconds
        self.chunk_bytes = int(min(max(bytes_per_second * CHUNK_SECONDS, MIN_CHUNK_BYTES), MAX_CHUNK_BYTES))
        self.sent_bytes = self.num_requests = self.num_resolves = 0

    def send(self, nbytes: int) -> None:
        """Wait until some bytes have passed."""
        with self._lock:
            self._free_at = max(self._free_at, time.monotonic() - LATE_SECONDS) + nbytes / self._rate
            wait = self._free_at - time.monotonic()
            self.sent_bytes += nbytes
        if wait > 0:
            time.sleep(wait)


class Mirror(ThreadingHTTPServer):
    """Serves the files of a folder as those of a model of the hub."""

    daemon_threads = True

    def __init__(self, folder: Path, model: str, link: Link):
        super().__init__(("127.0.0.1", 0), Handler)
        self.folder, self.model, self.link = folder, model, link


class Handler(BaseHTTPRequestHandler):
    """Answers the API of the hub about one model, and requests for its files."""

    protocol_version = "HTTP/1.1"
    server: Mirror

    def setup(self) -> None:
        buffer = 2 * self.server.link.chunk_bytes  # so that little is on its way that nobody wants any more
        self.request.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, buffer)
        super().setup()

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        self.server.link.num_requests += 1
        time.sleep(self.server.link.latency_seconds)
        path = self.path.partition("?")[0]
        resolved = re.fullmatch(rf"/{re.escape(self.server.model)}/resolve/(?:main|{COMMIT})/([^/]+)", path)
        signed = re.fullmatch(r"/signed/([^/]+)", path)
        if path == "/statistics":
            self._send_json(vars(self.server.link))
        elif path.startswith(f"/api/models/{self.server.model}"):
            self._send_json(self._files() if "/tree/" in path else self._about())
        elif resolved and resolved[1].endswith(LARGE):
            self.server.link.num_resolves += self.command == "GET"
            digest = checksum(self.server.folder / resolved[1])
            size = (self.server.folder / resolved[1]).stat().st_size
            self._head(302, {"Location": f"/signed/{resolved[1]}", "X-Linked-Etag": digest, "X-Linked-Size": size})
        elif (found := resolved or signed) and (self.server.folder / found[1]).is_file():
            self._send_file(self.server.folder / found[1])
        else:
            self._head(404, {"X-Error-Code": "EntryNotFound"})

    def _files(self) -> list[dict[str, Any]]:
        return [
            {"type": "file", "path": path.name, "size": path.stat().st_size, "oid": path.name} | pointer(path)
            for path in sorted(self.server.folder.iterdir())
            if path.is_file()
        ]

    def _about(self) -> dict[str, Any]:
        siblings = [{"rfilename": each["path"], **each} for each in self._files()]
        return {"id": self.server.model, "sha": COMMIT, "siblings": siblings}

    def _send_json(self, value: object) -> None:
        body = json.dumps(value, default=lambda _: None).encode()
        self._head(200, {"Content-Type": "application/json"}, len(body))
        self.wfile.write(body)

    def _send_file(self, path: Path) -> None:
        nbytes = path.stat().st_size
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        begin = int(asked[1]) if asked else 0
        end = min(int(asked[2]) + 1, nbytes) if asked and asked[2] else nbytes
        ranges = {"Content-Range": f"bytes {begin}-{end - 1}/{nbytes}"} if asked else {}
        digest = checksum(path)
        self._head(206 if asked else 200, {"ETag": f'"{digest}"', "Accept-Ranges": "bytes", **ranges}, end - begin)
        if self.command == "HEAD":
            return
        with path.open("rb") as file:
            position, link = begin, self.server.link
            while position < end:
                link.send(min(link.chunk_bytes, end - position))
                last = min(position + link.chunk_bytes, end)
                while position < last:
                    position += os.sendfile(self.connection.fileno(), file.fileno(), position, last - position)

    def _head(self, status: int, headers: dict[str, Any], nbytes: int = 0) -> None:
        self.send_response(status)
        for name, value in {**headers, "X-Repo-Commit": COMMIT, "Content-Length": nbytes}.items():
            self.send_header(name, str(value))
        self.end_headers()

    def handle(self) -> None:
        with suppress(ConnectionError):  # a client that ends
            super().handle()

    def log_message(self, *_: object) -> None:
        pass


@cache
def checksum(path: Path) -> str:
    """Return the SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def pointer(path: Path) -> dict[str, Any]:
    """Return what the hub tells of a large file."""
    if not path.name.endswith(LARGE):
        return {}
    return {"lfs": {"sha256": checksum(path), "oid": checksum(path), "size": path.stat().st_size, "pointerSize": 1}}


@contextmanager
def mirror(folder: Path, model: str, mbit: float, latency_seconds: float = 0.0) -> Iterator[str]:
    """Run a mirror in a process of its own, and yield its address."""
    command = [sys.executable, "-m", "benchmarks.hub_mirror", str(folder), model, str(mbit), str(latency_seconds)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield process.stdout.readline().strip()
        finally:
            process.kill()


def statistics(url: str) -> dict[str, int]:
    """Return what a mirror has sent, and been asked for."""
    found: dict[str, int] = httpx.get(f"{url}/statistics").json()
    return found


def main() -> None:
    folder, model, mbit, *latency = Path(sys.argv[1]), sys.argv[2], *map(float, sys.argv[3:])
    for path in folder.iterdir():
        if path.is_file():
            checksum(path)
    server = Mirror(folder, model, Link(mbit * 1e6 / 8, *latency))
    print(f"http://127.0.0.1:{server.server_port}", flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
