"""Load generator: streamed completions over raw sockets, to use little CPU time of the measured machine."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import numpy as np


class RefusedError(RuntimeError):
    """The server returned an error instead of a stream."""


@dataclass(frozen=True)
class Completion:
    """A prompt, and the exact number of tokens to generate."""

    prompt_ids: Sequence[int]
    max_tokens: int
    more: Mapping[str, object] = field(default_factory=dict)  # further fields of the request


@dataclass
class Timing:
    """Times of a request and of the chunks of its stream, in seconds of ``time.perf_counter``."""

    sent: float
    arrivals: list[float] = field(default_factory=list)  # one per chunk with text
    num_tokens: int = 0
    usage: Mapping[str, Any] = field(default_factory=dict)  # of the last chunk

    @property
    def first_token_seconds(self) -> float:
        return self.arrivals[0] - self.sent

    @property
    def between_tokens_seconds(self) -> list[float]:
        return np.diff(self.arrivals).tolist()

    @property
    def step_seconds(self) -> float:
        """Mean time per token. Tokens that complete no character have no chunk, so chunks are not counted."""
        return (self.arrivals[-1] - self.arrivals[0]) / (self.num_tokens - 1)


async def complete(url: str, completion: Completion, timing: Timing | None = None) -> Timing:
    """Request one completion on a new connection.

    Args:
        timing: is filled as chunks arrive, for a caller who watches them; a new one by default.

    Raises:
        RefusedError: If the server refuses the request.
        RuntimeError: If the stream ends early.
    """
    address = urlsplit(url)
    timing = timing or Timing(0.0)
    timing.sent = time.perf_counter()
    reply = _Reply(timing)
    loop = asyncio.get_running_loop()
    assert address.hostname is not None
    transport, _ = await loop.create_connection(lambda: reply, address.hostname, address.port or 80)
    transport.write(_request(completion))
    try:
        return await reply.done
    finally:
        transport.close()


async def burst(url: str, completions: Sequence[Completion]) -> list[Timing]:
    """Request all completions at once."""
    return await asyncio.gather(*(complete(url, completion) for completion in completions))


async def poisson(url: str, completions: Sequence[Completion], rate: float, seed: int) -> list[Timing]:
    """Request completions at random times, ``rate`` per second, independent of running ones (Poisson arrivals)."""
    arrivals = np.random.default_rng(seed).exponential(1 / rate, len(completions)).cumsum()
    start = time.perf_counter()
    tasks = []
    for completion, arrival in zip(completions, arrivals.tolist(), strict=True):
        await asyncio.sleep(start + arrival - time.perf_counter())
        tasks.append(asyncio.create_task(complete(url, completion)))
    return await asyncio.gather(*tasks)


def _request(completion: Completion) -> bytes:
    body = {
        "prompt": list(completion.prompt_ids),
        "max_tokens": completion.max_tokens,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
        **completion.more,
    }
    content = json.dumps(body).encode()
    head = (
        "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(content)}\r\n\r\n"
    )
    return head.encode() + content


class _Reply(asyncio.Protocol):
    """Parser of one streamed reply, split at double newlines: headers, chunk framing and JSON contain none."""

    def __init__(self, timing: Timing):
        self._timing = timing
        self._rest = b""
        self.done: asyncio.Future[Timing] = asyncio.get_running_loop().create_future()

    def data_received(self, data: bytes) -> None:
        now = time.perf_counter()
        *events, self._rest = (self._rest + data).split(b"\n\n")
        for event in events:
            payload = event.partition(b"data: ")[2]
            if self.done.done():
                return
            if not payload:  # a comment, which keeps the connection alive
                continue
            if payload.startswith(b"[DONE]"):
                self.done.set_result(self._timing)
            elif b'"usage":null' in payload:
                self._timing.arrivals.append(now)
            else:
                self._end(json.loads(payload))

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.done.done():
            self.done.set_exception(exc or _failure(self._rest))

    def _end(self, chunk: dict[str, dict[str, Any]]) -> None:
        if "usage" not in chunk:
            self.done.set_exception(RuntimeError(f"the request failed: {chunk}"))
            return
        self._timing.usage = chunk["usage"]
        self._timing.num_tokens = chunk["usage"]["completion_tokens"]


def _failure(reply: bytes) -> RuntimeError:
    """Return the exception for an incomplete stream, with the server's error message or the received text."""
    head, _, body = reply.partition(b"\r\n\r\n")
    try:
        return RefusedError(f"{head.split()[1].decode()} {json.loads(body)['error']['message']}")
    except (ValueError, IndexError, KeyError):
        return RuntimeError(f"the stream ended early: {reply.decode()!r}")
