"""A client closes while its experts are read: other requests that wait for the same experts are served."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest

from server.api.core.service import LoadedModel
from server.loading.load import LoadedServer, load_server
from server.settings import ServeSettings
from tests.expert_store.gated_reads import GatedReads
from tests.server.live.conftest import LiveServer, serving_model
from tests.server.live.requests import ask, post


@contextmanager
def serving_bundled() -> Iterator[tuple[LiveServer, LoadedServer]]:
    loaded = load_server(None, ServeSettings(host_expert_memory="25%", dtype="float32", threads=1))
    model = LoadedModel(loaded.name, loaded.engine, loaded.codec, loaded.defaults)
    try:
        with serving_model(model, loaded.engine) as server:
            yield server, loaded
    finally:
        loaded.close()


def text_of(answer: bytes) -> str:
    return json.loads(answer.partition(b"\r\n\r\n")[2])["choices"][0]["text"]


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
