"""The real engine over the fake model, behind a real uvicorn on a socket."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import pytest
import uvicorn
import uvloop
from fastapi import FastAPI

from server.api.routes import add_routes
from server.api.service import LoadedModel, Service
from server.engine.codec import Codec
from server.model.checkpoint import BUNDLED
from server.model.tokenizer import Tokenizer
from tests.server.engine.fakes import Rig


@dataclass
class LiveServer:
    """A server that answers as ``greenroom serve`` does; its event loop runs in a thread of its own."""

    rig: Rig
    uvicorn: uvicorn.Server
    port: int
    loop: asyncio.AbstractEventLoop

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port))

    def wait_until_idle(self) -> None:
        """Until every connection is closed, and no request runs or waits."""
        state, statistics = self.uvicorn.server_state, self.rig.engine.statistics
        while state.connections or state.tasks or statistics.num_running or statistics.num_waiting:
            threading.Event().wait(0.01)

    def run(self, listener: socket.socket) -> None:
        asyncio.set_event_loop(self.loop)
        self.loop.run_until_complete(self.uvicorn.serve([listener]))
        self.loop.close()


@pytest.fixture(scope="session")
def codec() -> Codec:
    return Codec(Tokenizer(BUNDLED))


@contextmanager
def serving(codec: Codec, service: Service) -> Iterator[LiveServer]:
    """A server for a service, which gets the fake model."""
    rig, app = Rig(num_blocks=2048, max_running=64, max_batched_tokens=256, max_queued=256), FastAPI()
    service.model = LoadedModel("fake", rig.engine, codec)
    add_routes(app, service)
    config = uvicorn.Config(app, log_config=None, ws="none", lifespan="off", timeout_graceful_shutdown=1)
    with socket.create_server(("127.0.0.1", 0), backlog=256) as listener:
        server = LiveServer(rig, uvicorn.Server(config), listener.getsockname()[1], uvloop.new_event_loop())
        thread = threading.Thread(target=server.run, args=(listener,))
        rig.engine.start()
        thread.start()
        yield server
        server.uvicorn.should_exit = True
        thread.join()
        rig.engine.stop()
    rig.blocks.check_integrity([])


@pytest.fixture
def live(codec: Codec) -> Iterator[LiveServer]:
    with serving(codec, Service("1")) as server:
        yield server
