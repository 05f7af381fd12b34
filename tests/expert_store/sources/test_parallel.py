"""Sources that are elsewhere are opened at the same time."""

from __future__ import annotations

import threading

from expert_store.sources.base import Source
from expert_store.sources.memory import MemorySource
from expert_store.sources.parallel import map_sources


def test_sources_elsewhere_are_opened_at_the_same_time_and_given_in_order() -> None:
    both = threading.Barrier(2, timeout=30)

    def name_when_both_are_asked(source: Source) -> str:
        both.wait()
        return source.name

    assert list(map_sources(name_when_both_are_asked, [MemorySource("a", b""), MemorySource("b", b"")])) == ["a", "b"]
