"""Turns whose pieces are written by hand."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from server.api.openai.generation import Generation
from server.api.turn import ChatTurn, EndPiece, Piece
from server.engine.request import FinishReason, GenerationRequest, SamplingParams, Timeline, TokenEvent, TokenStream
from tests.server.api.fakes import MODEL, FakeCodec

NUM_PROMPT_TOKENS = 5


class Script:
    """A parser that says what is written for each event, whatever its text."""

    def __init__(self, pieces: Sequence[Sequence[Piece]], reason: str) -> None:
        self._pieces, self._reason = iter(pieces), reason

    def push(self, text):
        return next(self._pieces)

    def finish(self, reason):
        return [EndPiece(self._reason)]


def written(*pieces: Sequence[Piece], reason: str = "stop") -> tuple[ChatTurn, list[TokenEvent]]:
    """A turn that says some pieces with each of its tokens, and these."""
    request = GenerationRequest("id_1-0", (1,) * NUM_PROMPT_TOKENS, SamplingParams(64))
    loop = asyncio.new_event_loop()
    loop.close()
    generation = Generation(
        "id_1", MODEL, NUM_PROMPT_TOKENS, [TokenStream(request, loop, Timeline(0.0))], created=1700000000
    )
    turn = ChatTurn(generation, FakeCodec(), [Script(pieces, reason)])
    last = len(pieces)
    tokens = [TokenEvent("", number, FinishReason.STOP if number == last else None) for number in range(1, last + 1)]
    return turn, tokens


def told(writer, tokens: Sequence[TokenEvent]) -> list[dict]:
    """Every event of a reply; its generation counts each token that comes, as it does for itself."""
    events = writer.opening()
    for token in tokens:
        writer._turn.generation.num_generated[0] = token.num_generated
        events += writer.write(token)
    return events
