"""AbsentSource: a source that could not be reached at the start, whose bytes may be in a cache."""

from __future__ import annotations

import threading
from collections.abc import Sequence

from expert_store.errors import SourceChangedError
from expert_store.sources.base import Bytes, OpenSource, Piece, Source, SourceIdentity


class AbsentSource:
    """An open source, by what is remembered of it; see ``OpenSource``. The first read that finds it there opens it.

    Args:
        identity: what it was when it was seen last; another one is refused.
    """

    def __init__(self, source: Source, identity: SourceIdentity):
        self._source, self._identity = source, identity
        self._opened: OpenSource | None = None
        self._is_changed = False
        self._lock = threading.Lock()  # held while it is opened

    @property
    def identity(self) -> SourceIdentity:
        return self._identity

    def has_changed(self) -> bool:
        return self._is_changed or (self._opened is not None and self._opened.has_changed())

    def refuse_changed(self) -> None:
        """Raise SourceChangedError if it is another one than was remembered, or has changed since."""
        if self._is_changed:
            raise SourceChangedError(self._source.name, "is not the one that the cache has; restart this server")
        if self._opened is not None:
            self._opened.refuse_changed()

    def read(self, pieces: Sequence[Piece], scratch: Bytes | None = None) -> None:
        """Fill the targets of some pieces; see ``OpenSource``."""
        with self._lock:
            if self._opened is None:
                opened = self._source.open()
                self._is_changed = opened.identity != self._identity
                if self._is_changed:
                    opened.close()
                else:
                    self._opened = opened
        self.refuse_changed()
        assert self._opened is not None
        self._opened.read(pieces, scratch)

    def close(self) -> None:
        if self._opened is not None:
            self._opened.close()
