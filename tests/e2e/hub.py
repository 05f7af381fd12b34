"""A stand-in for the Hugging Face hub: it serves one model's files over HTTP, complete or by range."""

from __future__ import annotations

import hashlib
import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest
from huggingface_hub.utils import close_session

COMMIT = "0" * 40


@dataclass
class Hub:
    """Serves the files of a folder as those of a model. Weights are behind links to another server.

    Once ``is_gated``, files are for those who have accepted a licence, which nobody has. ``sizes`` are said to be those
    of some files, whatever they are. Weights come when the ``gate`` is open.
    """

    model: str
    folder: Path
    url: str = ""
    is_gated: bool = False
    sizes: dict[str, int] = field(default_factory=dict)
    gate: threading.Event = field(default_factory=threading.Event)
    asked_for_weights: threading.Event = field(default_factory=threading.Event)
    sent: dict[str, int] = field(default_factory=dict)  # bytes by file
    signed_url: str = ""  # of the server that links to weights name
    valid_link: int = 0  # of the links given so far, the first that has not expired
    refuses_links: bool = False
    is_away: bool = False  # closes each connection
    commit: str = COMMIT  # that answers about files tell
    sha: str = COMMIT  # the commit that the API tells
    names: dict[str, str] = field(default_factory=dict)  # under which the API lists some files
    has_checksums: bool = True  # whether the API and links tell the SHA-256 of weights
    version_headers: dict[str, dict[str, str]] = field(default_factory=dict)  # by suffix, instead of an ETag
    resolved: list[str] = field(default_factory=list)  # files of which a link was asked for
    tokens: set[str] = field(default_factory=set)  # seen where the links lead
    seconds_per_byte: float = 0.0  # of weights, over all connections
    lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        self.gate.set()

    def environment(self, cache: Path) -> dict[str, str]:
        """Return environment variables that make a process use this hub, with its own cache."""
        return {"HF_ENDPOINT": self.url, "HF_HOME": str(cache), "HF_HUB_DISABLE_XET": "1", "HF_HUB_OFFLINE": "0"}

    def about(self, path: str) -> Any:
        """Return the answer of the hub's API about the model; None for unknown paths."""
        files = [path for path in sorted(self.folder.rglob("*")) if path.is_file()]
        names = {path: path.relative_to(self.folder).as_posix() for path in files}
        sizes = {name: self.sizes.get(name, path.stat().st_size) for path, name in names.items()}
        if re.fullmatch(rf"/api/models/{re.escape(self.model)}(/revision/(main|{COMMIT}))?(\?.*)?", path):
            siblings = [
                {"rfilename": self.names.get(name, name), "size": size} | self._pointer(name)
                for name, size in sizes.items()
            ]
            return {"id": self.model, "sha": self.sha, "siblings": siblings}
        if path.startswith(f"/api/models/{self.model}/tree/{COMMIT}"):
            return [{"type": "file", "path": name, "size": size, "oid": name} for name, size in sizes.items()]
        return None

    def checksum(self, name: str) -> str:
        """Return the SHA-256 of a file."""
        path = self.folder / name
        return _checksum(path, path.stat().st_mtime_ns)

    def is_in_cache(self, cache: Path, name: str) -> bool:
        """Return True if the hub's library finds a file with weights in a process's cache."""
        found = [path for path in cache.glob(f"hub/*/snapshots/{COMMIT}/{name}") if path.exists()]
        return bool(found) and found[0].resolve().name == self.checksum(name)

    def _pointer(self, name: str) -> dict[str, Any]:
        if not is_large(name) or not self.has_checksums:
            return {}
        return {"lfs": {"sha256": self.checksum(name), "size": (self.folder / name).stat().st_size, "pointerSize": 1}}


