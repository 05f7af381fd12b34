"""A client closes while its experts are read: other requests that wait for the same experts are served."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.expert_store.gated_reads import GatedReads
from tests.faults.bundled import serving_bundled, text_of
from tests.server.live.requests import ask, post

pytestmark = pytest.mark.slow


def test_others_who_wait_for_the_same_experts_are_served(monkeypatch: pytest.MonkeyPatch) -> None:
    request = post("/v1/completions", prompt="Once upon a time", max_tokens=8, temperature=0)
    with serving_bundled() as (server, loaded), ThreadPoolExecutor(1) as clients:
        with monkeypatch.context() as patch:
            reads = GatedReads(patch)
            with server.connect() as leaving:
                leaving.sendall(request)
                reads.wait_until_started()
                staying = clients.submit(ask, server.port, request)
                while server.engine.num_submitted < 2:
                    reads.is_open.wait(0.01)
            while len(server.uvicorn.server_state.connections) > 1:  # it is seen to have left before anything is read
                reads.is_open.wait(0.01)
            reads.is_open.set()
            text = text_of(staying.result())
        server.wait_until_idle()
        assert server.engine.statistics.finished["abort"] == 1
        assert text == text_of(ask(server.port, request))
        loaded.store.check_integrity()
