"""A stand-in for the Hugging Face hub: it serves one model's files over HTTP, complete or by range."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

COMMIT = "0" * 40


@dataclass
class Hub:
    """Serves the files of a folder as those of a model.

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

    def __post_init__(self) -> None:
        self.gate.set()

    def environment(self, cache: Path) -> dict[str, str]:
        """Return environment variables that make a process use this hub, with its own cache."""
        return {"HF_ENDPOINT": self.url, "HF_HOME": str(cache), "HF_HUB_DISABLE_XET": "1", "HF_HUB_OFFLINE": "0"}

    def about(self, path: str) -> Any:
        """Return the answer of the hub's API about the model; None for unknown paths."""
        files = [path for path in sorted(self.folder.iterdir()) if path.is_file()]
        sizes = {file.name: self.sizes.get(file.name, file.stat().st_size) for file in files}
        if re.fullmatch(rf"/api/models/{re.escape(self.model)}(/revision/(main|{COMMIT}))?(\?.*)?", path):
            siblings = [{"rfilename": name, "size": size} for name, size in sizes.items()]
            return {"id": self.model, "sha": COMMIT, "siblings": siblings}
        if path.startswith(f"/api/models/{self.model}/tree/{COMMIT}"):
            return [{"type": "file", "path": name, "size": size, "oid": name} for name, size in sizes.items()]
        return None


class Handler(BaseHTTPRequestHandler):
    """Request handler of a hub; a subclass sets the hub."""

    hub: Hub

    def do_HEAD(self) -> None:
        self._answer(has_body=False)

    def do_GET(self) -> None:
        self._answer(has_body=True)

    def _answer(self, *, has_body: bool) -> None:
        about = self.hub.about(self.path)
        if about is not None:
            self._send("", json.dumps(about).encode(), has_body)
            return
        match = re.fullmatch(rf"/{re.escape(self.hub.model)}/resolve/(?:main|{COMMIT})/([^/?]+)", self.path)
        path = self.hub.folder / match.group(1) if match else None
        if path is None or not path.is_file():
            self._refuse(404, "EntryNotFound" if match else "RepoNotFound")
        elif self.hub.is_gated:
            self._refuse(403, "GatedRepo")
        else:
            self._send(path.name, path.read_bytes(), has_body)

    def _send(self, name: str, body: bytes, has_body: bool) -> None:
        asked = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        if asked:
            body = body[int(asked.group(1)) : int(asked.group(2)) + 1]
        self.send_response(206 if asked else 200)
        for header, value in (("ETag", f'"{name}"'), ("X-Repo-Commit", COMMIT), ("Content-Length", len(body))):
            self.send_header(header, str(value))
        self.end_headers()
        if has_body:
            if name.endswith(".safetensors"):
                self.hub.asked_for_weights.set()
                self.hub.gate.wait(60)
            self.hub.sent[name] = self.hub.sent.get(name, 0) + len(body)
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


@contextmanager
def serving_hub(model: str, folder: Path) -> Iterator[Hub]:
    """Serve a model during the block."""
    hub = Hub(model, folder)
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("HandlerOfHub", (Handler,), {"hub": hub}))
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield hub
    finally:
        hub.gate.set()
        server.shutdown()
        thread.join()
        server.server_close()
