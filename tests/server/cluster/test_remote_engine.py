"""Requests that replicas answer, over a way to them that a test scripts."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import replace

import pytest

from server.cluster import remote_engine
from server.cluster.remote_engine import RemoteEngine
from server.cluster.scoring import ReplicaState
from server.cluster.shared_fleet import SharedFleet
from server.cluster.submitter import ReplicaLostError
from server.cluster.wire import Answer, Batch, ModelFacts, SharedCall, StreamEnd, Submission
from server.engine.interface import (
    EngineError,
    EngineUnavailableError,
    FinishReason,
    GenerationRequest,
    ModelCard,
    QueueFullError,
    RequestRefusedError,
    SamplingDefaults,
    SamplingParams,
    Timeline,
    TokenEvent,
)

FACTS = ModelFacts(
    "model",
    max_model_len=64,
    is_encoder_decoder=False,
    is_encoder=False,
    labels=(),
    hidden_size=8,
    defaults=SamplingDefaults(),
    card=ModelCard(),
    codec=None,  # type: ignore[arg-type]  the engine needs none
    block_size=16,
    loads_adapters=False,
    loads_adapters_on_request=False,
)
REQUEST = GenerationRequest("r-0", (1, 2, 3), SamplingParams(4))
TAKEN = Answer("a")
FIRST = Answer("a", [TokenEvent("x", 1)])
LAST = Answer("a", [TokenEvent("y", 2, FinishReason.LENGTH)], 1, end=StreamEnd(Timeline(0.0, 0.5, 1.0), ReplicaState()))

Step = Answer | Exception


class Scripted:
    """Sends the steps of one script to each request that is sent; an empty script's replica says nothing."""

    def __init__(self, *scripts: Sequence[Step]):
        self._scripts = list(scripts)
        self.sent: list[Submission] = []
        self.num_closed = 0

    async def stream(self, submission: Submission) -> AsyncGenerator[Answer, None]:
        script = self._scripts[min(len(self.sent), len(self._scripts) - 1)]
        self.sent.append(submission)
        try:
            for step in script:
                if isinstance(step, Exception):
                    raise step
                yield step
            await asyncio.sleep(3600)
        finally:
            self.num_closed += 1

    async def share(self, call: SharedCall) -> AsyncGenerator[Sequence[Batch], None]:
        yield []
        raise ReplicaLostError


def texts(*scripts: Sequence[Step]) -> tuple[list[str], EngineError | None, Scripted]:
    """Return the texts of a request's stream, the error that ended it, and what was sent."""
    submitter = Scripted(*scripts)

    async def read() -> tuple[list[str], EngineError | None]:
        engine = RemoteEngine(FACTS, "me", submitter, SharedFleet(), reset_prefixes=lambda: None)
        found: list[str] = []
        try:
            async for event in engine.submit(REQUEST):
                found.append(event.text)  # noqa: PERF401  those before an error count, too
        except EngineError as error:
            return found, error
        return found, None

    return (*asyncio.run(read()), submitter)


def test_events_come_as_the_replica_sends_them() -> None:
    found, error, submitter = texts([TAKEN, FIRST, LAST])
    assert (found, error) == (["x", "y"], None)
    assert submitter.num_closed == 1


def test_a_reply_may_be_one_item() -> None:
    found, error, submitter = texts([replace(LAST, start=0)])
    assert (found, error) == (["y"], None)
    assert submitter.num_closed == 1


@pytest.mark.parametrize("before", [[], [TAKEN]])
def test_a_request_without_events_goes_to_another_replica_when_its_own_dies(before: list[Step]) -> None:
    found, error, submitter = texts([*before, ReplicaLostError()], [TAKEN, FIRST, LAST])
    assert (found, error) == (["x", "y"], None)
    assert len(submitter.sent) == 2


def test_a_stream_that_has_begun_ends_with_an_error_that_says_to_retry() -> None:
    found, error, submitter = texts([TAKEN, FIRST, ReplicaLostError()])
    assert found == ["x"]
    assert isinstance(error, EngineUnavailableError)
    assert "send the request again" in str(error)
    assert len(submitter.sent) == 1


