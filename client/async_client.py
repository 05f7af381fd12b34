"""The asyncio client."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from typing import Any, Concatenate, Generic, ParamSpec, Self, TypeVar, Unpack

import httpx

from client import calls
from client.calls import Call, RequestSpec, StreamCall
from client.config import DEFAULT_URL, ClientConfig, ClientOptions
from client.errors import StreamClosedError, stream_errors
from client.signatures import with_signature_of
from client.stream_readers import EventReader, StreamDecoder

P = ParamSpec("P")
T = TypeVar("T")
S = TypeVar("S")


class AsyncStream(Generic[T, S]):
    """A streamed reply. Iterate over it once, or use it as a context manager.

    The request is sent when the iteration or the block begins. Leaving the loop or the block, or cancelling the task,
    closes the connection.
    """

    def __init__(self, open_response: Callable[[], Awaitable[httpx.Response]], reader: EventReader[T, S]):
        self._open_response, self._body = open_response, StreamDecoder(reader)
        self._response: httpx.Response | None = None
        self._is_closed = False

    @property
    def result(self) -> S:
        """The result so far."""
        return self._body.result

    async def __aenter__(self) -> Self:
        await self._opened()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def __aiter__(self) -> AsyncIterator[T]:
        response = await self._opened()
        try:
            with stream_errors():
                async for data in response.aiter_bytes():
                    for item in self._body.feed(data):
                        yield item
                    if self._body.is_finished:
                        return
            self._body.end()
        finally:
            await self.aclose()

    async def aclose(self) -> None:
        """Close the connection, which makes the server stop generating. Idempotent."""
        self._is_closed = True
        if self._response is not None:
            await self._response.aclose()

    async def _opened(self) -> httpx.Response:
        if self._is_closed:
            raise StreamClosedError("this stream was read or closed before; call the method again for a new stream")
        if self._response is None:
            self._response = await self._open_response()
        return self._response


def _method(build: Callable[P, Call[T]]) -> Callable[Concatenate[AsyncClient, P], Coroutine[Any, Any, T]]:
    async def method(self: AsyncClient, /, *args: P.args, **kwargs: P.kwargs) -> T:
        call = build(*args, **kwargs)
        response = await self._open(call.request)
        return call.read(response)

    return with_signature_of(build, method)


def _stream_method(build: Callable[P, StreamCall[T, S]]) -> Callable[Concatenate[AsyncClient, P], AsyncStream[T, S]]:
    def method(self: AsyncClient, /, *args: P.args, **kwargs: P.kwargs) -> AsyncStream[T, S]:
        call = build(*args, **kwargs)
        return AsyncStream(lambda: self._open(call.request, is_stream=True), call.reader())

    return with_signature_of(build, method)


class AsyncClient:
    """Asynchronous client of a Greenroom server, for tasks of one event loop.

    Args:
        base_url: URL of the server, without ``/v1``.
        transport: httpx transport, such as a mock for tests.
        sleep: Function that waits between attempts.
        options: ``api_key``, ``admin_api_key``, ``timeout`` and ``retries``.
    """

    def __init__(
        self,
        base_url: str = DEFAULT_URL,
        *,
        transport: httpx.AsyncBaseTransport | None = None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        **options: Unpack[ClientOptions],
    ):
        self._config, self._sleep = ClientConfig(base_url, **options), sleep
        self._http = httpx.AsyncClient(transport=transport, **self._config.http_options())

    complete = _method(calls.complete)
    chat = _method(calls.chat)
    stream = _stream_method(calls.stream)
    stream_chat = _stream_method(calls.stream_chat)
    embed = _method(calls.embed)
    classify = _method(calls.classify)
    models = _method(calls.models)
    experts = _method(calls.experts)
    expert = _method(calls.expert)
    watch_experts = _stream_method(calls.watch_experts)
    pin = _method(calls.pin)
    unpin = _method(calls.unpin)
    prefetch = _method(calls.prefetch)
    evict = _method(calls.evict)
    variants = _method(calls.variants)
    load_variant = _method(calls.load_variant)
    unload_variant = _method(calls.unload_variant)
    adapters = _method(calls.adapters)
    load_adapter = _method(calls.load_adapter)
    unload_adapter = _method(calls.unload_adapter)
    requests = _method(calls.requests)
    metrics = _method(calls.metrics)
    health = _method(calls.health)
    ready = _method(calls.ready)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close all connections."""
        await self._http.aclose()

    async def _open(self, request: RequestSpec, *, is_stream: bool = False) -> httpx.Response:
        """Send a request and return its response; the body is read unless the caller streams it."""
        attempts = self._config.attempts(self._http, request)
        try:
            step = next(attempts)
            while True:
                try:
                    outcome = await self._do(step, is_stream)
                except httpx.HTTPError as error:
                    step = attempts.throw(error)
                else:
                    step = attempts.send(outcome)
        except StopIteration as end:
            response: httpx.Response = end.value
            return response

    async def _do(self, step: httpx.Request | float, is_stream: bool) -> httpx.Response | None:
        if isinstance(step, float):
            await self._sleep(step)
            return None
        response = await self._http.send(step, stream=True)
        if not (is_stream and response.is_success):
            await response.aread()
        return response
