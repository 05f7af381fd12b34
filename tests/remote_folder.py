"""A folder of sources behind a web server, which knows no more than ranges: a place that is no disk."""

from __future__ import annotations

import http.client
import shutil
import threading
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from fnmatch import fnmatch
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from expert_store import LocalFolder
from expert_store.errors import SourceGoneError
from expert_store.io.metadata import read_metadata
from expert_store.sources.base import Bytes, Piece, SourceFolder, SourceIdentity


@dataclass(frozen=True)
class RemoteSource:
    """A file behind the server; see ``Source``."""

    name: str

    @property
    def short_name(self) -> str:
        return self.name.rpartition("/")[2]

    def open(self, *, is_direct: bool = True) -> OpenRemote:
        return OpenRemote(self)


class OpenRemote:
    """An open file behind the server; see ``OpenSource``."""

    def __init__(self, source: RemoteSource):
        self._source = source
        self._nbytes = int(self._request("HEAD", {})[0]["Content-Length"])

    @property
    def identity(self) -> SourceIdentity:
        return SourceIdentity("remote", (self._source.name,), self._nbytes)

    def has_changed(self) -> bool:
        return False

    def refuse_changed(self) -> None:
        pass

    def read(self, pieces: Sequence[Piece], scratch: Bytes | None = None) -> None:
        for piece in pieces:
            if len(piece.target):
                _, body = self._request("GET", {"Range": f"bytes={piece.offset}-{piece.end - 1}"})
                piece.target[:] = np.frombuffer(body, np.uint8)

    def close(self) -> None:
        pass

    def _request(self, method: str, headers: dict[str, str]) -> tuple[Any, bytes]:
        url = urlsplit(self._source.name)
        connection = http.client.HTTPConnection(url.netloc, timeout=30)
        try:
            connection.request(method, url.path, headers=headers)
            response = connection.getresponse()
            if response.status >= 400:
                raise SourceGoneError(self._source.name, f"the server answers {response.status}")
            return response.headers, response.read()
        except OSError as error:
            raise SourceGoneError(self._source.name, "the server does not answer") from error
        finally:
            connection.close()


@dataclass(frozen=True)
class RemoteFolder:
    """A folder behind the server; see ``SourceFolder``."""

    name: str
    listing: Path = field(compare=False)  # stands for a list of its files
    copies: Path = field(compare=False)  # a folder of this machine, which need not be there

    @property
    def short_name(self) -> str:
        return self.name.rpartition("/")[2]

    def names(self) -> Collection[str]:
        return LocalFolder(self.listing).names()

    def source(self, name: str, *, is_own: bool = False) -> RemoteSource:
        return RemoteSource(f"{self.name}/{name}")

    def folder(self, name: str) -> RemoteFolder:
        return RemoteFolder(f"{self.name}/{name}", self.listing / name, self.copies / name)

    def local_copy(self, patterns: Collection[str], through: SourceFolder | None = None) -> Path:
        del through
        self.copies.mkdir(parents=True, exist_ok=True)
        for name in self.names():
            if any(fnmatch(name, pattern) for pattern in patterns):
                (self.copies / name).write_bytes(read_metadata(self.source(name)))
        return self.copies


@contextmanager
def remote_folder(folder: Path, scratch: Path) -> Iterator[RemoteFolder]:
    """Move a folder behind a server, and yield its place there.

    Args:
        scratch: an empty folder.
    """
    served, listing = scratch / "served", scratch / "listing"
    shutil.copytree(folder, listing, copy_function=lambda _, target: Path(target).touch())
    folder.rename(served)

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self._answer(None)

        def do_GET(self) -> None:
            begin, end = map(int, self.headers["Range"].removeprefix("bytes=").split("-"))
            self._answer((begin, end + 1))

        def _answer(self, extent: tuple[int, int] | None) -> None:
            path = served / self.path.lstrip("/")
            if not path.is_file():
                self.send_error(404)
                return
            content = path.read_bytes()
            body = b"" if extent is None else content[slice(*extent)]
            self.send_response(200 if extent is None else 206)
            self.send_header("Content-Length", str(len(content) if extent is None else len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield RemoteFolder(f"http://127.0.0.1:{server.server_port}", listing, scratch / "copies")
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
