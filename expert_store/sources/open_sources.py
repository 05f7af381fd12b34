"""OpenSources: the sources of one set of weights, open while it is in use."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from expert_store.errors import CheckpointError, SourceError
from expert_store.sources.base import OpenSource, Source
from expert_store.sources.parallel import map_sources


class OpenSources:
    """Sources that reader threads share. ``close`` closes them once no thread reads any more. Thread-safe.

    Raises:
        SourceError: one can't be opened; the others are closed again.
    """

    def __init__(self, sources: Iterable[Source]):
        self._open: dict[Source, OpenSource] = {}
        self._num_readers = 0
        self._is_closed = False
        self._lock = threading.Lock()  # guards the two counters and the end of the sources
        try:
            for _ in map_sources(self._open_one, sources):
                pass
        except CheckpointError:
            self.close()
            raise

    def __getitem__(self, source: Source) -> OpenSource:
        """Return an open source, to be read within ``reading``.

        Raises:
            CheckpointError: all were closed meanwhile.
        """
        try:
            return self._open[source]
        except KeyError:
            raise CheckpointError(f"{source.name} was closed, as its weights were removed") from None

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Keep the sources open."""
        with self._lock:
            self._num_readers += 1
        try:
            yield
        finally:
            with self._lock:
                self._num_readers -= 1
                self._close_if_unused()

    def changed(self) -> set[Source]:
        """Return the sources that were written to since they were opened, as far as the storage tells."""
        with self.reading():
            return {source for source, found in self._open.items() if _has_changed(found)}

    def close(self) -> None:
        """Close the sources, or let the last reader do so."""
        with self._lock:
            self._is_closed = True
            self._close_if_unused()

    def _open_one(self, source: Source) -> None:
        self._open[source] = source.open()

    def _close_if_unused(self) -> None:
        if self._is_closed and not self._num_readers:
            for source in self._open.values():
                source.close()
            self._open.clear()


def _has_changed(source: OpenSource) -> bool:
    try:
        return source.has_changed()
    except SourceError:  # the storage is gone; reads fail with the reason
        return False
