"""An app on fakes, called in-process or over a real socket."""

import json
import socket
import threading

import anyio
import httpx
import pytest
import uvicorn

from tests.chat_formats import FAMILIES
from tests.server.api.fakes import FakeServer
from tests.server.api.turns import HERMES_CALL


@pytest.fixture
def fake():
    return FakeServer()


@pytest.fixture
def hermes(fake):
    """A model that writes calls in Hermes' format, and reasons."""
    fake.codec.chat_traits = FAMILIES["hermes"].traits
    fake.engine.texts = ("<think>", "Rain?", "</think>", "I look.", "\n", *HERMES_CALL)
    fake.engine.max_model_len = 1024
    return fake


@pytest.fixture
def ask(fake):
    """Send one request in-process and return the whole response."""

    def send(method, path, **kwargs):
        async def exchange():
            transport = httpx.ASGITransport(fake.app, raise_app_exceptions=False)
            async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
                return await client.request(method, path, **kwargs)

        return anyio.run(exchange)

    return send


@pytest.fixture
def post(ask):
    """Send a body as ASCII JSON, which can hold what httpx refuses: NaN, and half a surrogate pair."""
    headers = {"Content-Type": "application/json"}
    return lambda path, body: ask("POST", path, content=json.dumps(body), headers=headers)


@pytest.fixture
def complete(post):
    return lambda **body: post("/v1/completions", {"prompt": "Once upon a time", **body})


@pytest.fixture
def chat(post):
    messages = [{"role": "user", "content": "Tell me a story"}]
    return lambda **body: post("/v1/chat/completions", {"messages": messages, **body})


@pytest.fixture
def url(fake):
    """The app behind uvicorn, on a socket that already listens before the server has started."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        config = uvicorn.Config(fake.app, log_config=None, ws="none", lifespan="off", timeout_graceful_shutdown=1)
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        server.should_exit = True
        thread.join()
