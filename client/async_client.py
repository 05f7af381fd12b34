"""The client for asyncio."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from typing import Any, Concatenate, Generic, ParamSpec, Self, TypeVar, Unpack

import httpx

from client import calls
from client.calls import Ask, Call, StreamCall
from client.errors import StreamClosedError, stream_errors
from client.methods import named_after
from client.readers import EventReader, StreamBody
from client.wire import DEFAULT_URL, Wire, WireOptions

P = ParamSpec("P")
T = TypeVar("T")
S = TypeVar("S")


class AsyncStream(Generic[T, S]):
    """What a server sends bit by bit: iterate once, or enter and iterate.

    The request is sent when the first of them begins; leaving the loop or the block closes the connection, as does the
    end of the task.
    """

    def __init__(self, open_response: Callable[[], Awaitable[httpx.Response]], reader: EventReader[T, S]):
        self._open_response, self._body = open_response, StreamBody(reader)
        self._response: httpx.Response | None = None
        self._is_closed = False

    @property
    def result(self) -> S:
        """Everything that has come so far, as one."""
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
                    if self._body.is_over:
                        return
            self._body.end()
        finally:
            await self.aclose()

    async def aclose(self) -> None:
        """Leave; the server stops writing. Any number of times."""
        self._is_closed = True
        if self._response is not None:
            await self._response.aclose()

    async def _opened(self) -> httpx.Response:
        if self._is_closed:
            raise StreamClosedError("this stream was read or closed before: ask again for another")
        if self._response is None:
            self._response = await self._open_response()
        return self._response


def _answered(build: Callable[P, Call[T]]) -> Callable[Concatenate[AsyncClient, P], Coroutine[Any, Any, T]]:
    async def method(self: AsyncClient, /, *args: P.args, **kwargs: P.kwargs) -> T:
        call = build(*args, **kwargs)
        response = await self._open(call.ask)
        return call.read(response)

    return named_after(build, method)


def _streamed(build: Callable[P, StreamCall[T, S]]) -> Callable[Concatenate[AsyncClient, P], AsyncStream[T, S]]:
    def method(self: AsyncClient, /, *args: P.args, **kwargs: P.kwargs) -> AsyncStream[T, S]:
        call = build(*args, **kwargs)
        return AsyncStream(lambda: self._open(call.ask, is_stream=True), call.reader())

    return named_after(build, method)


class AsyncClient:
    """A Greenroom server, asked from tasks of one event loop.

    Args:
        base_url: of the server, without ``/v1``.
        transport: of httpx, to be used instead of the network.
        sleep: waits between attempts.
        options: ``api_key``, ``admin_api_key``, ``timeout`` and ``retries``.
    """

    def __init__(
        self,
        base_url: str = DEFAULT_URL,
        *,
        transport: httpx.AsyncBaseTransport | None = None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        **options: Unpack[WireOptions],
    ):
        self._wire, self._sleep = Wire(base_url, **options), sleep
        self._http = httpx.AsyncClient(transport=transport, **self._wire.http_options())

    complete = _answered(calls.complete)
    chat = _answered(calls.chat)
    stream = _streamed(calls.stream)
    stream_chat = _streamed(calls.stream_chat)
    models = _answered(calls.models)
    experts = _answered(calls.experts)
    expert = _answered(calls.expert)
    watch_experts = _streamed(calls.watch_experts)
    pin = _answered(calls.pin)
    unpin = _answered(calls.unpin)
    prefetch = _answered(calls.prefetch)
    evict = _answered(calls.evict)
    metrics = _answered(calls.metrics)
    health = _answered(calls.health)
    ready = _answered(calls.ready)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close all connections."""
        await self._http.aclose()

    async def _open(self, ask: Ask, *, is_stream: bool = False) -> httpx.Response:
        """The response to a request, which is read unless it is the stream that was asked for."""
        exchange = self._wire.exchange(self._http, ask)
        try:
            step = next(exchange)
            while True:
                try:
                    outcome = await self._do(step, is_stream)
                except httpx.HTTPError as error:
                    step = exchange.throw(error)
                else:
                    step = exchange.send(outcome)
        except StopIteration as end:
            answer: httpx.Response = end.value
            return answer

    async def _do(self, step: httpx.Request | float, is_stream: bool) -> httpx.Response | None:
        if isinstance(step, float):
            await self._sleep(step)
            return None
        response = await self._http.send(step, stream=True)
        if not (is_stream and response.is_success):
            await response.aread()
        return response
