"""A live server of the bundled model, with a quarter of its experts in memory."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from server.api.core.requests.loaded_model import LoadedModel
from server.api.core.service.service import Service
from server.loading.load import LoadedServer, load_server
from server.settings import ServeSettings
from tests.server.live.conftest import LiveServer, serving_model


@contextmanager
def serving_bundled(
    path: str | None = None, service: Service | None = None, **settings: Any
) -> Iterator[tuple[LiveServer, LoadedServer]]:
    """Serve the bundled model, or another one, in this process."""
    service = service or Service("1")
    defaults = {"host_expert_memory": "25%", "dtype": "float32", "threads": 1}
    loaded = load_server(path, ServeSettings(**{**defaults, **settings}))
    model = LoadedModel(
        loaded.name, loaded.engine, loaded.codec, loaded.defaults, expert_health=lambda: loaded.store.health
    )
    service.metrics = loaded.metrics.render
    try:
        with serving_model(model, loaded.engine, service=service) as server:
            yield server, loaded
    finally:
        loaded.close()


def text_of(answer: bytes) -> str:
    return json.loads(answer.partition(b"\r\n\r\n")[2])["choices"][0]["text"]


def state_of(answer: bytes) -> tuple[int, str]:
    """Return the status code and the state in the answer of ``/health`` or ``/ready``."""
    return int(answer.split(b" ", 2)[1]), json.loads(answer.partition(b"\r\n\r\n")[2])["status"]


def get(path: str) -> bytes:
    return f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode()
