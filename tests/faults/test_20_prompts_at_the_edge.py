"""Prompts about as long as the context, empty prompts, one word of a megabyte, tokens that do not exist."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.server.live.conftest import FakeServer
from tests.server.live.requests import ask, post


def completion(live: FakeServer, prompt: object, **body: Any) -> tuple[int, dict[str, Any]]:
    answer = ask(live.port, post("/v1/completions", prompt=prompt, **body))
    return int(answer[9:12]), json.loads(answer.partition(b"\r\n\r\n")[2])


def test_a_prompt_of_one_token_less_than_the_context_gets_one_token(live: FakeServer) -> None:
    most = live.engine.max_model_len
    status, body = completion(live, [65] * (most - 1))
    assert status == 200
    assert body["usage"]["completion_tokens"] == 1
    assert body["choices"][0]["finish_reason"] == "length"


@pytest.mark.parametrize("excess", [0, 1, 1000])
def test_the_context_and_more_is_refused_with_both_numbers(live: FakeServer, excess: int) -> None:
    most = live.engine.max_model_len
    status, body = completion(live, [65] * (most + excess))
    assert status == 400
    assert body["error"]["code"] == "context_length_exceeded"
    assert body["error"]["param"] == "prompt"
    assert f"{most} tokens" in body["error"]["message"]
    assert f"({most + excess} in the prompt" in body["error"]["message"]


@pytest.mark.parametrize("prompt", ["", [], [[]], [""], None])
def test_an_empty_prompt_is_refused(live: FakeServer, prompt: object) -> None:
    status, body = completion(live, prompt)
    assert (status, body["error"]["param"]) == (400, "prompt")


@pytest.mark.slow
def test_a_word_of_a_megabyte_is_too_long(live: FakeServer) -> None:
    status, body = completion(live, "a" * 1_000_000)
    assert (status, body["error"]["param"]) == (400, "prompt")
    assert "reduce the length" in body["error"]["message"]


@pytest.mark.parametrize("token", [256, 2**31 - 1, 2**31, 2**63, -1, 1.5, True, "a", None])
def test_tokens_that_do_not_exist_are_refused(live: FakeServer, token: object) -> None:
    status, body = completion(live, [65, token])
    assert (status, body["error"]["param"]) == (400, "prompt")
    assert len(body["error"]["message"]) < 200
