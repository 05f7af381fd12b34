"""ExpertSpans: where the experts of a model lie in sources that a cache keeps."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from functools import partial

from expert_store.catalog import ExpertCatalog, extents
from expert_store.disk_cache.cached_source import CachedSource
from expert_store.disk_cache.disk_cache import DiskCache

Spans = Sequence[tuple[int, int]]  # begins and ends, in order, which do not touch


class ExpertSpans:
    """The bytes of all experts of a model, by source; what is not among them is trunk, headers and the like."""

    def __init__(self, catalog: ExpertCatalog):
        found: dict[CachedSource, list[tuple[int, int]]] = {}
        for entry in catalog.layers.values():
            for recipe in entry.experts:
                for extent in extents(recipe):
                    if isinstance(extent.source, CachedSource):
                        span = (extent.offset, extent.offset + extent.nbytes)
                        found.setdefault(extent.source, []).append(span)
        self.by_source: Mapping[CachedSource, Spans] = {source: _joined(spans) for source, spans in found.items()}
        self.total_bytes = sum(end - begin for spans in self.by_source.values() for begin, end in spans)

    @property
    def held_bytes(self) -> int:
        """Bytes of experts that are on the disk."""
        return self.total_bytes - sum(
            last - first
            for source, spans in self.by_source.items()
            for begin, end in spans
            for first, last in source.opened.missing(begin, end)
        )

    def keep_the_rest(self, cache: DiskCache) -> None:
        """Have a cache drop experts before the rest, without which no server starts."""
        for source in cache.sources:
            if isinstance(source, CachedSource) and source.opened.file is not None:
                source.opened.file.is_kept = partial(_has_others, self.by_source.get(source, ()))


def _has_others(spans: Spans, begin: int, end: int) -> bool:
    """Return True if a range has bytes that are in none of some spans."""
    place = bisect_right(spans, begin, key=lambda span: span[0]) - 1
    return place < 0 or spans[place][1] < end


def _joined(spans: list[tuple[int, int]]) -> list[tuple[int, int]]:
    joined: list[tuple[int, int]] = []
    for begin, end in sorted(set(spans)):
        if joined and begin <= joined[-1][1]:
            joined[-1] = (joined[-1][0], max(end, joined[-1][1]))
        else:
            joined.append((begin, end))
    return joined
