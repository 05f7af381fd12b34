"""The reply to a chat of one choice, in dialects whose stream consists of named events."""

import asyncio
from abc import abstractmethod
from collections.abc import Callable, Sequence

from server.api.core.errors.api_errors import APIError
from server.api.core.json_text.encoding import encode_json, encode_long
from server.api.core.replies.chat_turn import ChatTurn
from server.api.core.replies.reply import ReplyEncoder
from server.api.core.replies.server_sent_events import sse
from server.api.core.requests.cost import OBJECTS_FORM
from server.engine.interface import JsonObject, TokenEvent


class EventEncoder(ReplyEncoder):
    """Encodes the turn of the assistant as named events; ``type`` of an event is its name.

    The complete reply is what the events add up to.

    Args:
        finish: called off the event loop when the turn has ended, before its last events or the reply are encoded.

    """

    def __init__(self, turn: ChatTurn, finish: Callable[[], None] | None = None) -> None:
        super().__init__(turn.generation)
        self._turn, self._finish = turn, finish
        # Logprobs make the reply, and the last events that repeat it, too long to encode on the event loop.
        has_logprobs = turn.generation.streams[0].request.sampling.logprobs is not None
        self._has_long_end = finish is not None or has_logprobs

    @abstractmethod
    def start_events(self) -> list[JsonObject]:
        """Return the events that precede the first token."""

    @abstractmethod
    def token_events(self, token: TokenEvent) -> list[JsonObject]:
        """Return the events for an event of the engine; call it for every one, once and in order."""

    @abstractmethod
    def failure_events(self, error: APIError) -> list[JsonObject]:
        """Return the events that end the stream when the engine fails."""

    @abstractmethod
    def reply(self) -> JsonObject:
        """Return the complete reply, once the turn has ended."""

    async def complete(self) -> Sequence[bytes]:
        async for arrived in self.generation.events():
            await self.generation.hold(sum(OBJECTS_FORM.held_bytes(event) for _, event in arrived))
            for _, event in arrived:
                self.token_events(event)
        return [await asyncio.to_thread(self._encode_reply) if self._has_long_end else self._encode_reply()]

    def held_bytes(self, event: TokenEvent) -> int:
        return OBJECTS_FORM.held_bytes(event)

    def start(self) -> bytes:
        return _encode(self.start_events())

    def is_long(self, index: int, event: TokenEvent) -> bool:
        return super().is_long(index, event) or (self._has_long_end and event.finish_reason is not None)

    def encode(self, index: int, event: TokenEvent) -> bytes:  # noqa: ARG002  there is one choice
        events = self.token_events(event)
        if event.finish_reason is None:
            return _encode(events)
        if self._finish is not None:
            self._finish()
        return _encode(events, encode_long)

    def end(self) -> bytes:
        return b""

    def failure(self, error: APIError) -> bytes:
        return _encode(self.failure_events(error), encode_long)

    def _encode_reply(self) -> bytes:
        if self._finish is not None:
            self._finish()
        return encode_long(self.reply()).encode()


def _encode(events: list[JsonObject], encode: Callable[[JsonObject], str] = encode_json) -> bytes:
    return b"".join([sse(event, event["type"], encode) for event in events])
