"""Very long replies."""

from __future__ import annotations

import json
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.api.core.json_encoding import MEMBERS_PER_CALL, encode_json, encode_long
from server.api.openai import chunk_encoder
from tests.server.live.conftest import FakeServer
from tests.server.live.requests import ask, complete, error_of, headers_of, status_of

PROMPT = b"abcdefgh" * 100


def members(children: st.SearchStrategy[object]) -> st.SearchStrategy[object]:
    numbers = st.lists(st.integers(), min_size=MEMBERS_PER_CALL - 1, max_size=2 * MEMBERS_PER_CALL + 1)
    return st.dictionaries(st.text(max_size=3), children, max_size=3) | st.lists(children, max_size=3) | numbers


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(max_size=5), members, max_leaves=8))
def test_encoding_in_several_calls_changes_nothing(value: object) -> None:
    assert encode_long(value) == encode_json(value)


@pytest.mark.parametrize("stream", [False, True])
def test_logprobs_of_a_long_prompt_are_returned(live: FakeServer, stream: bool) -> None:
    answer = ask(live.port, complete(PROMPT, echo=True, logprobs=20, max_tokens=1, stream=stream))
    body = answer.partition(b"\r\n\r\n")[2]
    if stream:
        body = body[body.index(b"{") : body.index(b"\n\n")]
    told = json.loads(body)["choices"][0]["logprobs"]
    assert "".join(told["tokens"][: len(PROMPT)]) == PROMPT.decode()
    assert len(told["top_logprobs"]) == len(PROMPT) + 1


def test_too_many_logprobs_are_refused(live: FakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stream may hold more, because it does not keep them."""
    monkeypatch.setattr(chunk_encoder, "MAX_LOGPROBS", 1000)
    few = complete(b"abc", echo=True, logprobs=5, max_tokens=5, n=20)
    assert status_of(ask(live.port, few)) == 200
    answer = ask(live.port, complete(PROMPT, echo=True, logprobs=5, max_tokens=5))
    error = error_of(answer)
    assert (status_of(answer), error["param"]) == (400, "logprobs")
    assert error["message"] == "The reply would hold more than 1000 logprobs: ask for fewer, or for a stream."
    assert ask(live.port, complete(PROMPT, echo=True, logprobs=5, max_tokens=5, stream=True)).count(b"data: ") > 5
    live.wait_until_idle()


@pytest.mark.parametrize("stream", [False, True])
def test_too_many_logprobs_of_prompts_are_refused_before_they_are_computed(live: FakeServer, stream: bool) -> None:
    answer = ask(live.port, complete(PROMPT, echo=True, logprobs=20, max_tokens=1, n=128, stream=stream))
    error = json.loads(answer.partition(b"\r\n\r\n")[2])["error"]
    assert (status_of(answer), error["param"]) == (400, "logprobs")
    assert "more than 1048576" in error["message"]
    assert not live.rig.model.steps


def test_logprobs_of_the_prompts_of_all_requests_share_one_capacity(live: FakeServer) -> None:
    """A request that finds none gets 503; the others release theirs however they end."""
    capacity, may_run = live.model.logprobs_capacity, threading.Event()
    capacity.num_free = 6 * 20

    def wait() -> None:
        may_run.wait()

    live.rig.model.before_step = wait
    asked = {"echo": True, "logprobs": 5, "max_tokens": 5}
    with live.connect() as first, live.connect() as second:
        for connection in (first, second):
            connection.sendall(complete(b"abcdefghij", **asked, stream=True))
            assert connection.recv(1 << 16)  # it is begun
        refused = ask(live.port, complete(b"a", **asked))
        assert (status_of(refused), headers_of(refused)["retry-after"]) == (503, "1")
        second.close()
        may_run.set()
        assert status_of(ask(live.port, complete(b"a", max_tokens=5))) == 200
        while first.recv(1 << 16):
            pass
    live.wait_until_left()
    assert capacity.num_free == 6 * 20
    assert status_of(ask(live.port, complete(b"a" * 15, **asked | {"max_tokens": 1 << 20}))) == 400
    assert status_of(ask(live.port, complete(b"a" * 20, **asked))) == 200
    live.wait_until_left()
    assert capacity.num_free == 6 * 20
