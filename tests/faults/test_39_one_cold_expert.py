"""Sixty-four requests for one cold expert: one read; if it fails all get the error, and the next call reads again."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from expert_store import ExpertLoadError, ExpertStore
from tests.expert_store.gated_reads import GatedReads
from tests.expert_store.lease_rows import one_row_each
from tests.expert_store.records import LAYOUT, make_records
from tests.faults.bundled import get as get_request
from tests.faults.bundled import serving_bundled, state_of, text_of
from tests.server.live.requests import ask, ask_together, post, status_of

NUM_REQUESTS = 64
SLOT = LAYOUT.slot_bytes


@pytest.fixture(params=[0, 4], ids=["host", "device"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[ExpertStore]:
    store = ExpertStore(make_records(tmp_path), 4 * SLOT, device_bytes=request.param * SLOT)
    yield store
    store.close()
    store.check_integrity()


def use(store: ExpertStore) -> int:
    with store.lease(one_row_each(0, [6])) as lease:
        return next(int(weights["weight"][0]) for _, weights in lease)


def ask_all(store: ExpertStore, threads: ThreadPoolExecutor, reads: GatedReads) -> list[Future[int]]:
    """Let all leases begin before the read ends."""
    users = [threads.submit(use, store) for _ in range(NUM_REQUESTS)]
    while store.statistics().lookups["disk", "decode"] < NUM_REQUESTS:
        pass
    reads.is_open.set()
    return users


def test_there_is_one_read(store: ExpertStore, monkeypatch: pytest.MonkeyPatch) -> None:
    reads = GatedReads(monkeypatch)
    with ThreadPoolExecutor(NUM_REQUESTS) as threads:
        assert {user.result(timeout=30) for user in ask_all(store, threads, reads)} == {6}
    assert reads.count == 1


def test_a_failure_reaches_all_and_the_next_reads_again(store: ExpertStore, monkeypatch: pytest.MonkeyPatch) -> None:
    reads = GatedReads(monkeypatch, OSError(5, "Input/output error"))
    with ThreadPoolExecutor(NUM_REQUESTS) as threads:
        for user in ask_all(store, threads, reads):
            assert isinstance(user.exception(timeout=30), ExpertLoadError)
    assert store.statistics().load_failures == 1
    reads.error = None
    assert use(store) == 6


@pytest.mark.slow
def test_requests_over_sockets_all_get_the_error_and_the_next_ones_their_text(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    requests = [post("/v1/completions", prompt="Once upon a time", max_tokens=4, temperature=0)] * NUM_REQUESTS
    with serving_bundled(max_queued_requests=NUM_REQUESTS) as (server, loaded):
        with monkeypatch.context() as patch:
            reads = GatedReads(patch, OSError(5, "Input/output error"))
            reads.is_open.set()
            answers = ask_together(server.port, requests)
        assert {status_of(answer) for answer in answers} == {500}
        assert len({text_of(answer) for answer in ask_together(server.port, requests)}) == 1
        assert state_of(ask(server.port, get_request("/health"))) == (200, "ok")
        loaded.store.check_integrity()
