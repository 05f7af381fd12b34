"""Bodies of the answers, whole and in chunks."""

import asyncio
import json
from collections.abc import Sequence
from typing import Any, Protocol

from server.api.errors import InvalidRequestError
from server.api.openai.generation import Generation
from server.engine.request import ExpertUsage, TokenEvent

JsonObject = dict[str, Any]

PIECE = 64  # members of a list that are encoded at once
LONG_REPLY = 256  # tokens and logprobs; what is put together from more would hold up the event loop
MAX_LOGPROBS = 1 << 21  # of a whole reply; they take 0.6 GB

encode_json = json.JSONEncoder(separators=(",", ":")).encode


def encode_long(value: Any) -> str:
    """The same, by pieces: the encoder holds the interpreter's lock."""
    if isinstance(value, dict):
        return f"{{{','.join(f'{encode_json(name)}:{encode_long(member)}' for name, member in value.items())}}}"
    if isinstance(value, list) and len(value) > PIECE:
        pieces = (encode_json(value[start : start + PIECE])[1:-1] for start in range(0, len(value), PIECE))
        return f"[{','.join(pieces)}]"
    return encode_json(value)


def num_logprobs(event: TokenEvent) -> int:
    """How many numbers an event tells, of the prompt and of new tokens."""
    lists = (event.logprobs, event.prompt_logprobs or ())
    return sum(len(each) * (1 + len(each[0].top)) for each in lists if each)


class ReplyStyle(Protocol):
    """Where completions and chat completions differ."""

    object: str
    chunk_object: str

    def choice(self, index: int, events: Sequence[TokenEvent]) -> JsonObject:
        """A choice of a whole reply, of all its events."""

    def opening(self, index: int) -> list[JsonObject]:
        """Chunk choices to send before the first event."""

    def delta(self, index: int, event: TokenEvent) -> list[JsonObject]:
        """Chunk choices that say what the event says; none if it says nothing."""


async def whole_reply(generation: Generation, style: ReplyStyle) -> bytes:
    """The reply in JSON, once every choice has ended.

    Raises:
        EngineError: one of the choices failed.
        InvalidRequestError: it would be too long.

    """
    events: list[list[TokenEvent]] = [[] for _ in generation.streams]
    num_events = num_numbers = 0
    async for arrived in generation.events():
        for index, event in arrived:
            events[index].append(event)
            generation.note_experts(index, event)
            num_numbers += num_logprobs(event)
        num_events += len(arrived)
        if num_numbers > MAX_LOGPROBS:
            raise InvalidRequestError(
                f"The reply would hold more than {MAX_LOGPROBS} logprobs: ask for fewer, or for a stream.", "logprobs"
            )
    if num_events + num_numbers > LONG_REPLY:
        return await asyncio.to_thread(_put_together, generation, style, events)
    return _put_together(generation, style, events)


def _put_together(generation: Generation, style: ReplyStyle, events: Sequence[Sequence[TokenEvent]]) -> bytes:
    reply = {
        "id": generation.id,
        "object": style.object,
        "created": generation.created,
        "model": generation.model,
        "choices": [style.choice(index, of_choice) for index, of_choice in enumerate(events)],
        "usage": usage(generation),
    }
    return encode_reply(generation, reply)


def encode_choice(generation: Generation, choice: JsonObject) -> str:
    """A choice in JSON, with the experts of its tokens if they are asked for."""
    encoded = encode_long(choice) if choice["logprobs"] else encode_json(choice)
    if not generation.returns_experts:
        return encoded
    return f'{encoded[:-1]},"experts":{generation.take_experts(choice["index"])}}}'


def encode_reply(generation: Generation, reply: JsonObject) -> bytes:
    """A whole reply in JSON."""
    choices = ",".join(encode_choice(generation, choice) for choice in reply["choices"])
    before, after = around_list(encode_json(reply | {"choices": []}), "choices")
    return f"{before}{choices}{after}".encode()


def around_list(encoded: str, name: str) -> tuple[str, str]:
    """What stands before and behind the members of an empty list of an object in JSON."""
    before, empty, after = encoded.partition(f'"{name}":[]')  # which no string in JSON can hold
    return f"{before}{empty[:-1]}", f"]{after}"


def chunk(generation: Generation, style: ReplyStyle, choices: Sequence[JsonObject]) -> JsonObject:
    return {
        "id": generation.id,
        "object": style.chunk_object,
        "created": generation.created,
        "model": generation.model,
        "choices": choices,
    }


def expert_usage(usage: ExpertUsage) -> JsonObject:
    """What a request's experts have cost, beside its tokens."""
    return {
        "expert_requests": usage.num_requests,
        "expert_misses": usage.num_misses,
        "expert_bytes_read": usage.bytes_read,
        "expert_stall_seconds": usage.stall_seconds,
    }


def usage(generation: Generation) -> JsonObject:
    """Tokens of the prompts, each counted once, and of all choices together."""
    num_prompt_tokens, num_completion_tokens = generation.num_prompt_tokens, sum(generation.num_generated)
    return {
        "prompt_tokens": num_prompt_tokens,
        "completion_tokens": num_completion_tokens,
        "total_tokens": num_prompt_tokens + num_completion_tokens,
        "prompt_tokens_details": {"cached_tokens": generation.num_cached_tokens},
        "greenroom": expert_usage(generation.expert_usage),
    }
