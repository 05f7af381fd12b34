"""``/v1/completions``, without streams."""

import re
import threading

import pytest

from server.engine.interface import FinishReason, QueueFullError
from tests.server.api.openai.test_experts import GREENROOM


def test_complete_reply_has_openais_form(complete):
    reply = complete().json()
    assert re.fullmatch("cmpl-[0-9a-f]{32}", reply.pop("id"))
    assert isinstance(reply.pop("created"), int)
    assert reply == {
        "object": "text_completion",
        "model": "org/tiny",
        "choices": [{"index": 0, "text": "Once upon a time", "logprobs": None, "finish_reason": "stop"}],
        "usage": {
            "prompt_tokens": 4,
            "completion_tokens": 5,
            "total_tokens": 9,
            "prompt_tokens_details": {"cached_tokens": 0},
            "greenroom": GREENROOM,
        },
    }


def test_choices_of_each_prompt_follow_one_another(fake, complete):
    reply = complete(prompt=["a", "bb cc"], n=2).json()
    assert [choice["index"] for choice in reply["choices"]] == [0, 1, 2, 3]
    assert [request.prompt_ids for request in fake.engine.requests] == [(1,), (1,), (2, 2), (2, 2)]
    assert len({request.request_id for request in fake.engine.requests}) == 4


def test_prompt_tokens_count_once_for_all_choices(complete):
    usage = complete(prompt=["a", "bb cc"], n=2).json()["usage"]
    assert (usage["prompt_tokens"], usage["completion_tokens"], usage["total_tokens"]) == (3, 20, 23)


@pytest.mark.parametrize(
    ("prompt", "prompts"),
    [
        ("a bb", [(1, 2)]),
        (["a", "bb"], [(1,), (2,)]),
        ([7, 8], [(7, 8)]),
        ([[7], [8, 9]], [(7,), (8, 9)]),
        (["a", [9]], None),
        ([7, "a"], None),
        ([7, True], None),
        ([-1], None),
        ([2**31], None),
        ([], None),
        ({}, None),
        (3, None),
        ("\ud800", None),
        (["a", "\ud800"], None),
    ],
)
def test_forms_of_prompts(fake, complete, prompt, prompts):
    """Four forms are accepted; errors about others name the prompt."""
    response = complete(prompt=prompt)
    assert response.status_code == (400 if prompts is None else 200)
    assert [request.prompt_ids for request in fake.engine.requests] == (prompts or [])
    assert prompts or response.json()["error"]["param"] == "prompt"


def test_missing_prompt_is_named(post):
    response = post("/v1/completions", {})
    assert response.status_code == 400
    assert response.json()["error"]["message"] == "'prompt' is required."
    assert response.json()["error"]["param"] == "prompt"


def test_tokenizing_does_not_block_the_event_loop(fake, complete):
    complete()
    assert threading.main_thread() not in fake.codec.threads


def test_refused_choice_cancels_the_earlier_ones(fake, complete):
    fake.engine.refusals = {2: QueueFullError("full")}
    assert complete(n=4).status_code == 429
    assert [stream.is_cancelled for stream in fake.engine.streams] == [True, True]


def test_failed_choice_cancels_the_others(fake, complete):
    fake.engine.failure = QueueFullError("failed")
    assert complete(n=2).status_code == 429
    assert all(stream.is_cancelled for stream in fake.engine.streams)


def test_more_choices_than_one_request_may_have(fake, complete):
    response = complete(prompt=["a"] * 65, n=2)
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "prompt"
    assert not fake.engine.streams


def test_cut_completion_has_finish_reason_length(complete):
    choice = complete(max_tokens=2).json()["choices"][0]
    assert (choice["text"], choice["finish_reason"]) == ("Once upon", FinishReason.LENGTH)
