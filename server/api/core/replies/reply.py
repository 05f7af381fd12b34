"""The reply to an accepted generation: complete, or as a stream, usually of server-sent events."""

import asyncio
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Mapping, Sequence

from fastapi import Request
from fastapi.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from server.api.core.errors.api_errors import APIError, ClientDisconnectedError, api_error
from server.api.core.replies.keep_alive import COMMENT, KeepAlive
from server.api.core.replies.server_sent_events import EVENT_STREAM, HEADERS
from server.api.core.requests.disconnect import unless_client_leaves
from server.api.core.requests.generation import Generation
from server.engine.interface import EngineError, TokenEvent

SMALL_REPLY_BYTES = PIECE_BYTES = 64 << 10
FEW_EVENTS = 8  # with logprobs, their encoded form is still below ``PIECE_BYTES``


class ReplyEncoder(ABC):
    """Encodes the reply to one generation in the form of a dialect.

    An encoder serves either ``complete`` or a stream: ``start``, then ``encode`` for every event of the generation,
    once and in order, then ``end`` or ``failure``.
    """

    media_type = EVENT_STREAM  # media type of a stream

    def __init__(self, generation: Generation) -> None:
        self.generation = generation

    @abstractmethod
    async def complete(self) -> Sequence[bytes | bytearray]:
        """Consume the generation, and return the complete reply as JSON, in parts.

        Raises:
            EngineError: one of the choices failed, or there is no memory to hold the reply.

        """

    def held_bytes(self, event: TokenEvent) -> int:  # noqa: ARG002  most streams hold nothing
        """Return the bytes that a stream holds of an event until its end."""
        return 0

    def split(self, event: TokenEvent) -> Sequence[TokenEvent]:
        """Return the events that an event is encoded as, each of a size that can be sent at once."""
        return (event,)

    @abstractmethod
    def start(self) -> bytes:
        """Return the server-sent events that precede the first token."""

    def is_long(self, index: int, event: TokenEvent) -> bool:  # noqa: ARG002  an encoder may know more
        """Return True if encoding an event may block the event loop: it shows thousands of prompt tokens."""
        return bool(event.prompt_logprobs)

    @abstractmethod
    def encode(self, index: int, event: TokenEvent) -> bytes:
        """Return the server-sent events for an event of a choice."""

    @abstractmethod
    def end(self) -> bytes:
        """Return the server-sent events that follow the last token."""

    @abstractmethod
    def failure(self, error: APIError) -> bytes:
        """Return the server-sent events that end the stream when the engine fails."""


async def answer(request: Request, encoder: ReplyEncoder, *, stream: bool) -> Response:
    """Answer an accepted request. The generation is cancelled if the client leaves.

    Raises:
        ClientDisconnectedError: the client left.
        EngineError: one of the choices failed.

    """
    if stream:
        return GenerationStream(encoder, request.app.state.service.stream_keep_alive_seconds)
    generation = request.state.work = encoder.generation
    try:
        parts = await unless_client_leaves(request.receive, encoder.complete())
    except BaseException:
        generation.cancel()
        raise
    headers = generation.headers
    if sum(map(len, parts)) <= SMALL_REPLY_BYTES:
        generation.cancel()
        return Response(b"".join(parts), headers=headers, media_type="application/json")
    return LongReply(generation, parts, headers)


class LongReply(StreamingResponse):
    """A complete reply that is sent in pieces, and holds its memory until then."""

    def __init__(self, generation: Generation, parts: Sequence[bytes | bytearray], headers: Mapping[str, str]) -> None:
        length = {"Content-Length": str(sum(map(len, parts)))}
        super().__init__(pieces_of(parts), headers={**headers, **length}, media_type="application/json")
        self._generation = generation

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._generation.cancel()


async def pieces_of(parts: Sequence[bytes | bytearray]) -> AsyncGenerator[bytes, None]:
    """Yield the parts of a reply in pieces, each when the one before was sent; sockets copy what they can't send."""
    for part in parts:
        for start in range(0, len(part), PIECE_BYTES):
            yield bytes(memoryview(part)[start : start + PIECE_BYTES])


class GenerationStream(StreamingResponse):
    """Streams a reply, and cancels the generation when the response ends, however it ends."""

    def __init__(self, encoder: ReplyEncoder, keep_alive_seconds: float) -> None:
        comments_after = keep_alive_seconds if encoder.media_type == EVENT_STREAM else 0.0
        self.generation, self.events = encoder.generation, encode_stream(encoder, comments_after)
        headers = {**HEADERS, **self.generation.headers}
        super().__init__(self.events, headers=headers, media_type=encoder.media_type)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope["state"]["work"] = self.generation
        try:
            # With some servers StreamingResponse notices that a client has left only when it sends something, and it
            # sends nothing while a request waits.
            await unless_client_leaves(receive, self.stream_response(send))
        except (ClientDisconnectedError, OSError):
            return
        finally:
            self.generation.cancel()
            await self.events.aclose()


async def encode_stream(encoder: ReplyEncoder, keep_alive_seconds: float) -> AsyncGenerator[bytes, None]:
    """Yield the server-sent events of a reply in batches as they arrive, in pieces if they are long.

    An engine failure ends the stream.

    Args:
        keep_alive_seconds: time without events after which a comment is sent; 0 for no comments.

    """
    if start := encoder.start():
        yield start
    keep_alive = KeepAlive(keep_alive_seconds, encoder.generation.wake)
    try:
        async for arrived in encoder.generation.events():
            if held := sum(encoder.held_bytes(event) for _, event in arrived):
                await encoder.generation.hold(held)
            if _are_short(encoder, arrived):
                encoded = b"".join([encoder.encode(index, event) for index, event in arrived])
            else:
                encoded = b""
                async for piece in _encode_long(encoder, arrived):
                    yield piece
                    keep_alive.note_sent()
            encoded = encoded or (COMMENT if keep_alive.is_due else b"")
            if encoded:
                yield encoded
                keep_alive.note_sent()
    except EngineError as error:
        last = encoder.failure(api_error(error))
    else:
        last = encoder.end()
    finally:
        keep_alive.stop()
    if last:
        yield last


def _are_short(encoder: ReplyEncoder, arrived: Sequence[tuple[int, TokenEvent]]) -> bool:
    """Return True if events can be encoded at once: nearly always, as a batch is one token of each choice."""
    if len(arrived) > FEW_EVENTS:
        return False
    for index, event in arrived:  # noqa: SIM110  a generator would take longer than the checks
        if encoder.is_long(index, event):
            return False
    return True


async def _encode_long(encoder: ReplyEncoder, arrived: Sequence[tuple[int, TokenEvent]]) -> AsyncGenerator[bytes, None]:
    """Yield the server-sent events of a batch together, or in pieces if they are long."""
    encoded = bytearray()
    for index, event in arrived:
        for each in encoder.split(event):
            if encoder.is_long(index, each):
                encoded += await asyncio.to_thread(encoder.encode, index, each)
            else:
                encoded += encoder.encode(index, each)
            if len(encoded) > PIECE_BYTES:
                yield bytes(encoded)
                encoded.clear()
    if encoded:
        yield bytes(encoded)
