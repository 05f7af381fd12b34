"""Comments in silent streams."""

from dataclasses import dataclass, field
from types import SimpleNamespace

import anthropic
import httpx
import openai
import pytest

from server.api.core.replies import keep_alive
from server.api.core.replies.keep_alive import COMMENT, KeepAlive
from server.api.core.requests.generation import Generation
from server.engine.interface import FinishReason, TokenEvent, publish
from tests.server.api.fakes import EXPERT_USAGE, MODEL, WAIT_SECONDS

ASK = [{"role": "user", "content": "Tell me a story"}]
BODIES = {
    "/v1/completions": {"prompt": "Once"},
    "/v1/chat/completions": {"messages": ASK},
    "/v1/responses": {"input": "Once"},
    "/v1/messages": {"messages": ASK, "max_tokens": 9},
}


@dataclass
class Clock:
    """An event loop whose time a test sets; it has one timer."""

    now: float = 0.0
    timer: tuple[float, object] | None = None
    num_wakes: int = field(default=0)

    def time(self):
        return self.now

    def call_later(self, delay, callback):
        self.timer = (self.now + delay, callback)
        return SimpleNamespace(cancel=lambda: setattr(self, "timer", None))

    def wake(self):
        self.num_wakes += 1

    def fire(self):
        self.now, callback = self.timer
        callback()


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(keep_alive.asyncio, "get_running_loop", lambda: clock)
    return clock


def test_a_comment_is_due_after_each_silent_interval(clock):
    timed = KeepAlive(10, clock.wake)
    clock.fire()
    assert (clock.now, timed.is_due, clock.num_wakes) == (10, True, 1)
    timed.note_sent()
    assert not timed.is_due
    clock.fire()
    assert (clock.now, timed.is_due, clock.num_wakes) == (20, True, 2)


def test_an_interval_begins_with_what_was_sent_last(clock):
    timed = KeepAlive(10, clock.wake)
    clock.now = 7
    timed.note_sent()
    clock.fire()
    assert (clock.now, timed.is_due) == (10, False)
    clock.fire()
    assert (clock.now, timed.is_due) == (17, True)


def test_no_timer_runs_without_an_interval_or_after_the_end(clock):
    KeepAlive(0, clock.wake)
    assert clock.timer is None
    KeepAlive(10, clock.wake).stop()
    assert clock.timer is None


@pytest.fixture
def waiting(fake):
    """A server whose replies do not begin, and whose streams send comments at once."""
    fake.engine.texts, fake.engine.holds = (), True
    fake.service.stream_keep_alive_seconds = 0.001
    return fake


@pytest.mark.parametrize("path", BODIES)
def test_a_stream_that_waits_sends_comments(waiting, url, path):
    with httpx.stream("POST", url + path, json=BODIES[path] | {"stream": True}) as response:
        comments = (line for line in response.iter_lines() if line.startswith(":"))
        assert [next(comments), next(comments)] == [": keep-alive"] * 2


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
def test_no_chunk_precedes_the_first_token(waiting, url, path):
    with httpx.stream("POST", url + path, json=BODIES[path] | {"stream": True, "n": 2}) as response:
        assert next(response.iter_raw()) == COMMENT


def test_a_client_that_leaves_between_comments_ends_its_request(waiting, url):
    with httpx.stream("POST", f"{url}/v1/chat/completions", json={"messages": ASK, "stream": True}) as response:
        next(response.iter_raw())
    assert waiting.engine.streams[0].cancelled.wait(WAIT_SECONDS)


@pytest.fixture
def ends_after_comments(waiting, monkeypatch):
    """The reply ends when the third comment becomes due."""
    wakes, wake = [], Generation.wake

    def count(generation):
        wakes.append(generation)
        wake(generation)
        if len(wakes) == 3:
            last = TokenEvent("Once", 1, FinishReason.STOP, expert_usage=EXPERT_USAGE)
            publish([(waiting.engine.streams[0], last)])

    monkeypatch.setattr(Generation, "wake", count)


@pytest.mark.usefixtures("ends_after_comments")
def test_the_openai_package_skips_comments(url):
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        chunks = list(client.chat.completions.create(model=MODEL, messages=ASK, stream=True))
    assert [chunk.choices[0].delta.content for chunk in chunks] == ["", "Once", None]


@pytest.mark.usefixtures("ends_after_comments")
def test_the_anthropic_package_skips_comments(url):
    with (
        anthropic.Anthropic(base_url=url, api_key="none", max_retries=0) as client,
        client.messages.stream(model=MODEL, messages=ASK, max_tokens=9) as stream,
    ):
        assert stream.get_final_text() == "Once"
