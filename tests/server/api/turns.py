"""Chat turns with scripted deltas."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from server.api.core.replies.chat_turn import ChatTurn
from server.api.core.replies.deltas import Delta, EndDelta
from server.api.core.replies.event_encoder import EventEncoder
from server.api.core.requests.generation import Generation
from server.engine.interface import FinishReason, GenerationRequest, SamplingParams, Timeline, TokenEvent, TokenStream
from tests.server.api.fakes import MODEL, FakeCodec

NUM_PROMPT_TOKENS = 5
HERMES_CALL = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Paris"}}\n</tool_call>'


class ScriptedParser:
    """A parser that returns the scripted deltas of each event, whatever its text."""

    def __init__(self, deltas: Sequence[Sequence[Delta]], reason: str) -> None:
        self._deltas, self._reason = iter(deltas), reason

    def push(self, text):
        return next(self._deltas)

    def finish(self, reason):
        return [EndDelta(self._reason)]


def scripted(*deltas: Sequence[Delta], reason: str = "stop") -> tuple[ChatTurn, list[TokenEvent]]:
    """Return a turn with the given deltas for each token, and its tokens."""
    request = GenerationRequest("id_1-0", (1,) * NUM_PROMPT_TOKENS, SamplingParams(64))
    loop = asyncio.new_event_loop()
    loop.close()
    generation = Generation(
        "id_1", MODEL, NUM_PROMPT_TOKENS, [TokenStream(request, loop, Timeline(0.0))], created=1700000000
    )
    turn = ChatTurn(generation, FakeCodec(), [ScriptedParser(deltas, reason)])
    last = len(deltas)
    tokens = [TokenEvent("", number, FinishReason.STOP if number == last else None) for number in range(1, last + 1)]
    return turn, tokens


def all_events(encoder: EventEncoder, tokens: Sequence[TokenEvent]) -> list[dict]:
    """Encode a reply; the tokens are counted here, as the generation would."""
    events = encoder.start_events()
    for token in tokens:
        encoder.generation.num_generated[0] = token.num_generated
        events += encoder.token_events(token)
    return events
