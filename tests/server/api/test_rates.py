"""Callers are counted: what runs, what comes in a time, and no more of them than are remembered."""

from __future__ import annotations

import pytest

from server.api import rates
from server.api.errors import RateLimitError
from server.api.rates import RATE_HEADERS, RateLimits, Turnstile


class Clock:
    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


def refusal(turnstile, name):
    with pytest.raises(RateLimitError) as error:
        turnstile.enter(name)
    return error.value


def test_requests_at_the_same_time_are_limited_for_each_caller():
    turnstile = Turnstile(RateLimits(max_running=2))
    assert turnstile.enter("a") == turnstile.enter("a") == turnstile.enter("b") == {}
    error = refusal(turnstile, "a")
    assert error.message == "One key or address may have 2 requests running."
    assert error.headers == {"Retry-After": "1"}
    turnstile.leave("a")
    turnstile.enter("a")
    refusal(turnstile, "a")


def test_what_was_used_comes_back_bit_by_bit(clock):
    turnstile = Turnstile(RateLimits(max_requests=3, seconds=60), clock)
    left = [turnstile.enter("a")[RATE_HEADERS[1]] for _ in range(3)]
    assert left == ["2", "1", "0"]
    error = refusal(turnstile, "a")
    assert error.headers == dict(zip(["Retry-After", *RATE_HEADERS], ["20", "3", "0", "60s"], strict=True))
    clock.now += 19
    assert refusal(turnstile, "a").headers["Retry-After"] == "1"
    clock.now += 1
    assert turnstile.enter("a")[RATE_HEADERS[1]] == "0"
    refusal(turnstile, "a")
    clock.now += 1_000_000
    assert turnstile.enter("a")[RATE_HEADERS[1]] == "2"


def test_a_refused_request_costs_nothing(clock):
    turnstile = Turnstile(RateLimits(max_running=1, max_requests=2), clock)
    turnstile.enter("a")
    for _ in range(5):
        refusal(turnstile, "a")
    turnstile.leave("a")
    turnstile.enter("a")


def test_no_more_callers_are_remembered_than_may_be(monkeypatch, clock):
    monkeypatch.setattr(rates, "MAX_CALLERS", 10)
    turnstile = Turnstile(RateLimits(max_running=1, max_requests=1), clock)
    turnstile.enter("busy")
    for number in range(1000):
        turnstile.enter(number)
        turnstile.leave(number)
    assert len(turnstile._callers) == 10
    refusal(turnstile, "busy")
    refusal(turnstile, 999)
    turnstile.leave("busy")
    turnstile.leave("nobody")
