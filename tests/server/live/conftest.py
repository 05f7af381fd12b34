"""The real engine with the fake model, behind a real uvicorn on a socket."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import cast

import anthropic
import openai
import pytest
import uvicorn
import uvloop
from fastapi import FastAPI

from server.api.core.requests.loaded_model import LoadedModel
from server.api.core.service.service import Service
from server.api.routes import add_routes
from server.engine.engine import Engine
from server.engine.interface import RequestMemory
from server.engine.text.codec import Codec
from server.lifecycle.http_protocol import ConnectionGuard, ConnectionLimits
from server.lifecycle.listening_socket import limit_sending
from tests.byte_tokenizer import byte_codec
from tests.server.engine.fakes import Rig


@dataclass
class LiveServer:
    """A server that answers as ``greenroom serve`` does; its event loop runs in a thread."""

    engine: Engine
    model: LoadedModel
    uvicorn: uvicorn.Server
    port: int
    loop: asyncio.AbstractEventLoop

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port))

    def wait_until_left(self) -> None:
        """Wait until every connection is closed."""
        state = self.uvicorn.server_state
        while state.connections or state.tasks:
            threading.Event().wait(0.01)

    def wait_until_idle(self) -> None:
        """Wait until every connection is closed, and no request runs or waits."""
        self.wait_until_left()
        statistics = self.engine.statistics
        while statistics.num_running or statistics.num_waiting:
            threading.Event().wait(0.01)

    def run(self, listener: socket.socket) -> None:
        asyncio.set_event_loop(self.loop)
        self.loop.run_until_complete(self.uvicorn.serve([listener]))
        self.loop.close()


@dataclass
class FakeServer(LiveServer):
    """A live server with the fake model."""

    rig: Rig


@contextmanager
def serving_model(
    model: LoadedModel,
    engine: Engine,
    send_timeout: float = 30,
    service: Service | None = None,
    connections: ConnectionLimits | None = None,
    port: int = 0,
    send_buffer_bytes: int | None = None,
) -> Iterator[LiveServer]:
    """Serve a model whose engine runs, on a socket; at the end, disconnect every client.

    Args:
        send_buffer_bytes: the kernel's for each connection; None for one that grows to megabytes.
    """
    service, app = service or Service("1"), FastAPI()
    service.model = model
    add_routes(app, service)
    guard = cast("type[asyncio.Protocol]", ConnectionGuard(connections))
    config = uvicorn.Config(app, http=guard, log_config=None, ws="none", lifespan="off", timeout_graceful_shutdown=1)
    with socket.create_server(("127.0.0.1", port), backlog=256) as listener:
        limit_sending(listener, send_timeout)
        if send_buffer_bytes is not None:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer_bytes)
        server = LiveServer(engine, model, uvicorn.Server(config), listener.getsockname()[1], uvloop.new_event_loop())
        thread = threading.Thread(target=server.run, args=(listener,))
        thread.start()
        try:
            yield server
        finally:
            server.uvicorn.should_exit = True
            thread.join()


@contextmanager
def serving_rig(
    rig: Rig,
    codec: Codec,
    send_timeout: float = 30,
    service: Service | None = None,
    connections: ConnectionLimits | None = None,
    memory: RequestMemory | None = None,
    send_buffer_bytes: int | None = None,
) -> Iterator[FakeServer]:
    """Serve the fake model; see ``serving_model``."""
    rig.find_grammar = codec.grammar
    rig.engine.start()
    is_traced = service is not None and service.tracer is not None
    model = LoadedModel("fake", rig.engine, codec, keeps_stalls=is_traced, memory=memory or RequestMemory())
    with serving_model(
        model, rig.engine, send_timeout, service, connections, send_buffer_bytes=send_buffer_bytes
    ) as server:
        yield FakeServer(server.engine, model, server.uvicorn, server.port, server.loop, rig)
    rig.engine.stop()
    rig.blocks.check_integrity([])


@pytest.fixture(scope="session")
def codec(tmp_path_factory: pytest.TempPathFactory) -> Codec:
    """A codec for the fake model's tokens, which are bytes."""
    return byte_codec(tmp_path_factory.mktemp("bytes"))


@pytest.fixture
def live(codec: Codec) -> Iterator[FakeServer]:
    with serving_rig(Rig(num_blocks=2048, max_running=64, max_batched_tokens=256, max_queued=256), codec) as server:
        yield server


@pytest.fixture
def openai_client(live: FakeServer) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"http://127.0.0.1:{live.port}/v1", api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture
def anthropic_client(live: FakeServer) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=f"http://127.0.0.1:{live.port}", api_key="none", max_retries=0) as client:
        yield client
