"""Replica: one engine with its own memory, as the ingress asks it. It knows nothing of Ray."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing
from dataclasses import replace
from itertools import count
from typing import Any

from server.cluster.held_prefixes import HeldPrefixes
from server.cluster.kept_counts import MetricsPage
from server.cluster.measured_costs import Work, measured_costs
from server.cluster.outbox import Outboxes
from server.cluster.outgoing import ExpertCounts, Pace, since_submission, without_experts
from server.cluster.routing_statistics import statistics_of
from server.cluster.scoring import ReplicaState
from server.cluster.weight_changes import WeightChanges
from server.cluster.wire import (
    Answer,
    Batch,
    Holdings,
    ModelFacts,
    Outcome,
    ReplicaReport,
    ServedWeights,
    SharedCall,
    StreamEnd,
    Submission,
    WeightChange,
)
from server.engine.interface import (
    AccessPolicy,
    EngineError,
    EngineUnavailableError,
    GenerationRequest,
    Timeline,
    TokenStream,
    merge,
)
from server.loading.load import LoadedServer
from server.memory.kv_cache_plan import BLOCK_SIZE

MAX_TOLD_BLOCKS = 4096  # of the prefix cache, in one report
SENDER_SECONDS = 30.0  # after which an ingress that is not heard of counts as dead
WATCH_SECONDS = 2.0
# In which the first token may come before an item says that the request is taken: each item takes two processes 0.5 ms.
TAKEN_SECONDS = 0.1

# What may be called by name: the interface of the engine for administrators.
CALLS: Mapping[str, frozenset[str]] = {
    "experts": frozenset({"overview", "find", "change", "sample", "snapshot", "totals"}),
    "adapters": frozenset({"folders", "overview"}),
    "variants": frozenset({"folders", "overview"}),
    "directory": frozenset({"prepare", "note_routed"}),
    "engine": frozenset({"reset_prefix_cache"}),
}

log = logging.getLogger(__name__)


class Replica:
    """An engine that answers requests of ingresses in other processes. Use it on one event loop.

    Args:
        loaded: the model, whose engine runs.
        name: under which the router knows this replica.
    """

    def __init__(self, loaded: LoadedServer, name: str):
        self.name, self._loaded, self._engine = name, loaded, loaded.engine
        self._changes = WeightChanges(loaded)
        self._prefixes = HeldPrefixes(loaded.num_kv_blocks)
        self._senders: dict[str, float] = {}  # when each was heard of last
        self._streams: dict[TokenStream, str] = {}  # open streams, and their senders
        self._outboxes = Outboxes()
        self._prepared: set[object] = set()  # forbidden experts of policies
        self._watch: asyncio.Task[None] | None = None
        self._numbers = count(1)  # of the states that are told
        self._page_numbers = count(1)  # of the pages of metrics

    def facts(self) -> ModelFacts:
        """Return what is the same for all replicas."""
        loaded, engine = self._loaded, self._engine
        return ModelFacts(
            loaded.name,
            engine.max_model_len,
            engine.is_encoder_decoder,
            engine.is_encoder,
            engine.labels,
            engine.hidden_size,
            loaded.defaults,
            replace(loaded.card, host_bytes=int, device_bytes=int),
            loaded.codec.parts,
            BLOCK_SIZE,
            loads_adapters=loaded.adapters is not None,
            loads_adapters_on_request=loaded.adapters is not None and loaded.adapters.on_request is not None,
        )

    async def generate(self, submission: Submission) -> AsyncGenerator[Answer, None]:
        """Answer a request. The first item comes soon after the engine has taken it, or has refused it with an error.

        Closing the generator, or cancelling its task, cancels the request.
        """
        self._hear(submission.sender)
        received_at = time.monotonic()
        request, collected = self._collecting(submission.request)
        try:
            grammar = await self._prepare(request)
            stream = self._engine.submit(request)
        except EngineError as error:
            yield Answer(self.name, error=error, end=self._end(Timeline(time.monotonic()), collected))
            return
        queue = merge([stream])
        self._streams[stream] = submission.sender
        telling = asyncio.get_running_loop().call_later(TAKEN_SECONDS, queue.wake)
        try:
            pace, start, is_told = Pace(), 0, False
            while True:
                try:
                    arrived = [event for _, event in await queue.take()]
                except EngineError as error:
                    yield Answer(self.name, start=start, error=error, end=self._end(stream.timeline, collected))
                    return
                telling.cancel()
                held_seconds = 0.0 if is_told else time.monotonic() - received_at
                collected.note(arrived)
                is_done = any(event.finish_reason is not None for event in arrived)
                if is_done:
                    self._prefixes.note(submission.routed.blocks)
                events = arrived if submission.request.returns_experts else [without_experts(each) for each in arrived]
                if is_done:
                    end = self._end(stream.timeline, collected)
                    yield Answer(self.name, events, start, end=end, held_seconds=held_seconds)
                    return
                if not is_told:
                    yield Answer(self.name, events, start, held_seconds=held_seconds)
                elif not self._outboxes.put(submission.sender, Batch(submission.number, start, events)):
                    yield Answer(self.name, events, start)
                is_told = True
                start += len(events)
                if arrived:
                    await queue.gather(pace.seconds(len(arrived), len(self._streams)))
        finally:
            telling.cancel()
            stream.cancel()
            del self._streams[stream], grammar

    async def share(self, call: SharedCall) -> AsyncGenerator[list[Batch], None]:
        """Send the events of all open requests of an ingress together, but for those with the end of a request.

        The first item is empty. Ends when no more events come, and at once if the call is for another replica.
        """
        if call.replica == self.name:
            async with aclosing(self._outboxes.take(call.sender)) as items:
                async for batches in items:
                    yield batches

    async def call(self, part: str, method: str, *arguments: Any) -> Outcome:
        """Call a method of a part of the engine's interface for administrators, in a thread.

        Returns:
            Its value, or the error that it raised.
        """
        owner = self._part(part)
        if owner is None or method not in CALLS[part]:
            return Outcome(self.name, error=EngineUnavailableError(f"this replica has no {part}.{method}"))
        try:
            return Outcome(self.name, await asyncio.to_thread(getattr(owner, method), *arguments))
        except Exception as error:  # noqa: BLE001  it is raised where the call came from
            return Outcome(self.name, error=error)

    async def render_metrics(self) -> Outcome:
        """Return the page of metrics, with the names of all weights."""
        return Outcome(self.name, await asyncio.to_thread(self._metrics_page))

    async def change_weights(self, change: WeightChange) -> Outcome:
        """Load or unload an adapter or a variant, so that ``undo_change`` can undo it."""
        try:
            value = await asyncio.to_thread(self._changes.make, change)
        except Exception as error:  # noqa: BLE001  it is raised where the call came from
            return Outcome(self.name, error=error)
        return Outcome(self.name, value)

    def confirm_change(self, change: WeightChange) -> Outcome:
        """Note that all replicas have made a change."""
        self._changes.confirm(change)
        return Outcome(self.name)

    async def undo_change(self, change: str) -> Outcome:
        """Undo a change that other replicas could not make."""
        try:
            await asyncio.to_thread(self._changes.undo, change)
        except EngineError as error:
            log.exception("a change of weights that failed elsewhere can't be undone here")
            return Outcome(self.name, error=error)
        return Outcome(self.name)

    async def adopt(self, weights: ServedWeights) -> Outcome:
        """Serve what another replica serves, if this one has missed its last change."""
        try:
            await asyncio.to_thread(self._changes.adopt, weights)
        except EngineError as error:
            log.exception("this replica can't serve what others do")
            return Outcome(self.name, error=error)
        return Outcome(self.name)

    async def report(self, sender: str = "") -> ReplicaReport:
        """Return what the ingress and the router need to know now."""
        if sender:
            self._hear(sender)
        return await asyncio.to_thread(self._report)

    def statistics(self) -> dict[str, Any]:
        """Return the state of this replica as plain data, for Serve's controller to pass on.

        It is short: the controller sends that of all replicas to each ingress whenever one has changed. Blocks are
        only in reports.
        """
        return statistics_of(self._state(with_blocks=False))

    def autoscaling_statistics(self) -> dict[str, float]:
        """Return what the number of replicas is decided by."""
        statistics = self._engine.statistics
        return {
            "num_running": float(statistics.num_running),
            "num_waiting": float(statistics.num_waiting),
            "stall_share": float(statistics.stall_share),
        }

    def check_health(self) -> None:
        """Raise RuntimeError if only a restart helps."""
        if not self._engine.is_alive:
            raise RuntimeError("the engine has stopped; see the replica's log")
        if self._loaded.store.health == "failing":
            raise RuntimeError("experts can't be read; see the replica's log")

    async def holdings(self) -> Holdings:
        """Return what a new replica takes over from this one."""
        return await asyncio.to_thread(self._holdings)

    async def take_over(self, holdings: Holdings) -> None:
        """Serve the weights of another replica, pin what it pins, and read its hottest experts.

        Raises:
            EngineError: an adapter or a variant can't be loaded here.
        """
        await asyncio.to_thread(self._changes.adopt, holdings.weights)
        experts = self._loaded.experts
        if holdings.pinned:
            await asyncio.to_thread(experts.change, "pin", holdings.pinned)
        if holdings.hottest:
            await asyncio.to_thread(experts.change, "prefetch", holdings.hottest)

    async def close(self, leave: Callable[[MetricsPage], None] = lambda _: None) -> None:
        """End all streams, and free the model.

        Args:
            leave: takes the last page of metrics; it may block.
        """
        if self._watch is not None:
            self._watch.cancel()
        self._engine.halt()
        try:
            await asyncio.to_thread(lambda: leave(self._metrics_page()))
        finally:
            await asyncio.to_thread(self._loaded.close)

    def _part(self, part: str) -> object | None:
        loaded, adapters = self._loaded, self._loaded.adapters
        parts: dict[str, object | None] = {
            "experts": loaded.experts,
            "adapters": None if adapters is None else adapters.registry,
            "variants": loaded.variants,
            "directory": loaded.directory,
            "engine": self._engine,
        }
        return parts.get(part)

    def _collecting(self, request: GenerationRequest) -> tuple[GenerationRequest, ExpertCounts]:
        """Let the engine tell the experts of each token, unless all are here: no replica is better then."""
        counts = ExpertCounts(self._loaded.experts.shape)
        if request.pooling is not None or bool((self._loaded.experts.residency() > 0).all()):
            return request, counts
        return replace(request, returns_experts=True), counts

    async def _prepare(self, request: GenerationRequest) -> object:
        """Compile the grammar of a request, which is held by the result, and prepare what its policy demands."""
        grammar, weights = request.sampling.grammar, request.weights
        if weights is not None and weights.forbidden_experts and weights.forbidden_experts not in self._prepared:
            policy = AccessPolicy("", forbidden_experts=weights.forbidden_experts)
            await asyncio.to_thread(self._loaded.directory.prepare, [policy])
            self._prepared.add(weights.forbidden_experts)
        return None if grammar is None else await asyncio.to_thread(self._loaded.codec.grammar, grammar)

    def _end(self, timeline: Timeline, collected: ExpertCounts) -> StreamEnd:
        return StreamEnd(since_submission(timeline), self._state(with_blocks=False), collected.signature())

    def _state(self, *, with_blocks: bool) -> ReplicaState:
        number = next(self._numbers)  # before the state is looked at
        return ReplicaState(
            number=number,
            num_requests=len(self._streams),
            blocks=self._prefixes.newest(MAX_TOLD_BLOCKS) if with_blocks else frozenset(),
            weights=self._changes.names(),
            resident=self._loaded.experts.residency() > 0,
        )

    def _metrics_page(self) -> MetricsPage:
        number = next(self._page_numbers)  # before anything is counted
        return MetricsPage(number, self._loaded.metrics.render())

    def _report(self) -> ReplicaReport:
        card = self._loaded.card
        return ReplicaReport(
            self.name,
            self._state(with_blocks=True),
            self._changes.served(),
            self._loaded.store.health,
            self._engine.is_alive,
            measured_costs(self._work()),
            card.host_bytes(),
            card.device_bytes(),
        )

    def _work(self) -> Work:
        engine, store = self._engine.statistics, self._loaded.store.statistics()
        lookups = {tier: count for (tier, phase), count in store.lookups.items() if phase == "decode"}
        return Work(
            prompt_tokens=engine.prompt_tokens,
            generated_tokens=engine.generation_tokens,
            ended_requests=sum(engine.finished.values()),
            prefill_seconds=engine.step_seconds["prefill"],
            decode_seconds=engine.step_seconds["decode"],
            decode_lookups=sum(lookups.values()),
            decode_misses=lookups.get("disk", 0),
            decode_stall_seconds=store.stall_seconds["decode"],
        )

    def _holdings(self) -> Holdings:
        experts = self._loaded.experts
        pinned = sorted((key.layer, key.expert) for key in self._loaded.store.pinned)
        return Holdings(self._changes.served(), pinned, experts.hottest())

    def _hear(self, sender: str) -> None:
        self._senders[sender] = time.monotonic()
        if self._watch is None or self._watch.done():
            self._watch = asyncio.create_task(self._watch_senders())

    async def _watch_senders(self) -> None:
        """End the streams of ingresses that are gone, as nobody reads them."""
        while self._senders:
            await asyncio.sleep(WATCH_SECONDS)
            oldest = time.monotonic() - SENDER_SECONDS
            gone = {sender for sender, heard_at in self._senders.items() if heard_at < oldest}
            for stream, sender in [*self._streams.items()]:
                if sender in gone:
                    stream.cancel()
                    stream.receive(EngineUnavailableError("the ingress of this request is gone"))
            for sender in gone:
                del self._senders[sender]
