"""An accepted request for text, and its streams from the engine."""

import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass, field

from server.api.core.bodies.other_samplers import IGNORED_FIELDS_HEADER
from server.api.core.choice.auto_choice import AutoChoice, routing_headers
from server.api.core.requests.token_traces import TokenTraces
from server.engine.interface import (
    EngineError,
    ExpertUsage,
    FinishReason,
    JsonObject,
    RequestMemory,
    Reservation,
    TokenEvent,
    TokenStream,
    merge,
)


@dataclass
class Generation:
    """An accepted request.

    Args:
        streams: one for each choice; the choices of the first prompt come first, then those of the second.
        num_choices: number of choices of each prompt.
        reservation: the memory that the request holds.
        unread_bytes: the part of it that is for events which wait to be read.
        auto_choice: the choice of the router; None if the request named its model.
        adapters: factors of those that are the same for all tokens, by name.
        ignored_fields: names of the request's fields with which another server would generate something else.

    """

    id: str
    model: str
    num_prompt_tokens: int
    streams: Sequence[TokenStream]
    num_choices: int = 1
    created: int = field(default_factory=lambda: int(time.time()))
    returns_experts: bool = False
    returns_adapters: bool = False
    reservation: Reservation = field(default_factory=lambda: RequestMemory().reserve())
    unread_bytes: int = 0
    auto_choice: AutoChoice | None = None
    adapters: Mapping[str, float] = field(default_factory=dict)
    expert_usage: ExpertUsage = field(default_factory=ExpertUsage)  # sum over the choices that have ended
    num_generated: list[int] = field(init=False)  # tokens, by choice
    finish_reasons: list[FinishReason | None] = field(init=False)  # by choice
    ignored_fields: Sequence[str] = ()
    error: EngineError | None = None  # the error that ended it

    def __post_init__(self) -> None:
        self._traces = [TokenTraces(experts=self.returns_experts, adapters=self.returns_adapters) for _ in self.streams]
        self._queue = merge(self.streams, self.reservation, self.unread_bytes)
        self.num_generated = [0] * len(self.streams)
        self.finish_reasons = [None] * len(self.streams)

    @property
    def num_cached_tokens(self) -> int:
        """Prompt tokens that were in the KV cache before the first choice of their prompt began."""
        return sum(stream.timeline.num_cached_tokens for stream in self.streams[:: self.num_choices])

    @property
    def remarks(self) -> JsonObject:
        """Facts for the reply besides its text: the choice of a router, and fields of the request that were ignored."""
        chosen = {} if self.auto_choice is None else self.auto_choice.member
        return chosen | ({"ignored_fields": [*self.ignored_fields]} if self.ignored_fields else {})

    @property
    def greenroom_member(self) -> JsonObject:
        """The remarks as the member ``greenroom`` of a reply, if there are any."""
        remarks = self.remarks
        return {"greenroom": remarks} if remarks else {}

    @property
    def headers(self) -> dict[str, str]:
        """The remarks as headers of the response."""
        ignored = {IGNORED_FIELDS_HEADER: ", ".join(self.ignored_fields)} if self.ignored_fields else {}
        return routing_headers(self.auto_choice) | ignored

    def cancel(self) -> None:
        """Cancel what still runs, and release the memory. Call it at the end of every generation."""
        for stream in self.streams:
            stream.cancel()
        self.reservation.release()

    @property
    def is_accepted(self) -> bool:
        """True if the engine has taken all choices."""
        return all(stream.is_accepted for stream in self.streams)

    async def accepted(self) -> None:
        """Wait until the engine has taken all choices.

        Raises:
            EngineError: it does not take one, or not now.

        """
        for stream in self.streams:
            await stream.accepted()

    async def hold(self, nbytes: int) -> None:
        """Count so many more bytes of the reply as held until ``cancel``, and wait for them if they were not reserved.

        Raises:
            RequestRefusedError: the reply takes more memory than the server can hold.
            RequestMemoryError: other requests hold the memory.

        """
        await self.reservation.use(nbytes, "The reply")

    def note_token(self, index: int, event: TokenEvent) -> None:
        """Keep the experts and adapters of a choice's new token until they are taken, if the request asks for them."""
        self._traces[index].note(event)

    def traces(self, index: int) -> TokenTraces:
        """Return the traces of a choice's tokens."""
        return self._traces[index]

    def take_traces(self, index: int) -> str:
        """Return the traces of a choice's tokens that were noted since the last call, as members of JSON."""
        return self._traces[index].take()

    def wake(self) -> None:
        """Make ``events`` yield now, an empty batch if nothing has arrived."""
        self._queue.wake()

    async def events(self) -> AsyncGenerator[list[tuple[int, TokenEvent]], None]:
        """Yield the events of all choices, each with the index of its choice, in batches as they arrive.

        Raises:
            EngineError: one of the choices failed.

        """
        num_running = len(self.streams)
        while num_running:
            try:
                arrived = await self._queue.take()
            except EngineError as error:
                self.error = error
                raise
            for index, event in arrived:
                num_running -= event.finish_reason is not None
                self.num_generated[index] = event.num_generated
                self.finish_reasons[index] = event.finish_reason
                if event.adapter_shares is not None and self.auto_choice is not None:
                    self.auto_choice.note(event.adapter_shares)
                if event.expert_usage is not None:
                    self.expert_usage += event.expert_usage
            yield arrived
