"""Responses that their clients may continue or read again, in a SQLite database of bounded size.

Each row has one turn: the input items of a request and the response to it. A turn that continues another one refers to
it, so a conversation is a chain of rows. Every use of a chain makes all of it new, so that none loses its beginning
while it goes on. The owner of a response is a digest of the key that made it; without keys it is empty.
"""

from __future__ import annotations

import json
import logging
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from server.api.core.errors.api_errors import InvalidRequestError, ResponseNotFoundError, ResponseStoreError
from server.api.core.errors.validation import quote
from server.api.core.json_text.encoding import encode_json
from server.engine.interface import JsonObject

FILE = "responses.sqlite"
VERSION = 1  # of the table
MAX_CHAIN = 1000  # responses in a conversation
MAX_CHAIN_BYTES = 24 << 20  # of all its items: as many as one body may have
BUSY_SECONDS = 5.0  # how long to wait for another process that writes

PRAGMAS = (
    "busy_timeout = 5000",
    "auto_vacuum = INCREMENTAL",  # deleted responses leave the file
    "secure_delete = ON",  # and leave nothing readable in it
    "journal_mode = WAL",  # a process that is killed leaves a database that is whole
    "synchronous = NORMAL",
    "journal_size_limit = 16777216",
)
TABLE = """
CREATE TABLE responses (
    id TEXT PRIMARY KEY, owner BLOB NOT NULL, parent TEXT, used REAL NOT NULL, num_bytes INTEGER NOT NULL,
    input TEXT NOT NULL, response TEXT NOT NULL
)
"""
TURN = "SELECT input, response FROM responses WHERE id = ? AND owner = ? AND used >= ?"
NUM_BYTES = "SELECT num_bytes FROM responses WHERE id = ? AND owner = ? AND used >= ?"
INDEX = "CREATE INDEX by_use ON responses (used, num_bytes)"
CHAIN = """
WITH RECURSIVE chain (id, parent, num_bytes, depth) AS (
    SELECT id, parent, num_bytes, 1 FROM responses WHERE id = :id AND owner = :owner AND used >= :oldest
    UNION ALL
    SELECT r.id, r.parent, r.num_bytes, depth + 1 FROM chain c JOIN responses r ON r.id = c.parent
    WHERE r.owner = :owner AND depth <= :most
)
SELECT id, parent, num_bytes FROM chain ORDER BY depth DESC
"""

log = logging.getLogger(__name__)


class UnusableStoreError(Exception):
    """The store can't be opened; the message says why, and what to do."""


@dataclass(frozen=True)
class Turn:
    """The input items of a request, and the response to it."""

    input: list[Any]
    response: JsonObject

    @property
    def items(self) -> list[Any]:
        return [*self.input, *self.response["output"]]


