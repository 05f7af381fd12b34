"""Folders and files of object storage as sources: ``s3://``, ``gs://`` and ``az://``, by the package obstore."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Collection, Coroutine, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from expert_store.errors import SourceChangedError, SourceGoneError, SourceUnreadableError
from expert_store.file_name import FileName
from expert_store.sources.base import Bytes, Piece, SourceFolder, SourceIdentity
from expert_store.sources.runs import runs_of
from server.model.checkpoint.remote.retries import (
    FIRST_WAIT_SECONDS,
    MAX_WAIT_SECONDS,
    NUM_TRIES,
    wait_before_retry,
)
from server.model.checkpoint.remote.small_copies import SmallCopies
from server.model.errors import ModelError
from server.redaction import redact

if TYPE_CHECKING:
    from obstore import GetOptions, ObjectMeta
    from obstore.store import ClientConfig, ObjectStore, RetryConfig

MAX_CONNECTIONS = 16
PART_BYTES = 8 << 20  # larger reads are split, and their parts read at the same time
CHUNK_BYTES = 1 << 20  # of a part, at least, that come together
CONNECTIONS: ClientConfig = {
    "connect_timeout": "10s",
    "read_timeout": "30s",  # without a byte
    "timeout": "600s",  # of a part over a slow link
    "allow_http": True,  # where an endpoint that the user gives says so
}
RETRIES: RetryConfig = {  # of requests that fail; parts that are cut are read again
    "max_retries": NUM_TRIES - 1,
    "retry_timeout": timedelta(seconds=120),
    "backoff": {
        "init_backoff": timedelta(seconds=FIRST_WAIT_SECONDS),
        "max_backoff": timedelta(seconds=MAX_WAIT_SECONDS),
        "base": 2,
    },
}
QUOTED_CHARACTERS = 300  # of the storage's own words, in an error


class BucketClient:
    """A bucket, with the credentials that its provider's own variables and files give. Thread-safe.

    Args:
        address: of the bucket, or of a folder in it; names are relative to it.

    Raises:
        ModelError: obstore is not installed, or knows no such address.
    """

    def __init__(self, address: str):
        try:
            from obstore.exceptions import BaseError  # noqa: PLC0415  an extra
            from obstore.store import from_url  # noqa: PLC0415
        except ImportError as error:
            raise ModelError(
                f"{address} needs a package for object storage: pip install 'greenroom[remote]'"
            ) from error
        self.address = redact(address)
        try:
            self.store: ObjectStore = from_url(address, client_options=CONNECTIONS, retry_config=RETRIES)
        except (BaseError, ValueError) as error:
            raise ModelError(f"{self.address} is no address of object storage: {_words(error)}") from error
        self.slots = asyncio.Semaphore(MAX_CONNECTIONS)  # one for each connection
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="bucket-read", daemon=True)
        self._thread.start()

    def run(self, reads: Coroutine[Any, Any, None]) -> None:
        """Run reads in the client's own thread, and return when they are done."""
        asyncio.run_coroutine_threadsafe(reads, self._loop).result()

    @contextmanager
    def errors(self, name: str) -> Iterator[None]:
        """Turn errors of the storage into those of a source of this name.

        Raises:
            SourceError: the storage failed, with its own words but no addresses with signatures.
        """
        from obstore.exceptions import BaseError, NotFoundError, PreconditionError  # noqa: PLC0415

        try:
            yield
        except (NotFoundError, FileNotFoundError) as error:
            raise SourceGoneError(name, "the storage has no such object") from error
        except PreconditionError as error:
            raise changed_error(name) from error
        except (BaseError, OSError) as error:
            raise SourceUnreadableError(name, _words(error)) from None  # the cause may hold a signature

    def close(self) -> None:
        """Stop the thread; no reads are running."""
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


@dataclass(frozen=True)
class BucketSource:
    """An object; see ``Source``.

    Attributes:
        path: below the client's address.
    """

    client: BucketClient = field(repr=False)
    path: str

    @property
    def name(self) -> str:
        return f"{self.client.address}/{self.path}"

    @property
    def short_name(self) -> str:
        return self.path.rpartition("/")[2]

    def open(self, *, is_direct: bool = True) -> OpenBucketSource:
        """Look for the object; see ``Source``."""
        del is_direct  # there is no cache to pass
        return OpenBucketSource(self)


