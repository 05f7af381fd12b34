"""Sizes of the requests of a download."""

from __future__ import annotations

import pytest

from expert_store.disk_cache.chunk_size import MIN_BYTES, SECONDS, ChunkSize


@pytest.mark.parametrize("latency", [0.0005, 0.2])
@pytest.mark.parametrize("rate", [12.5e6, 125e6])
def test_a_request_takes_little_of_the_link_and_much_of_a_fast_one(rate: float, latency: float) -> None:
    chunk, sizes = ChunkSize(), []
    for _ in range(40):
        chunk.adapt(chunk.nbytes, latency + chunk.nbytes / rate)
        sizes.append(chunk.nbytes)
    mean = sum(sizes[20:]) / 20
    assert 0.4 * SECONDS * rate < mean < 3 * SECONDS * rate + MIN_BYTES
