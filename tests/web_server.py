"""A web server for files with ranges, versions, links, keys and faults, in a thread of the test."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

Fault = Callable[["FileHandler"], bool]  # answers a request in its own way; False to have it answered as usual


class FileServer(ThreadingHTTPServer):
    """Serves a folder. ``faults`` holds one fault for each of the next requests of ranges."""

    daemon_threads = True

    def __init__(self, folder: Path):
        super().__init__(("127.0.0.1", 0), FileHandler)
        self.folder = folder
        self.faults: deque[Fault] = deque()
        self.versions: dict[str, str] = {}  # ETag by path
        self.password = ""  # of Basic authentication, encoded
        self.links = False  # whether /PATH redirects to /link/NUMBER/PATH
        self.valid_link = 0
        self.requests: list[tuple[str, str]] = []  # path and Range
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class FileHandler(BaseHTTPRequestHandler):
    """Answers with 206 and one range."""

    protocol_version = "HTTP/1.1"
    server: FileServer

    def do_GET(self) -> None:
        asked = self.headers.get("Range", "")
        with self.server.lock:
            self.server.requests.append((self.path, asked))
            fault = self.server.faults.popleft() if self.server.faults and asked else None
        if fault is not None and fault(self):
            return
        path = self.path.removeprefix(f"/link/{self.server.valid_link}")
        file = self.server.folder / path.lstrip("/")
        if self.server.password and self.headers.get("Authorization") != f"Basic {self.server.password}":
            self.answer(401, b"who are you?")
        elif path.startswith("/link/"):
            self.answer(403, b"Request has expired")
        elif self.server.links and path == self.path:
            self.answer(302, b"", {"Location": f"/link/{self.server.valid_link}{path}"})
        elif not file.is_file():
            self.answer(404, b"there is no such file")
        else:
            self.send_range(file)

    def send_range(self, file: Path, headers: dict[str, str] | None = None, cut: int | None = None) -> None:
        """Send the range that was asked for, or its first bytes before the connection is closed."""
        begin, end = (int(each) for each in self.headers["Range"].removeprefix("bytes=").split("-"))
        nbytes = file.stat().st_size
        with file.open("rb") as opened:
            opened.seek(begin)
            body = opened.read(end + 1 - begin)
        version = self.server.versions.get(self.path.rpartition("/")[2], '"1"')
        found = {"ETag": version, "Content-Range": f"bytes {begin}-{begin + len(body) - 1}/{nbytes}"}
        if body:
            self.answer(206, body, found | (headers or {}), cut)
        else:
            self.answer(416, b"", {"ETag": version, "Content-Range": f"bytes */{nbytes}"})

    def answer(self, status: int, body: bytes, headers: dict[str, str] | None = None, cut: int | None = None) -> None:
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(body))} | (headers or {})).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body if cut is None else body[:cut])
        if cut is not None:
            self.close_connection = True

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def file_server(folder: Path) -> Iterator[FileServer]:
    server = FileServer(folder)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def status(code: int, headers: dict[str, str] | None = None) -> Fault:
    """Answer with a status, such as 503."""

    def answer(handler: FileHandler) -> bool:
        handler.answer(code, b"busy, try later", headers)
        return True

    return answer


def cut_after(nbytes: int) -> Fault:
    """Close the connection after some bytes of the body."""

    def answer(handler: FileHandler) -> bool:
        handler.send_range(handler.server.folder / handler.path.lstrip("/"), cut=nbytes)
        return True

    return answer


def with_headers(**headers: str) -> Fault:
    """Answer with other headers, whose names have ``_`` for ``-``."""

    def answer(handler: FileHandler) -> bool:
        file = handler.server.folder / handler.path.lstrip("/")
        handler.send_range(file, {name.replace("_", "-"): value for name, value in headers.items()})
        return True

    return answer