def test_a_request_is_not_sent_for_ever() -> None:
    found, error, submitter = texts([ReplicaLostError()])
    assert (found, len(submitter.sent)) == ([], remote_engine.MAX_ATTEMPTS)
    assert isinstance(error, EngineUnavailableError)


def test_a_request_that_no_replica_takes_is_refused_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote_engine, "ROUTING_SECONDS", 0.01)
    _, error, submitter = texts([])
    assert isinstance(error, QueueFullError)
    assert submitter.num_closed == 1


def run(submitter: Scripted, work: Callable[[RemoteEngine], object]) -> object:
    async def engine_work() -> object:
        return await work(RemoteEngine(FACTS, "me", submitter, SharedFleet(), reset_prefixes=lambda: None))  # type: ignore[misc]

    return asyncio.run(engine_work())


def test_a_refusal_is_known_before_any_event_is_read() -> None:
    refused = Answer("a", error=RequestRefusedError("too long", "prompt"))

    async def work(engine: RemoteEngine) -> None:
        stream = engine.submit(REQUEST)
        assert not stream.is_accepted
        with pytest.raises(RequestRefusedError, match="too long") as caught:
            await stream.accepted()
        assert caught.value.param == "prompt"

    run(Scripted([refused]), work)


def test_a_cancelled_request_is_cancelled_at_the_replica() -> None:
    submitter = Scripted([TAKEN, FIRST])

    async def work(engine: RemoteEngine) -> list[object]:
        stream = engine.submit(REQUEST)
        await stream.accepted()
        stream.cancel()
        while not submitter.num_closed:
            await asyncio.sleep(0)
        await asyncio.sleep(0)
        return list(engine.statuses())

    assert run(submitter, work) == []


def test_requests_whose_common_events_are_lost_end_with_an_error_that_says_to_retry() -> None:
    submitter = Scripted([TAKEN, FIRST])

    async def work(engine: RemoteEngine) -> None:
        for stream in [engine.submit(REQUEST), engine.submit(REQUEST)]:
            with pytest.raises(EngineUnavailableError, match="send the request again"):
                async for _ in stream:
                    pass

    run(submitter, work)
    assert submitter.num_closed == 2


def test_times_are_counted_on_this_machines_clock() -> None:
    async def work(engine: RemoteEngine) -> Timeline:
        stream = engine.submit(REQUEST)
        async for _ in stream:
            pass
        return stream.timeline

    timeline = run(Scripted([TAKEN, FIRST, LAST]), work)
    assert isinstance(timeline, Timeline)
    received_at, started_at, first_at = timeline.received_at, timeline.started_at, timeline.first_token_at
    assert received_at is not None
    assert started_at is not None
    assert first_at is not None
    assert received_at >= timeline.submitted_at
    assert (started_at - received_at, first_at - received_at) == (pytest.approx(0.5), pytest.approx(1.0))
    assert timeline.replica == "a"


def test_the_time_that_a_replica_waits_for_the_first_token_is_no_part_of_the_way_to_it() -> None:
    async def work(engine: RemoteEngine) -> Timeline:
        stream = engine.submit(REQUEST)
        await stream.accepted()
        return stream.timeline

    timeline = run(Scripted([replace(FIRST, held_seconds=60.0)]), work)
    assert isinstance(timeline, Timeline)
    assert timeline.received_at is not None
    assert timeline.received_at - timeline.submitted_at == pytest.approx(-30.0, abs=10.0)


def test_halting_ends_every_stream_and_takes_no_request() -> None:
    async def work(engine: RemoteEngine) -> None:
        stream = engine.submit(REQUEST)
        await stream.accepted()
        engine.halt()
        with pytest.raises(EngineUnavailableError):
            async for _ in stream:
                pass
        with pytest.raises(EngineUnavailableError):
            engine.submit(REQUEST)
        assert not engine.is_alive

    run(Scripted([TAKEN]), work)
