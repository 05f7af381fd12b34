"""Opens sources, at the same time where each takes a way to a server and back."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from expert_store.sources.base import LocalSource, Source

NUM_THREADS = 16

T = TypeVar("T")


def map_sources(function: Callable[[Source], T], sources: Iterable[Source]) -> Iterable[T]:
    """Call a function for each source, for files one after the other, and return its results in order.

    Raises:
        Exception: of the first source whose call failed, once its result is taken.
    """
    sources = list(sources)
    if are_files(sources):
        return map(function, sources)
    with ThreadPoolExecutor(NUM_THREADS, thread_name_prefix="source-open") as pool:
        return pool.map(function, sources)


def are_files(sources: Iterable[Source]) -> bool:
    """Return True if all sources are files on a disk, or are read from such."""
    return all(isinstance(source, LocalSource) for source in sources)