@cache
def _checksum(path: Path, _: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def is_large(name: str) -> bool:
    return name.endswith((".safetensors", ".gguf", ".pack"))


class Handler(BaseHTTPRequestHandler):
    """Request handler of a hub; a subclass sets the hub."""

    hub: Hub

    def do_HEAD(self) -> None:
        self._answer(has_body=False)

    def do_GET(self) -> None:
        self._answer(has_body=True)

    def _answer(self, *, has_body: bool) -> None:
        if self.hub.is_away:
            self.close_connection = True
            return
        about = self.hub.about(self.path)
        if about is not None:
            self._send(Path(), json.dumps(about).encode(), has_body)
            return
        resolved = re.fullmatch(rf"/{re.escape(self.hub.model)}/resolve/(?:main|{COMMIT})/([^?]+)", self.path)
        signed = re.fullmatch(r"/signed/(\d+)/(.+)", self.path)
        path = self.hub.folder / (resolved[1] if resolved else signed[2] if signed else "")
        if not path.is_file():
            self._refuse(404, "EntryNotFound" if resolved else "RepoNotFound")
        elif self.hub.is_gated:
            self._refuse(403, "GatedRepo")
        elif signed:
            self.hub.tokens.add(self.headers.get("Authorization", ""))
            if self.hub.refuses_links or int(signed[1]) < self.hub.valid_link:
                self._refuse(403, "Expired")
            else:
                self._send(path, path.read_bytes(), has_body)
        elif resolved and is_large(path.name) and has_body:
            self._redirect(resolved[1])
        else:
            self._send(path, path.read_bytes(), has_body)

    def _redirect(self, name: str) -> None:
        self.hub.resolved.append(name)
        self.send_response(302)
        headers = {
            "Location": f"{self.hub.signed_url}/signed/{self.hub.valid_link}/{name}",
            "X-Repo-Commit": self.hub.commit,
            "X-Linked-Size": (self.hub.folder / name).stat().st_size,
            "Content-Length": 0,
        }
        if self.hub.has_checksums:
            headers["X-Linked-Etag"] = f'"{self.hub.checksum(name)}"'
        for header, value in headers.items():
            self.send_header(header, str(value))
        self.end_headers()

    def _send(self, path: Path, body: bytes, has_body: bool) -> None:
        name = path.name
        asked, nbytes = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", "")), len(body)
        if asked:
            body = body[int(asked.group(1)) : int(asked.group(2)) + 1]
        self.send_response(206 if asked else 200)
        headers = {"X-Repo-Commit": self.hub.commit, "Content-Length": len(body)}
        if name:
            tag = {"ETag": f'"{self.hub.checksum(str(path.relative_to(self.hub.folder)))}"'}
            headers |= self.hub.version_headers.get(path.suffix, tag)
        if asked:
            headers["Content-Range"] = f"bytes {asked[1]}-{int(asked[1]) + len(body) - 1}/{nbytes}"
        for header, value in headers.items():
            self.send_header(header, str(value))
        self.end_headers()
        if not has_body:
            return
        if is_large(name):
            self.hub.asked_for_weights.set()
            self.hub.gate.wait(60)
        with self.hub.lock:
            self.hub.sent[name] = self.hub.sent.get(name, 0) + len(body)
            time.sleep(len(body) * self.hub.seconds_per_byte if is_large(name) else 0.0)
        self.wfile.write(body)

    def _refuse(self, status: int, code: str) -> None:
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Log nothing."""

    def handle(self) -> None:
        with suppress(ConnectionError):  # a client that ends
            super().handle()


def wait_for(is_true: Callable[[], bool], seconds: float = 60.0) -> None:
    """Wait until something is true that another process does."""
    deadline = time.monotonic() + seconds
    while not is_true():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@contextmanager
def serving_hub(model: str, folder: Path) -> Iterator[Hub]:
    """Serve a model during the block."""
    hub = Hub(model, folder)
    handler = type("HandlerOfHub", (Handler,), {"hub": hub})
    servers = [ThreadingHTTPServer(("127.0.0.1", 0), handler) for _ in range(2)]
    hub.url, hub.signed_url = (f"http://127.0.0.1:{server.server_port}" for server in servers)
    threads = [threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}) for server in servers]
    for thread in threads:
        thread.start()
    try:
        yield hub
    finally:
        hub.gate.set()
        for server, thread in zip(servers, threads, strict=True):
            server.shutdown()
            thread.join()
            server.server_close()


def use_hub(patch: pytest.MonkeyPatch, url: str, cache: Path) -> None:
    """Have the hub's library in this process ask a server, with a cache of its own."""
    files = f"{url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    for name, value in (
        ("ENDPOINT", url),
        ("HUGGINGFACE_CO_URL_TEMPLATE", files),
        ("HF_HUB_CACHE", str(cache)),
        ("HF_HUB_OFFLINE", False),
    ):
        patch.setattr(huggingface_hub.constants, name, value)
    close_session()
