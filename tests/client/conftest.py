"""Fixtures with both clients, over a mock transport or a real socket."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest

from client import AsyncClient, Client
from client.config import DEFAULT_URL
from tests.client.scripted import ScriptedServer, scripted_server
from tests.server.api.conftest import fake, url

__all__ = ["fake", "url"]  # fixtures

Handler = Callable[[httpx.Request], httpx.Response]


@dataclass
class AnyClient:
    """Calls methods of the synchronous or the asynchronous client; sleeps are recorded instead of slept."""

    is_async: bool
    base_url: str = DEFAULT_URL
    handler: Handler | None = None
    slept: list[float] = field(default_factory=list)
    requests: list[httpx.Request] = field(default_factory=list)

    def __call__(self, name: str, *args: Any, client: dict[str, Any] | None = None, **options: Any) -> Any:
        """Call a method that returns a reply."""
        if not self.is_async:
            with Client(
                self.base_url, transport=self._transport(), sleep=self.slept.append, **(client or {})
            ) as target:
                return getattr(target, name)(*args, **options)

        async def call() -> Any:
            async with self._async_client(client) as target:
                return await getattr(target, name)(*args, **options)

        return asyncio.run(call())

    def stream(self, name: str, *args: Any, take: int | None = None, **options: Any) -> tuple[list[Any], Any]:
        """Return the items of a stream, or the first ``take`` of them, and its result."""
        if not self.is_async:
            with Client(self.base_url, transport=self._transport(), sleep=self.slept.append) as target:
                stream, items = getattr(target, name)(*args, **options), []
                for item in stream:
                    items.append(item)
                    if len(items) == take:
                        break
                return items, stream.result

        async def follow() -> tuple[list[Any], Any]:
            async with self._async_client() as target:
                stream, items = getattr(target, name)(*args, **options), []
                async for item in stream:
                    items.append(item)
                    if len(items) == take:
                        break
                return items, stream.result

        return asyncio.run(follow())

    def _async_client(self, options: dict[str, Any] | None = None) -> AsyncClient:
        async def sleep(seconds: float) -> None:
            self.slept.append(seconds)

        return AsyncClient(self.base_url, transport=self._transport(), sleep=sleep, **(options or {}))

    def _transport(self) -> httpx.MockTransport | None:
        if self.handler is None:
            return None
        handler = self.handler

        def handle(request: httpx.Request) -> httpx.Response:
            self.requests.append(request)
            return handler(request)

        return httpx.MockTransport(handle)


@pytest.fixture(params=["sync", "async"])
def any_client(request: pytest.FixtureRequest) -> AnyClient:
    return AnyClient(request.param == "async")


@pytest.fixture
def live_client(any_client: AnyClient, url: str) -> Iterator[AnyClient]:
    """A client of the fake server, over a real socket."""
    any_client.base_url = url
    return any_client


@pytest.fixture
def free_port() -> int:
    """A port without a listener."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


@pytest.fixture
def scripted() -> Iterator[ScriptedServer]:
    with scripted_server() as server:
        yield server
