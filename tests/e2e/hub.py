"""A stand-in for the Hugging Face hub: one model's files over HTTP, by whole or by range."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


@dataclass
class Hub:
    """Serves the files of a folder as those of a model."""

    model: str
    folder: Path
    url: str = ""
    sent: dict[str, int] = field(default_factory=dict)  # bytes by file

    def environment(self, cache: Path) -> dict[str, str]:
        """What makes a process ask this hub, with a cache of its own."""
        return {"HF_ENDPOINT": self.url, "HF_HOME": str(cache), "HF_HUB_DISABLE_XET": "1", "HF_HUB_OFFLINE": "0"}


@contextmanager
def serving_hub(model: str, folder: Path) -> Iterator[Hub]:
    """Answer for a model until the block ends."""
    hub = Hub(model, folder)

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self._answer(has_body=False)

        def do_GET(self) -> None:
            self._answer(has_body=True)

        def _answer(self, *, has_body: bool) -> None:
            match = re.fullmatch(rf"/{re.escape(hub.model)}/resolve/main/([^/?]+)", self.path)
            path = hub.folder / match.group(1) if match else None
            if path is None or not path.is_file():
                self.send_response(404)
                self.send_header("X-Error-Code", "EntryNotFound" if match else "RepoNotFound")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            body = path.read_bytes()
            asked = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
            if asked:
                body = body[int(asked.group(1)) : int(asked.group(2)) + 1]
            self.send_response(206 if asked else 200)
            for name, value in (("ETag", f'"{path.name}"'), ("X-Repo-Commit", "0" * 40), ("Content-Length", len(body))):
                self.send_header(name, str(value))
            self.end_headers()
            if has_body:
                hub.sent[path.name] = hub.sent.get(path.name, 0) + len(body)
                self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
