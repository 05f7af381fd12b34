"""The limits of each caller, and the bound on the number of remembered callers."""

from __future__ import annotations

import pytest

from server.api.core.access import rate_limiter as rates
from server.api.core.access.rate_limiter import RATE_HEADERS, RateLimiter, RateLimits
from server.api.core.errors.api_errors import RateLimitError


class Clock:
    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


def refusal(rate_limiter, name):
    with pytest.raises(RateLimitError) as error:
        rate_limiter.enter(name)
    return error.value


def test_requests_at_the_same_time_are_limited_for_each_caller():
    rate_limiter = RateLimiter(RateLimits(max_running=2))
    assert rate_limiter.enter("a") == rate_limiter.enter("a") == rate_limiter.enter("b") == {}
    error = refusal(rate_limiter, "a")
    assert error.message == "At most 2 requests of one key or address may run at a time: wait for one to end."
    assert error.headers == {"Retry-After": "1"}
    rate_limiter.leave("a")
    rate_limiter.enter("a")
    refusal(rate_limiter, "a")


def test_the_bucket_refills_continuously(clock):
    rate_limiter = RateLimiter(RateLimits(max_requests=3, seconds=60), clock)
    left = [rate_limiter.enter("a")[RATE_HEADERS[1]] for _ in range(3)]
    assert left == ["2", "1", "0"]
    error = refusal(rate_limiter, "a")
    assert error.headers == dict(zip(["Retry-After", *RATE_HEADERS], ["20", "3", "0", "60s"], strict=True))
    clock.now += 19
    assert refusal(rate_limiter, "a").headers["Retry-After"] == "1"
    clock.now += 1
    assert rate_limiter.enter("a")[RATE_HEADERS[1]] == "0"
    refusal(rate_limiter, "a")
    clock.now += 1_000_000
    assert rate_limiter.enter("a")[RATE_HEADERS[1]] == "2"


def test_a_refused_request_costs_nothing(clock):
    rate_limiter = RateLimiter(RateLimits(max_running=1, max_requests=2), clock)
    rate_limiter.enter("a")
    for _ in range(5):
        refusal(rate_limiter, "a")
    rate_limiter.leave("a")
    rate_limiter.enter("a")


def test_remembered_callers_are_bounded(monkeypatch, clock):
    monkeypatch.setattr(rates, "MAX_CALLERS", 10)
    rate_limiter = RateLimiter(RateLimits(max_running=1, max_requests=1), clock)
    rate_limiter.enter("busy")
    for number in range(1000):
        rate_limiter.enter(number)
        rate_limiter.leave(number)
    assert len(rate_limiter._callers) == 10
    refusal(rate_limiter, "busy")
    refusal(rate_limiter, 999)
    rate_limiter.leave("busy")
    rate_limiter.leave("nobody")
