"""Bodies of the answers, whole and in chunks."""

from collections.abc import Sequence
from typing import Any, Protocol

from server.api.openai.generation import Generation
from server.engine.request import FinishReason, TokenEvent

JsonObject = dict[str, Any]


class ReplyStyle(Protocol):
    """Where completions and chat completions differ."""

    object: str
    chunk_object: str

    def choice(self, index: int, text: str, finish_reason: FinishReason | None) -> JsonObject:
        """A choice of a whole reply."""

    def opening(self, index: int) -> list[JsonObject]:
        """Chunk choices to send before the first event."""

    def delta(self, index: int, event: TokenEvent) -> list[JsonObject]:
        """Chunk choices that say what the event says; none if it says nothing."""


async def whole_reply(generation: Generation, style: ReplyStyle) -> JsonObject:
    """The reply once every choice has ended.

    Raises:
        EngineError: one of the choices failed.

    """
    texts: list[list[str]] = [[] for _ in generation.streams]
    last: dict[int, TokenEvent] = {}
    async for arrived in generation.events():
        for index, event in arrived:
            texts[index].append(event.text)
            last[index] = event
    return {
        "id": generation.id,
        "object": style.object,
        "created": generation.created,
        "model": generation.model,
        "choices": [style.choice(index, "".join(text), last[index].finish_reason) for index, text in enumerate(texts)],
        "usage": usage(generation, [event.num_generated for event in last.values()]),
    }


def chunk(generation: Generation, style: ReplyStyle, choices: Sequence[JsonObject]) -> JsonObject:
    return {
        "id": generation.id,
        "object": style.chunk_object,
        "created": generation.created,
        "model": generation.model,
        "choices": choices,
    }


def usage(generation: Generation, num_generated: Sequence[int]) -> JsonObject:
    """Tokens of the prompts, each counted once, and of all choices together."""
    num_prompt_tokens, num_completion_tokens = generation.num_prompt_tokens, sum(num_generated)
    return {
        "prompt_tokens": num_prompt_tokens,
        "completion_tokens": num_completion_tokens,
        "total_tokens": num_prompt_tokens + num_completion_tokens,
    }
