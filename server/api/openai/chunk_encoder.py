"""Replies as OpenAI's chunks; completions and chat completions share the frame around their choices."""

import asyncio
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

from server.api.core.errors import APIError, InvalidRequestError
from server.api.core.generation import Generation
from server.api.core.json_encoding import around_list, encode_json, encode_long
from server.api.core.reply import ReplyEncoder
from server.api.core.routing import greenroom_member
from server.api.core.server_sent_events import sse
from server.api.core.usage import usage
from server.engine.interface import JsonObject, TokenEvent

LONG_REPLY = 256  # tokens and logprobs; building a reply with more would block the event loop
MAX_LOGPROBS = 1 << 21  # numbers in a complete reply; they take 0.6 GB

DONE = b"data: [DONE]\n\n"


class ChunkEncoder(ReplyEncoder):
    """Encodes replies that consist of choices: one object, or a chunk for each change of a choice."""

    object: str
    chunk_object: str

    def __init__(self, generation: Generation, *, include_usage: bool, has_token_ids: bool) -> None:
        super().__init__(generation)
        self._include_usage, self._has_token_ids = include_usage, has_token_ids
        self._has_begun = [False] * len(generation.streams)
        self._next_more = greenroom_member(generation.routing)  # further members of the next chunk

    @abstractmethod
    def choice(self, index: int, events: Sequence[TokenEvent]) -> JsonObject:
        """Return a choice of a complete reply, given all its events."""

    @abstractmethod
    def start_choices(self, index: int) -> list[JsonObject]:
        """Return the choices of the chunks that precede those of a choice's first event."""

    @abstractmethod
    def chunk_choices(self, index: int, event: TokenEvent) -> list[JsonObject]:
        """Return the choices of the chunks for an event; none if the event adds nothing."""

    def start_more(self, index: int) -> JsonObject:  # noqa: ARG002  by default nothing
        """Return further members of the chunks of ``start_choices``."""
        return {}

    def more(self, events: Sequence[Sequence[TokenEvent]]) -> JsonObject:  # noqa: ARG002  by default nothing
        """Return further members of a complete reply, given the events of all choices."""
        return {}

    async def complete(self) -> bytes:
        events: list[list[TokenEvent]] = [[] for _ in self.generation.streams]
        num_events = num_numbers = 0
        async for arrived in self.generation.events():
            for index, event in arrived:
                events[index].append(event)
                self.generation.note_token(index, event)
                num_numbers += num_logprobs(event)
            num_events += len(arrived)
            if num_numbers > MAX_LOGPROBS:
                raise InvalidRequestError(
                    f"The reply would hold more than {MAX_LOGPROBS} logprobs: ask for fewer, or for a stream.",
                    "logprobs",
                )
        num_ids = self.generation.num_prompt_tokens if self._has_token_ids else 0
        if num_events + num_numbers + num_ids > LONG_REPLY:
            return await asyncio.to_thread(self._complete, events)
        return self._complete(events)

    def start(self) -> bytes:
        # Nothing: clients measure the time to the first token by the first chunk.
        return b""

    def is_long(self, index: int, event: TokenEvent) -> bool:
        return super().is_long(index, event) or (self._has_token_ids and not self._has_begun[index])

    def encode(self, index: int, event: TokenEvent) -> bytes:
        begin = b"" if self._has_begun[index] else self._begin(index)
        self.generation.note_token(index, event)
        routing = self.generation.routing
        if event.finish_reason is not None and routing is not None and routing.shares:  # they are known only now
            self._next_more = greenroom_member(routing)
        return begin + b"".join(map(self._chunk, self.chunk_choices(index, event)))

    def _begin(self, index: int) -> bytes:
        self._has_begun[index] = True
        more = self.start_more(index)
        return b"".join([self._chunk(choice, more) for choice in self.start_choices(index)])

    def end(self) -> bytes:
        if not self._include_usage:
            return DONE
        return sse(self._frame(self.chunk_object) | {"usage": usage(self.generation)}) + DONE

    def failure(self, error: APIError) -> bytes:
        return sse(error.body) + DONE

    def _complete(self, events: Sequence[Sequence[TokenEvent]]) -> bytes:
        choices = ",".join(self._encode_choice(self.choice(index, each)) for index, each in enumerate(events))
        frame = self._frame(self.object) | {"usage": usage(self.generation)} | self.more(events)
        frame |= greenroom_member(self.generation.routing)
        before, after = around_list(encode_long(frame), "choices")
        return f"{before}{choices}{after}".encode()

    def _chunk(self, choice: JsonObject, more: Mapping[str, Any] = {}) -> bytes:
        before, after = self._around_choice
        more, self._next_more = {**more, **self._next_more}, {}
        members = f",{encode_long(more)[1:-1]}" if more else ""
        return f"{before}{self._encode_choice(choice)}]{members}{after.removeprefix(']')}".encode()

    @cached_property
    def _around_choice(self) -> tuple[str, str]:
        """Encode what all chunks share, once."""
        # With include_usage, OpenAI's chunks have a null usage up to the last one.
        shared = self._frame(self.chunk_object) | ({"usage": None} if self._include_usage else {})
        return around_list(sse(shared).decode(), "choices")

    def _prompt_token_ids(self, index: int) -> JsonObject:
        """Return the tokens of a choice's prompt as a member, if the request asks for tokens."""
        return {"prompt_token_ids": [*self.generation.streams[index].request.prompt_ids]} if self._has_token_ids else {}

    def _token_ids(self, events: Sequence[TokenEvent]) -> JsonObject:
        """Return the tokens of events as a member of a choice, if the request asks for tokens."""
        if not self._has_token_ids:
            return {}
        return {"token_ids": [event.token_id for event in events if event.token_id is not None]}

    def _frame(self, kind: str) -> JsonObject:
        return {
            "id": self.generation.id,
            "object": kind,
            "created": self.generation.created,
            "model": self.generation.model,
            "choices": [],
        }

    def _encode_choice(self, choice: JsonObject) -> str:
        """Encode a choice, with the experts and adapters of its tokens if the request asks for them."""
        encoded = encode_long(choice) if choice["logprobs"] or self._has_token_ids else encode_json(choice)
        return f"{encoded[:-1]}{self.generation.take_traces(choice['index'])}}}"


def num_logprobs(event: TokenEvent) -> int:
    """Count the logprobs of an event, of prompt tokens and of new tokens."""
    lists = (event.logprobs, event.prompt_logprobs or ())
    return sum(len(each) * (1 + len(each[0].top)) for each in lists if each)
