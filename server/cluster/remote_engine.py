"""RemoteEngine: the ingress's engine, whose requests are answered by replicas in other processes."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field, fields

from server.cluster.held_prefixes import routed_request
from server.cluster.outgoing import moved
from server.cluster.shared_calls import Arrivals, SharedCalls
from server.cluster.shared_fleet import SharedFleet
from server.cluster.signatures import RoutedRequest
from server.cluster.submitter import ReplicaLostError, Submitter
from server.cluster.wire import Answer, ModelFacts, StreamEnd, Submission
from server.engine.interface import (
    EngineError,
    EngineUnavailableError,
    ExpertUsage,
    GenerationRequest,
    QueueFullError,
    RequestStatus,
    Timeline,
    TokenEvent,
    TokenStream,
)

ROUTING_SECONDS = 30.0  # in which a replica must take a request
MAX_ATTEMPTS = 3  # of a request, each with another replica
# Fields of a timeline that a replica tells.
TOLD_TIMES = tuple({each.name for each in fields(Timeline)} - {"submitted_at", "replica", "received_at"})
STOPPING = "the server is shutting down"
LOST = "the replica that answered this request is gone: send the request again"
NONE_TOOK = f"no replica took the request within {ROUTING_SECONDS:g} seconds: try again later"


@dataclass(eq=False)
class RemoteStream(TokenStream):
    """The events of a request that a replica answers."""

    num_generated: int = 0
    _task: asyncio.Task[None] | None = None
    _taken: asyncio.Event = field(default_factory=asyncio.Event)  # set once a replica has taken or refused it
    _refusal: EngineError | None = None

    @property
    def is_accepted(self) -> bool:
        return False

    async def accepted(self) -> None:
        await self._taken.wait()
        if self._refusal is not None:
            raise self._refusal

    def cancel(self) -> None:
        super().cancel()
        if self._task is not None:
            self._task.cancel()

    def run(self, task: asyncio.Task[None]) -> None:
        """Let ``cancel`` end a task."""
        self._task = task

    def take(self, held_seconds: float) -> None:
        """Note that a replica has taken the request: half of the time there and back after it was submitted.

        Args:
            held_seconds: that the replica let pass before it said so.
        """
        self.timeline.received_at = (self.timeline.submitted_at + time.monotonic() - held_seconds) / 2
        self._taken.set()

    def fail(self, error: EngineError) -> None:
        """End the stream with an error; with a refusal, if no replica has taken the request."""
        if not self._taken.is_set():
            self._refusal = error
            self._taken.set()
        self.receive(error)

    def lose(self) -> None:
        """End the stream, some of whose events are lost."""
        self.fail(EngineUnavailableError(LOST))
        self.cancel()

    def receive(self, item: TokenEvent | EngineError) -> None:
        if isinstance(item, TokenEvent):
            self.num_generated = item.num_generated
        super().receive(item)


class RemoteEngine:
    """A ``GenerationEngine`` over replicas. Use it on one event loop.

    Args:
        facts: what is the same for all replicas.
        sender: names this ingress.
        reset_prefixes: calls ``reset_prefix_cache`` of every replica's engine; it may block.
    """

    def __init__(
        self,
        facts: ModelFacts,
        sender: str,
        submitter: Submitter,
        fleet: SharedFleet,
        *,
        reset_prefixes: Callable[[], object],
    ):
        self._facts, self._sender, self._submitter, self._fleet = facts, sender, submitter, fleet
        self._reset_prefixes = reset_prefixes
        self._calls = SharedCalls(sender, submitter)
        self._streams: dict[RemoteStream, asyncio.Task[None]] = {}
        self._is_halted = False

    @property
    def max_model_len(self) -> int:
        return self._facts.max_model_len

    @property
    def is_encoder_decoder(self) -> bool:
        return self._facts.is_encoder_decoder

    @property
    def is_encoder(self) -> bool:
        return self._facts.is_encoder

    @property
    def labels(self) -> tuple[str, ...]:
        return self._facts.labels

    @property
    def hidden_size(self) -> int:
        return self._facts.hidden_size

    @property
    def is_alive(self) -> bool:
        return not self._is_halted

    def submit(self, request: GenerationRequest) -> TokenStream:
        """Send a request to a replica. ``accepted`` of its stream tells whether one has taken it."""
        if self._is_halted:
            raise EngineUnavailableError(STOPPING)
        stream = RemoteStream(request, asyncio.get_running_loop(), Timeline(time.monotonic()))
        task = self._streams[stream] = asyncio.create_task(
            self._pump(stream, routed_request(request, self._facts.block_size))
        )
        stream.run(task)
        task.add_done_callback(lambda _: self._streams.pop(stream, None))
        return stream

    def statuses(self) -> list[RequestStatus]:
        """Return the progress of the requests of this ingress, as far as it has been sent."""
        return [_status(stream) for stream in list(self._streams)]

    def reset_prefix_cache(self) -> None:
        self._reset_prefixes()

    def halt(self) -> None:
        self._is_halted = True
        for stream in list(self._streams):
            stream.fail(EngineUnavailableError(STOPPING))
            stream.cancel()
        self._calls.close()

    async def _pump(self, stream: RemoteStream, routed: RoutedRequest) -> None:
        """Carry the events of a request to its stream. A request of which nothing was received is sent again."""
        for attempt in range(MAX_ATTEMPTS):
            try:
                with self._calls.arrivals(stream.receive, stream.lose) as arrivals:
                    submission = Submission(self._sender, stream.request, routed, arrivals.number)
                    await self._carry(stream, submission, arrivals)
            except ReplicaLostError:
                if stream.num_generated or attempt + 1 == MAX_ATTEMPTS:
                    stream.fail(EngineUnavailableError(LOST))
                    return
            except TimeoutError:
                stream.fail(QueueFullError(NONE_TOOK))
                return
            except EngineError as error:
                stream.fail(error)
                return
            else:
                return

    async def _carry(self, stream: RemoteStream, submission: Submission, arrivals: Arrivals) -> None:
        answers, replica = self._submitter.stream(submission), None
        try:
            async with asyncio.timeout(ROUTING_SECONDS):
                first = await anext(answers, None)
            if first is None:
                raise ReplicaLostError
            replica = first.replica
            if first.error is not None:
                raise first.error
            stream.take(first.held_seconds)
            arrivals.replica = replica
            answer: Answer | None = first
            while answer is not None:
                await arrivals.reach(answer.start)
                if answer.end is not None:
                    self._note_end(stream, submission, answer.replica, answer.end)
                    replica = None
                else:
                    self._calls.open(answer.replica)
                arrivals.add(answer.start, answer.events)
                if answer.error is not None:
                    raise answer.error
                if answer.end is not None:
                    return
                answer = await anext(answers, None)
            raise ReplicaLostError
        finally:
            if replica is not None:
                self._fleet.ended(replica)
            await answers.aclose()

    def _note_end(self, stream: RemoteStream, submission: Submission, replica: str, end: StreamEnd) -> None:
        self._fleet.finished(replica, end.state, submission.routed, end.signature)
        mine, times = stream.timeline, end.times
        mine.replica = replica
        received_at = mine.submitted_at if mine.received_at is None else mine.received_at
        times = moved(times, received_at)
        for name in TOLD_TIMES:
            setattr(mine, name, getattr(times, name))


def _status(stream: RemoteStream) -> RequestStatus:
    request, now = stream.request, time.monotonic()
    age = now - stream.timeline.submitted_at
    return RequestStatus(
        request.request_id,
        "decode" if stream.num_generated else "waiting",
        request.priority,
        len(request.prompt_ids),
        num_cached_tokens=0,
        num_generated=stream.num_generated,
        max_tokens=request.sampling.max_tokens,
        num_preemptions=0,
        age_seconds=age,
        queue_seconds=0.0 if stream.num_generated else age,
        expert_usage=ExpertUsage(),
    )
