"""The client that blocks."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Concatenate, Generic, ParamSpec, Self, TypeVar, Unpack

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


class Stream(Generic[T, S]):
    """What a server sends bit by bit: iterate once, or enter and iterate.

    The request is sent when the first of them begins; leaving the loop or the block closes the connection.
    """

    def __init__(self, open_response: Callable[[], httpx.Response], reader: EventReader[T, S]):
        self._open_response, self._body = open_response, StreamBody(reader)
        self._response: httpx.Response | None = None
        self._is_closed = False

    @property
    def result(self) -> S:
        """Everything that has come so far, as one."""
        return self._body.result

    def __enter__(self) -> Self:
        self._opened()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __iter__(self) -> Iterator[T]:
        response = self._opened()
        try:
            with stream_errors():
                for data in response.iter_bytes():
                    yield from self._body.feed(data)
                    if self._body.is_over:
                        return
            self._body.end()
        finally:
            self.close()

    def close(self) -> None:
        """Leave; the server stops writing. Any number of times."""
        self._is_closed = True
        if self._response is not None:
            self._response.close()

    def _opened(self) -> httpx.Response:
        if self._is_closed:
            raise StreamClosedError("this stream was read or closed before: ask again for another")
        if self._response is None:
            self._response = self._open_response()
        return self._response


def _answered(build: Callable[P, Call[T]]) -> Callable[Concatenate[Client, P], T]:
    def method(self: Client, /, *args: P.args, **kwargs: P.kwargs) -> T:
        call = build(*args, **kwargs)
        response = self._open(call.ask)
        return call.read(response)

    return named_after(build, method)


def _streamed(build: Callable[P, StreamCall[T, S]]) -> Callable[Concatenate[Client, P], Stream[T, S]]:
    def method(self: Client, /, *args: P.args, **kwargs: P.kwargs) -> Stream[T, S]:
        call = build(*args, **kwargs)
        return Stream(lambda: self._open(call.ask, is_stream=True), call.reader())

    return named_after(build, method)


class Client:
    """A Greenroom server, asked from a thread; several threads may share it.

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
        transport: httpx.BaseTransport | None = None,
        sleep: Callable[[float], None] = time.sleep,
        **options: Unpack[WireOptions],
    ):
        self._wire, self._sleep = Wire(base_url, **options), sleep
        self._http = httpx.Client(transport=transport, **self._wire.http_options())

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

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close all connections."""
        self._http.close()

    def _open(self, ask: Ask, *, is_stream: bool = False) -> httpx.Response:
        """The response to a request, which is read unless it is the stream that was asked for."""
        exchange = self._wire.exchange(self._http, ask)
        try:
            step = next(exchange)
            while True:
                try:
                    outcome = self._do(step, is_stream)
                except httpx.HTTPError as error:
                    step = exchange.throw(error)
                else:
                    step = exchange.send(outcome)
        except StopIteration as end:
            answer: httpx.Response = end.value
            return answer

    def _do(self, step: httpx.Request | float, is_stream: bool) -> httpx.Response | None:
        if isinstance(step, float):
            self._sleep(step)
            return None
        response = self._http.send(step, stream=True)
        if not (is_stream and response.is_success):
            response.read()
        return response
