"""Replies as OpenAI's chunks; completions and chat completions share the frame around their choices."""

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any, NamedTuple

from server.api.core.errors.api_errors import APIError
from server.api.core.json_text.encoding import TextTemplate, around_list, encode_json, encode_long
from server.api.core.json_text.parts import JsonList, encode_parts
from server.api.core.replies.reply import ReplyEncoder
from server.api.core.replies.server_sent_events import sse
from server.api.core.replies.usage import usage
from server.api.core.requests.generation import Generation
from server.engine.interface import JsonObject, TokenEvent

LONG_REPLY = 256  # tokens of prompts and their logprobs; encoding more would block the event loop
CHARACTER_BYTES = 4  # of a character while a reply is built
PROMPT_SLICE = 64  # prompt tokens with logprobs that one chunk shows

DONE = b"data: [DONE]\n\n"


class TextChoice(NamedTuple):
    """A choice of a chunk that has text and nothing else."""

    field: str  # that the text is in
    text: str


class ChunkEncoder(ReplyEncoder):
    """Encodes replies that consist of choices: one object, or a chunk for each change of a choice."""

    object: str
    chunk_object: str

    def __init__(self, generation: Generation, *, include_usage: bool, has_token_ids: bool) -> None:
        super().__init__(generation)
        self._include_usage, self._has_token_ids = include_usage, has_token_ids
        self._has_begun = [False] * len(generation.streams)
        self._next_more = generation.greenroom_member  # further members of the next chunk
        # True if most chunks have text alone, which is encoded without the rest of the chunk.
        self._is_plain = not (has_token_ids or generation.returns_experts or generation.returns_adapters)
        self._templates: dict[tuple[int, str], TextTemplate] = {}  # by choice and field

    @abstractmethod
    def builder(self, index: int) -> "ChoiceBuilder":
        """Return a builder of a choice of a complete reply."""

    @abstractmethod
    def start_choices(self, index: int) -> list[JsonObject]:
        """Return the choices of the chunks that precede those of a choice's first event."""

    @abstractmethod
    def chunk_choices(self, index: int, event: TokenEvent) -> Sequence[JsonObject | TextChoice]:
        """Return the choices of the chunks for an event; none if the event adds nothing."""

    @abstractmethod
    def text_choice(self, index: int, text: TextChoice) -> JsonObject:
        """Return a choice that has text and nothing else."""

    def start_more(self, index: int) -> JsonObject:  # noqa: ARG002  by default nothing
        """Return further members of the chunks of ``start_choices``."""
        return {}

    def more(self, choices: Sequence["ChoiceBuilder"]) -> JsonObject:  # noqa: ARG002  by default nothing
        """Return further members of a complete reply, given all choices."""
        return {}

    async def complete(self) -> Sequence[bytes | bytearray]:
        choices = [self.builder(index) for index in range(len(self.generation.streams))]
        num_held = 0
        async for arrived in self.generation.events():
            for index, event in arrived:
                self.generation.note_token(index, event)
                if event.prompt_logprobs:
                    await asyncio.to_thread(choices[index].add, event)
                else:
                    choices[index].add(event)
            num_bytes = sum(each.nbytes + self.generation.traces(index).nbytes for index, each in enumerate(choices))
            await self.generation.hold(num_bytes - num_held)
            num_held = num_bytes
        num_ids = self.generation.num_prompt_tokens if self._has_token_ids else 0
        if num_ids > LONG_REPLY:
            return await asyncio.to_thread(self._complete, choices)
        return self._complete(choices)

    def start(self) -> bytes:
        # Nothing: clients measure the time to the first token by the first chunk.
        return b""

    def is_long(self, index: int, event: TokenEvent) -> bool:
        return super().is_long(index, event) or (self._has_token_ids and not self._has_begun[index])

    def split(self, event: TokenEvent) -> Sequence[TokenEvent]:
        logprobs = event.prompt_logprobs
        if logprobs is None or len(logprobs) <= PROMPT_SLICE:
            return (event,)
        *firsts, last = range(0, len(logprobs), PROMPT_SLICE)
        return [
            *(TokenEvent("", 0, prompt_logprobs=logprobs[start : start + PROMPT_SLICE]) for start in firsts),
            replace(event, prompt_logprobs=logprobs[last:]),
        ]

    def encode(self, index: int, event: TokenEvent) -> bytes:
        begin = b"" if self._has_begun[index] else self._begin(index)
        self.generation.note_token(index, event)
        auto_choice = self.generation.auto_choice
        if (
            event.finish_reason is not None and auto_choice is not None and auto_choice.shares
        ):  # they are known only now
            self._next_more = self.generation.greenroom_member
        return begin + b"".join(
            [
                self._text_chunk(index, choice) if isinstance(choice, TextChoice) else self._chunk(choice)
                for choice in self.chunk_choices(index, event)
            ]
        )

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

    def _complete(self, choices: Sequence["ChoiceBuilder"]) -> Sequence[bytes | bytearray]:
        written = [each.choice() | self.generation.traces(index).members for index, each in enumerate(choices)]
        reply = self._frame(self.object) | {"choices": written, "usage": usage(self.generation)} | self.more(choices)
        return [*encode_parts(reply | self.generation.greenroom_member)]

    def _chunk(self, choice: JsonObject, more: Mapping[str, Any] = {}) -> bytes:
        before, after = self._around_choice
        more, self._next_more = {**more, **self._next_more}, {}
        members = f",{encode_long(more)[1:-1]}" if more else ""
        return f"{before}{self._encode_choice(choice)}]{members}{after}".encode()

    def _text_chunk(self, index: int, choice: TextChoice) -> bytes:
        if self._next_more or not self._is_plain:
            return self._chunk(self.text_choice(index, choice))
        template = self._templates.get((index, choice.field))
        if template is None:
            template = self._templates[index, choice.field] = TextTemplate(
                lambda text: self._chunk(self.text_choice(index, choice._replace(text=text))).decode()
            )
        return template.encode(choice.text).encode()

    @cached_property
    def _around_choice(self) -> tuple[str, str]:
        """Encode what all chunks share around the list of choices and its end, once."""
        # With include_usage, OpenAI's chunks have a null usage up to the last one.
        shared = self._frame(self.chunk_object) | ({"usage": None} if self._include_usage else {})
        before, after = around_list(sse(shared).decode(), "choices")
        return before, after.removeprefix("]")

    def _prompt_token_ids(self, index: int) -> JsonObject:
        """Return the tokens of a choice's prompt as a member, if the request asks for tokens."""
        return {"prompt_token_ids": [*self.generation.streams[index].request.prompt_ids]} if self._has_token_ids else {}

    def _token_ids(self, event: TokenEvent | None = None) -> JsonObject:
        """Return the token of an event as a member of a choice, if the request asks for tokens."""
        if not self._has_token_ids:
            return {}
        return {"token_ids": [] if event is None or event.token_id is None else [event.token_id]}

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
        if choice["logprobs"] or self._has_token_ids:
            encoded = b"".join(encode_parts(choice)).decode()
        else:
            encoded = encode_json(choice)
        return f"{encoded[:-1]}{self.generation.take_traces(choice['index'])}}}"


class ChoiceBuilder(ABC):
    """Builds a choice of a complete reply from its events; JSON is encoded as it comes.

    Args:
        has_token_ids: the choice lists its tokens.

    """

    def __init__(self, *, has_token_ids: bool) -> None:
        self._token_ids = JsonList() if has_token_ids else None

    @abstractmethod
    def add(self, event: TokenEvent) -> None:
        """Add an event; call it for every event, once and in order."""
        if self._token_ids is not None and event.token_id is not None:
            self._token_ids.append(event.token_id)

    @abstractmethod
    def choice(self) -> JsonObject:
        """Return the complete choice; long lists in it are a ``JsonList``."""

    @property
    @abstractmethod
    def nbytes(self) -> int:
        """Bytes that the choice holds so far."""
        return 0 if self._token_ids is None else self._token_ids.nbytes

    @property
    def token_ids(self) -> JsonObject:
        """Its tokens as a member of a choice, if the request asks for tokens."""
        return {} if self._token_ids is None else {"token_ids": self._token_ids}