class ResponseStore:
    """The responses in a folder. Its methods block; any thread may call them.

    Args:
        folder: made if there is none.
        max_bytes: of all responses and their inputs; beyond it those go that were not used for the longest time.
        max_age_seconds: time without use after which a response goes.
        now: returns the time in seconds, as ``time.time``.

    Raises:
        UnusableStoreError: it can't be opened.

    """

    def __init__(
        self, folder: Path, max_bytes: int, max_age_seconds: float, now: Callable[[], float] = time.time
    ) -> None:
        self._path = folder / FILE
        self._max_bytes, self._max_age_seconds, self._now = max_bytes, max_age_seconds, now
        self._lock = threading.Lock()  # guards the connection
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            os.close(os.open(self._path, os.O_RDWR | os.O_CREAT, 0o600))  # what others said is nobody else's to read
        except OSError as error:
            raise UnusableStoreError(f"{error.filename}: {error.strerror}") from error
        self._connection = sqlite3.connect(
            self._path, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False
        )
        try:
            self._open()
        except sqlite3.DatabaseError as error:
            self._connection.close()
            raise UnusableStoreError(
                f"{self._path} is damaged or no database ({error}): move it away, and a new one is made"
            ) from error
        except UnusableStoreError:
            self._connection.close()
            raise

    def _open(self) -> None:
        for pragma in PRAGMAS:
            self._connection.execute(f"PRAGMA {pragma}")
        (found,) = self._connection.execute("PRAGMA quick_check(1)").fetchone()
        if found != "ok":
            raise sqlite3.DatabaseError(" ".join(found.split()))
        (version,) = self._connection.execute("PRAGMA user_version").fetchone()
        (num_tables,) = self._connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
        if not version and not num_tables:
            with self._writing():
                self._connection.execute(TABLE)
                self._connection.execute(INDEX)
                self._connection.execute(f"PRAGMA user_version = {VERSION}")
        elif version != VERSION:
            raise UnusableStoreError(f"{self._path} is of another version of Greenroom, or another program's: move it")

    def close(self) -> None:
        with self._lock:
            self._connection.close()

    def save(self, owner: bytes, response: JsonObject, items: Sequence[Any], parent: str | None) -> None:
        """Store a response, and drop those that are too old or too many.

        Raises:
            ResponseStoreError: it can't be stored.

        """
        texts = encode_json([*items]), encode_json(response)
        num_bytes = sum(len(text.encode()) for text in texts)
        if num_bytes > self._max_bytes:
            raise ResponseStoreError(
                f"The response and its input have {num_bytes} bytes, more than the store may have."
            )
        row = (response["id"], owner, parent, self._now(), num_bytes, *texts)
        with self._using(), self._writing():
            self._connection.execute("INSERT INTO responses VALUES (?, ?, ?, ?, ?, ?, ?)", row)
            self._drop_others(response["id"])
        with self._using():
            self._connection.execute("PRAGMA incremental_vacuum").fetchall()

    def num_bytes(self, owner: bytes, response_id: str) -> int:
        """Return the bytes of a response and its input.

        Raises:
            ResponseNotFoundError: the owner has no such response.
            ResponseStoreError: it can't be read.

        """
        (num_bytes,) = self._row(NUM_BYTES, owner, response_id)
        return int(num_bytes)

    def num_conversation_bytes(self, owner: bytes, response_id: str) -> int:
        """Return the bytes of a response and of all that it continues.

        Raises:
            InvalidRequestError: the owner has no such response, or a part of its conversation is gone, or it is long.
            ResponseStoreError: it can't be read.

        """
        with self._using():
            return sum(num_bytes for _, _, num_bytes in self._chain(owner, response_id))

    def find(self, owner: bytes, response_id: str) -> Turn:
        """Return the turn of a response.

        Raises:
            ResponseNotFoundError: the owner has no such response.
            ResponseStoreError: it can't be read.

        """
        return Turn(*map(json.loads, self._row(TURN, owner, response_id)))

    def conversation(self, owner: bytes, response_id: str) -> list[Any]:
        """Return the items of a response and of all that it continues, from the first on, and count it as used.

        Raises:
            InvalidRequestError: the owner has no such response, or a part of its conversation is gone, or it is long.
            ResponseStoreError: it can't be read.

        """
        with self._using(), self._writing():
            ids = [(each,) for each, _, _ in self._chain(owner, response_id)]
            self._connection.executemany("UPDATE responses SET used = ? WHERE id = ?", [(self._now(), *i) for i in ids])
            query = "SELECT input, response FROM responses WHERE id = ?"
            rows = [self._connection.execute(query, each).fetchone() for each in ids]
        return [item for row in rows for item in Turn(*map(json.loads, row)).items]

    def delete(self, owner: bytes, response_id: str) -> None:
        """Delete a response.

        Raises:
            ResponseNotFoundError: the owner has no such response.
            ResponseStoreError: it can't be deleted.

        """
        with self._using(), closing(self._connection.cursor()) as cursor:
            cursor.execute("DELETE FROM responses WHERE id = ? AND owner = ?", (response_id, owner))
            num_deleted = cursor.rowcount
        if not num_deleted:
            raise not_found(response_id)

    def _row(self, query: str, owner: bytes, response_id: str) -> tuple[Any, ...]:
        """Return the row of a response."""
        with self._using():
            row: tuple[Any, ...] | None = self._connection.execute(query, (response_id, owner, self._oldest)).fetchone()
        if row is None:
            raise not_found(response_id)
        return row

    def _chain(self, owner: bytes, response_id: str) -> list[tuple[str, str | None, int]]:
        """Return id, parent and bytes of a response and of all that it continues, from the first on."""
        wanted = {"id": response_id, "owner": owner, "oldest": self._oldest, "most": MAX_CHAIN}
        chain = self._connection.execute(CHAIN, wanted).fetchall()
        _check_chain(chain, response_id)
        return chain

    @property
    def _oldest(self) -> float:
        return self._now() - self._max_age_seconds

    def _drop_others(self, kept: str) -> None:
        """Delete what is too old, and then what was not used for the longest time until all are within the limit."""
        self._connection.execute("DELETE FROM responses WHERE used < ?", (self._oldest,))
        (total,) = self._connection.execute("SELECT sum(num_bytes) FROM responses").fetchone()
        dropped: list[tuple[str]] = []
        query = "SELECT id, num_bytes FROM responses WHERE id != ? ORDER BY used, rowid"
        for response_id, num_bytes in self._connection.execute(query, (kept,)):
            if total <= self._max_bytes:
                break
            dropped.append((response_id,))
            total -= num_bytes
        self._connection.executemany("DELETE FROM responses WHERE id = ?", dropped)

    @contextmanager
    def _using(self) -> Iterator[None]:
        """Hold the connection, and translate its errors."""
        with self._lock:
            try:
                yield
            except sqlite3.Error as error:
                log.exception("%s can't be used", self._path)
                raise ResponseStoreError(
                    f"The server can't use its stored responses: {error}. See its log, or send 'store' as false."
                ) from error

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """Commit all statements of the context, or none."""
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
            raise
        self._connection.execute("COMMIT")


def not_found(response_id: str) -> ResponseNotFoundError:
    return ResponseNotFoundError(f"There is no response {quote(response_id)}, or it is another key's, or too old.")


def _check_chain(chain: Sequence[tuple[str, str | None, int]], response_id: str) -> None:
    """Refuse a chain that has no end, or is too long.

    Raises:
        InvalidRequestError: it is.

    """
    if not chain:
        raise PreviousResponseError(
            f"'previous_response_id' must be the 'id' of a stored response: {quote(response_id)} is unknown, "
            "too old, or another key's."
        )
    if len(chain) > MAX_CHAIN or sum(num_bytes for _, _, num_bytes in chain) > MAX_CHAIN_BYTES:
        raise PreviousResponseError(
            f"'previous_response_id' names a conversation of more than {MAX_CHAIN} responses or "
            f"{MAX_CHAIN_BYTES >> 20} MiB: begin a new one."
        )
    if chain[0][1] is not None:
        raise PreviousResponseError(
            "'previous_response_id' names a conversation whose beginning was deleted: send all of it as 'input'."
        )


class PreviousResponseError(InvalidRequestError):
    """The response can't be continued."""

    code = "previous_response_not_found"  # OpenAI's

    def __init__(self, message: str) -> None:
        super().__init__(message, "previous_response_id")