class OpenBucketSource:
    """An object of a known size and version; see ``OpenSource``. A read of another version fails."""

    def __init__(self, source: BucketSource):
        import obstore  # noqa: PLC0415  an extra

        self._source, self._client, self._is_changed = source, source.client, False
        self._get = obstore.get_async
        with self._client.errors(source.name):
            found = obstore.head(self._client.store, source.path)
        self._tag, self._version, self._nbytes = found["e_tag"], _version_of(found), found["size"]

    @property
    def identity(self) -> SourceIdentity:
        """Address and version."""
        return SourceIdentity("bucket", (self._source.name, self._version), self._nbytes)

    def has_changed(self) -> bool:
        """Return True if a read met another version."""
        return self._is_changed

    def refuse_changed(self) -> None:
        """Raise SourceChangedError if a read met another version."""
        if self._is_changed:
            raise changed_error(self._source.name)

    def read(self, pieces: Sequence[Piece], scratch: Bytes | None = None) -> None:
        """Fill the targets of some pieces: one request for those that adjoin, all requests at the same time."""
        del scratch
        parts = [
            Piece(piece.offset + begin, piece.target[begin : begin + PART_BYTES])
            for piece in pieces
            for begin in range(0, len(piece.target), PART_BYTES)
        ]
        self._client.run(self._read_all(list(runs_of(parts))))

    def close(self) -> None:
        """Do nothing: the client's connections serve other objects, too."""

    async def _read_all(self, runs: Sequence[Sequence[Piece]]) -> None:
        results = await asyncio.gather(*map(self._read_run, runs), return_exceptions=True)
        errors = [result for result in results if result is not None]
        if errors:
            self._is_changed = self._is_changed or any(isinstance(error, SourceChangedError) for error in errors)
            raise errors[0]

    async def _read_run(self, run: Sequence[Piece]) -> None:
        begin, end = run[0].offset, max(piece.end for piece in run)
        content = await self._read_range(begin, end)
        for piece in run:
            np.copyto(piece.target, content[piece.offset - begin : piece.end - begin])

    async def _read_range(self, begin: int, end: int) -> Bytes:
        """Return a range, after further tries if its connection is cut."""
        options: GetOptions = {"range": (begin, end)}
        if self._tag:
            options["if_match"] = self._tag
        failures = 0
        while True:
            async with self._client.slots:
                with self._client.errors(self._source.name):
                    answer = await self._get(self._client.store, self._source.path, options=options)
                if _version_of(answer.meta) != self._version:  # not every storage follows If-Match
                    raise changed_error(self._source.name)
                try:
                    with self._client.errors(self._source.name):
                        content, done = np.empty(end - begin, np.uint8), 0
                        async for chunk in answer.stream(CHUNK_BYTES):
                            done += len(chunk)
                            if done > len(content):
                                break  # the rest stays unread
                            content[done - len(chunk) : done] = np.frombuffer(memoryview(chunk), np.uint8)
                    if done == len(content):
                        return content
                    reason = f"the storage sent {'more' if done > len(content) else 'less'} than was asked for"
                    error = SourceUnreadableError(self._source.name, reason)
                except SourceUnreadableError as cut:
                    error = cut
            failures += 1
            if failures >= NUM_TRIES:
                raise error
            await asyncio.sleep(wait_before_retry(failures, {}))


@dataclass(frozen=True)
class BucketFolder:
    """A folder in object storage; see ``SourceFolder``.

    Attributes:
        prefix: below the client's address; empty, or with a slash at the end.
    """

    client: BucketClient = field(repr=False)
    prefix: str = ""

    @property
    def name(self) -> str:
        return f"{self.client.address}/{self.prefix}".rstrip("/")

    @property
    def short_name(self) -> str:
        return self.name.rpartition("/")[2]

    def names(self) -> Collection[FileName]:
        """Return the names of its objects."""
        return self._names

    def source(self, name: FileName, *, is_own: bool = False) -> BucketSource:
        """Return an object of it."""
        del is_own  # storage has no links
        return BucketSource(self.client, f"{self.prefix}{name}")

    def folder(self, name: FileName) -> BucketFolder:
        """Return a folder in it."""
        return BucketFolder(self.client, f"{self.prefix}{name}/")

    def local_copy(self, patterns: Collection[str], through: SourceFolder | None = None) -> Path:
        """Download the small files of some patterns into a folder that is deleted when the process ends."""
        return self._copies.copy(through or self, patterns)

    @cached_property
    def _names(self) -> list[FileName]:
        import obstore  # noqa: PLC0415  an extra

        with self.client.errors(self.name):
            found = obstore.list_with_delimiter(self.client.store, self.prefix.rstrip("/") or None)
        return FileName.valid(each["path"].rpartition("/")[2] for each in found["objects"])

    @cached_property
    def _copies(self) -> SmallCopies:
        return SmallCopies(self.short_name)


def upload(folder: Path, address: str, last: str) -> None:
    """Write the files of a folder, and of those in it, to object storage, but for hidden ones.

    Args:
        last: the name of the file that makes the others complete, which is written last.

    Raises:
        SourceError: the storage refuses one.
    """
    import obstore  # noqa: PLC0415  an extra

    client = BucketClient(address.rstrip("/"))
    paths = sorted(
        (path for path in folder.rglob("*") if path.is_file() and not path.name.startswith(".")),
        key=lambda path: (path.name == last, path),
    )
    for path in paths:
        name = path.relative_to(folder).as_posix()
        with client.errors(f"{client.address}/{name}"):
            obstore.put(client.store, name, path)
    client.close()


def _version_of(found: ObjectMeta) -> str:
    return found["e_tag"] or found["last_modified"].isoformat()


def changed_error(name: str) -> SourceChangedError:
    return SourceChangedError(name, "was changed in the storage while it is served; restart this server")


def _words(error: Exception) -> str:
    """Return what the storage says, in one line, without secrets."""
    text = redact(" ".join(str(error).split("Debug source")[0].split()))
    return text[:QUOTED_CHARACTERS] or type(error).__name__
