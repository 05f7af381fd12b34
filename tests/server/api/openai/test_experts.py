"""Experts and adapters in replies: their cost in the usage, and those of each token."""

import json

import pytest

from server.api.core.requests.token_traces import adapters_json
from tests.server.api.openai.test_streaming import events_of

ADAPTERS = [
    '{"law":0.25,"code":0.1235}',
    '{"law":0.25,"code":0.2469}',
    '{"code":0.3704,"law":0.25}',
]
CHOSEN = [[[number, number + 1], [7]] for number in range(1, 6)]  # of each of the fake engine's tokens
GREENROOM = {"expert_requests": 10, "expert_misses": 3, "expert_bytes_read": 4096, "expert_stall_seconds": 0.25}


@pytest.fixture(params=["complete", "chat"])
def reply(request):
    return request.getfixturevalue(request.param)


def test_usage_sums_the_cost_of_all_choices(complete):
    usage = complete(prompt=["a", "bb cc"], n=2).json()["usage"]
    assert usage["greenroom"] == {name: 4 * value for name, value in GREENROOM.items()}


def test_a_streams_usage_has_the_same(reply):
    chunks = events_of(reply(stream=True, n=3, stream_options={"include_usage": True}))
    assert chunks[-1]["usage"]["greenroom"] == {name: 3 * value for name, value in GREENROOM.items()}


def test_each_choice_has_the_experts_of_each_token(reply):
    choices = reply(return_experts=True, n=2).json()["choices"]
    assert [choice["experts"] for choice in choices] == [CHOSEN, CHOSEN]


def test_chunks_have_the_experts_of_the_tokens_since_the_last_chunk(reply):
    """The next chunk has the experts of a token whose text is held back."""
    chunks = events_of(reply(return_experts=True, n=2, stream=True))
    for index in range(2):
        lists = [chunk["choices"][0]["experts"] for chunk in chunks if chunk["choices"][0]["index"] == index]
        assert [token for tokens in lists for token in tokens] == CHOSEN
        assert max(map(len, lists)) == 2


def test_experts_are_returned_only_on_request(reply):
    assert "experts" not in reply().json()["choices"][0]
    assert not any("experts" in chunk["choices"][0] for chunk in events_of(reply(stream=True)))


def test_each_choice_has_the_adapters_of_each_token_the_heaviest_first(reply):
    answer = reply(return_adapters=True, n=2)
    assert "experts" not in answer.json()["choices"][0]
    assert answer.text.count(f'"adapters":[{",".join(ADAPTERS)}') == 2


def test_chunks_have_the_adapters_of_the_tokens_since_the_last_chunk(reply):
    chunks = events_of(reply(return_adapters=True, return_experts=True, stream=True))
    lists = [chunk["choices"][0]["adapters"] for chunk in chunks]
    assert [token for tokens in lists for token in tokens][:3] == list(map(json.loads, ADAPTERS))
    assert [len(tokens) for tokens in lists] == [len(chunk["choices"][0]["experts"]) for chunk in chunks]


def test_a_token_names_eight_adapters_at_most():
    named = json.loads(adapters_json({str(number): number / 20 for number in range(20)}))
    assert list(named) == [str(number) for number in range(19, 11, -1)]
