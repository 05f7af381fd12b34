"""Latencies of requests, on a simulated clock."""

from __future__ import annotations

import asyncio
import threading
from dataclasses import dataclass, field

import pytest

from server.engine.histogram import Histogram
from server.engine.interface import GenerationFailedError, GenerationRequest, SamplingParams
from tests.server.engine.fakes import Rig, collect, run


def observed(histogram: Histogram) -> tuple[int, float]:
    """Return the number of observations and their sum."""
    return histogram.cumulative()[-1], histogram.sum


def test_histograms_count_what_is_at_most_a_bound() -> None:
    histogram = Histogram((1.0, 2.0))
    for value in (0.5, 1.0, 1.5, 7.0):
        histogram.observe(value)
    assert histogram.cumulative() == [2, 3, 4]
    assert histogram.sum == 10


@dataclass
class Timed:
    """Runs one request at a time; a step takes a second, and the first step waits for ``may_begin``."""

    rig: Rig = field(default_factory=lambda: Rig(max_running=1))
    now: float = 0.0
    has_begun: bool = False
    may_begin: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        self.rig.engine.clock = lambda: self.now
        self.rig.model.before_step = self._pass_a_second

    def _pass_a_second(self) -> None:
        self.has_begun = True
        assert self.may_begin.wait(30)
        self.now += 1


@pytest.fixture
def timed() -> Timed:
    return Timed()


@pytest.fixture
def rig(timed: Timed) -> Rig:
    timed.may_begin.set()
    return timed.rig


def test_each_wait_of_a_request_is_observed(timed: Timed) -> None:
    """Two requests are submitted together: one runs from 0 to 4 seconds, the other from 4 to 6."""
    rig = timed.rig

    async def scenario() -> None:
        streams = [rig.submit(b"first", 4), rig.submit(b"next", 2)]
        timed.may_begin.set()
        await asyncio.gather(*map(collect, streams))

    run(rig, scenario)
    latencies = rig.engine.statistics.latencies
    assert observed(latencies.queue) == (2, 4)
    assert observed(latencies.first_token) == (2, 1 + 5)
    assert observed(latencies.inter_token) == (3 + 1, 4)
    assert observed(latencies.request) == (2, 4 + 6)


def test_a_preempted_request_has_one_start_and_one_first_token(timed: Timed) -> None:
    """Its wait while preempted counts as latency between two tokens."""
    rig = timed.rig

    async def scenario() -> None:
        streams = [rig.submit(b"patient", 4)]
        while not timed.has_begun:
            await asyncio.sleep(0)
        streams.append(rig.submit(b"urgent", 30, priority=-1))
        timed.may_begin.set()
        await asyncio.gather(*map(collect, streams))

    run(rig, scenario)
    latencies = rig.engine.statistics.latencies
    assert rig.engine.statistics.preemptions == 1
    assert observed(latencies.queue) == (2, 1)
    assert observed(latencies.first_token) == (2, 1 + 2)
    assert observed(latencies.inter_token) == (3 + 29, 29 + 30 + 3)
    assert observed(latencies.request)[0] == 2


def test_an_embedding_has_no_token_latency(rig: Rig) -> None:
    async def scenario() -> None:
        request = GenerationRequest("vector", (1, 2, 3), SamplingParams(0), pooling="last")
        async for _ in rig.engine.submit(request):
            pass

    run(rig, scenario)
    latencies = rig.engine.statistics.latencies
    assert observed(latencies.queue) == (1, 0)
    assert observed(latencies.request) == (1, 1)
    assert observed(latencies.first_token) == observed(latencies.inter_token) == (0, 0)


def test_what_the_server_embeds_for_itself_is_no_request(rig: Rig) -> None:
    async def scenario() -> None:
        request = GenerationRequest("route", (1, 2, 3), SamplingParams(0), pooling="mean", is_internal=True)
        async for _ in rig.engine.submit(request):
            pass

    run(rig, scenario)
    statistics = rig.engine.statistics
    assert not statistics.finished
    assert observed(statistics.latencies.queue) == observed(statistics.latencies.request) == (0, 0)


def test_an_internal_request_that_fails_counts_as_error(rig: Rig) -> None:
    def fail() -> None:
        raise RuntimeError("no such expert")

    async def scenario() -> None:
        rig.model.before_step = fail
        request = GenerationRequest("route", (1, 2, 3), SamplingParams(0), pooling="mean", is_internal=True)
        with pytest.raises(GenerationFailedError):
            [event async for event in rig.engine.submit(request)]

    run(rig, scenario)
    assert rig.engine.statistics.finished == {"error": 1}


def test_a_failed_request_has_no_request_latency_and_counts_as_error(rig: Rig) -> None:
    def fail() -> None:
        raise SystemError("the engine's own fault")

    async def scenario() -> None:
        rig.model.before_step = fail
        stream = rig.submit(b"unlucky", 4)
        assert rig.engine.statistics.is_alive
        with pytest.raises(GenerationFailedError):
            await collect(stream)

    run(rig, scenario)
    statistics = rig.engine.statistics
    assert not statistics.is_alive
    assert statistics.finished == {"error": 1}
    assert observed(statistics.latencies.request) == observed(statistics.latencies.first_token) == (0, 0)
