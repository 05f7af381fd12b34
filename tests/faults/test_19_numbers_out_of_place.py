"""Numbers that are too large, too small or not numbers: 400 that names the parameter, and the server continues."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from server.engine.text.codec import Codec
from tests.server.engine.fakes import Rig
from tests.server.live.conftest import FakeServer, serving_rig
from tests.server.live.requests import ask, post

VALUES = (0, -1, 2**31, 2**63, 1e308, "1", True)
# What each parameter may be of these; all else is refused.
PARAMETERS: dict[str, tuple[object, ...]] = {
    "n": (),
    "max_tokens": (-1,),  # without a limit
    "max_completion_tokens": (-1,),
    "top_logprobs": (0,),
    "min_tokens": (0,),
    "top_k": (0, -1),
    "seed": (0, -1, 2**31),
    "temperature": (0,),
    "top_p": (0,),  # greedy
    "min_p": (0,),
    "repetition_penalty": (),
    "presence_penalty": (0, -1),
    "frequency_penalty": (0, -1),
    "timeout": (2**31, 2**63, 1e308),
    "priority": (0, -1),
    "stop": ("1",),
}
MESSAGES = [{"role": "user", "content": "hi"}]


@pytest.fixture(scope="module")
def live(codec: Codec) -> Iterator[FakeServer]:
    """A server with a short context, at whose end a request without a limit ends."""
    with serving_rig(Rig(num_blocks=64, max_running=64, max_batched_tokens=256, max_queued=256), codec) as server:
        yield server


def chat(live: FakeServer, **body: Any) -> tuple[int, dict[str, Any]]:
    answer = ask(live.port, post("/v1/chat/completions", messages=MESSAGES, **{"max_tokens": 1, **body}))
    return int(answer[9:12]), json.loads(answer.partition(b"\r\n\r\n")[2])


def is_among(value: object, allowed: tuple[object, ...]) -> bool:
    return any(type(value) is type(each) and value == each for each in allowed)


@pytest.mark.slow
@pytest.mark.parametrize("name", PARAMETERS)
def test_each_number_is_accepted_or_refused_by_its_name(live: FakeServer, name: str) -> None:
    for value in VALUES:
        given = {"logprobs": True} if name == "top_logprobs" else {}
        status, body = chat(live, **given, **{name: value})
        if is_among(value, PARAMETERS[name]):
            assert status == 200, (value, body)
        else:
            assert (status, body["error"]["param"]) == (400, name), (value, body)
            assert len(body["error"]["message"]) < 200


@pytest.mark.parametrize("token", ["0", "-1", str(2**31), str(2**63), "1e308", "true", "\u0661", "9" * 5000])
def test_biases_of_tokens_that_are_none_are_refused(live: FakeServer, token: str) -> None:
    status, body = chat(live, logit_bias={token: 1})
    if token == "0":
        assert status == 200
    else:
        assert (status, body["error"]["param"]) == (400, "logit_bias")


@pytest.mark.parametrize("bias", VALUES)
def test_biases_that_are_not_small_numbers_are_refused(live: FakeServer, bias: object) -> None:
    status, body = chat(live, logit_bias={"5": bias})
    if is_among(bias, (0, -1)):
        assert status == 200
    else:
        assert (status, body["error"]["param"]) == (400, "logit_bias")


def test_stops_that_are_not_strings_too_many_or_empty_are_refused(live: FakeServer) -> None:
    for stop in ([0], [True], [""], ["a"] * 17, [["a"]], {"a": 1}, ["\ud800"]):
        status, body = chat(live, stop=stop)
        assert (status, body["error"]["param"]) == (400, "stop"), stop
