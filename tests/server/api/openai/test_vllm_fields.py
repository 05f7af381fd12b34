"""Fields of vLLM's requests that change a prompt, a choice of tokens, or a reply; and those that are refused."""

import pytest

from server.api.openai.prompt_tokens import bad_word_ids


@pytest.fixture(params=["complete", "chat"])
def send(request):
    return request.getfixturevalue(request.param)


@pytest.mark.parametrize(
    ("fields", "param", "message"),
    [
        ({"suffix": "x"}, "suffix", "inserts no text"),
        ({"best_of": 3, "n": 2}, "best_of", "must equal 'n'"),
        ({"chat_template": "x"}, "chat_template", "takes no templates from requests"),
        ({"return_token_ids": True}, "return_token_ids", "is not supported"),
        ({"allowed_token_ids": []}, "allowed_token_ids", "must not be empty"),
        ({"allowed_token_ids": [-1]}, "allowed_token_ids[0]", "greater than or equal to 0"),
        ({"bad_words": [""]}, "bad_words[0]", "must not be empty"),
        ({"truncate_prompt_tokens": 0}, "truncate_prompt_tokens", "must be above 0, or -1"),
        ({"prompt_logprobs": 1, "stream": True}, "prompt_logprobs", "can't be streamed"),
        ({"prompt_logprobs": 21}, "prompt_logprobs", "less than or equal to 20"),
    ],
)
def test_what_the_server_can_not_do_is_refused_by_name(send, fake, fields, param, message):
    error = send(**fields).json()["error"]
    assert (error["param"], message in error["message"]) == (param, True), error
    assert fake.engine.requests == []


@pytest.mark.parametrize(
    "fields", [{"suffix": ""}, {"best_of": 1}, {"best_of": 2, "n": 2}, {"return_token_ids": False}, {"suffix": None}]
)
def test_values_that_ask_for_nothing_are_taken(send, fields):
    assert send(**fields).status_code == 200


def test_other_dialects_refuse_them_too(post):
    body = {"messages": [{"role": "user", "content": "a"}], "max_tokens": 4, "chat_template": "x"}
    assert post("/v1/messages", body).status_code == 400


def test_masks_reach_the_engine(send, fake):
    assert send(allowed_token_ids=[3, 5, 3], bad_words=["bad word"]).status_code == 200
    sampling = fake.engine.requests[0].sampling
    assert sampling.allowed_token_ids == {3, 5}
    assert sampling.bad_words == {(3, 4)}


class Spaced:
    """A codec that has a token for each letter, and another one after a space."""

    def encode(self, text, *, add_special_tokens=True):
        assert not add_special_tokens
        return [ord(letter) + 1000 * text[:place].endswith(" ") for place, letter in enumerate(text) if letter != " "]


def test_bad_words_are_also_meant_within_a_text():
    assert bad_word_ids([" ab"], Spaced()) == {(97, 98), (1097, 98)}


@pytest.mark.parametrize(
    ("prompt", "limit", "kept"),
    [
        ("a bb ccc dddd", 2, (3, 4)),
        ([1, 2, 3], 2, (2, 3)),
        ("a bb", 9, (1, 2)),
        ("x " * 600 + "aa bbb", 2, (2, 3)),
        ([7] * 100, -1, (7,) * (64 - 5)),
    ],
)
def test_the_last_tokens_of_a_prompt_are_kept(post, fake, prompt, limit, kept):
    body = {"prompt": prompt, "truncate_prompt_tokens": limit, "max_tokens": 5}
    assert post("/v1/completions", body).status_code == 200
    assert fake.engine.requests[0].prompt_ids == kept


def test_the_last_tokens_of_a_chat_are_kept(chat, fake):
    assert chat(truncate_prompt_tokens=2).json()["usage"]["prompt_tokens"] == 2
    assert fake.engine.requests[0].prompt_ids == (5, 0)


def test_an_echo_is_of_the_tokens_that_were_kept(complete):
    assert complete(truncate_prompt_tokens=1, echo=True, max_tokens=1).json()["choices"][0]["text"] == "xxxxOnce"


PROMPT_LOGPROBS = [
    None,
    {"4": {"logprob": -1.0, "rank": 1, "decoded_token": "xxxx"}},
    {"1": {"logprob": -1.0, "rank": 1, "decoded_token": "x"}},
    {"4": {"logprob": -1.0, "rank": 1, "decoded_token": "xxxx"}},
]


def test_a_completion_has_the_logprobs_of_its_prompt(complete):
    first, second = complete(prompt_logprobs=1, n=2).json()["choices"]
    assert first["prompt_logprobs"] == second["prompt_logprobs"] == PROMPT_LOGPROBS
    assert first["logprobs"] is None


def test_a_chat_has_the_logprobs_of_its_prompt(chat):
    reply = chat(prompt_logprobs=0).json()
    assert [each and [*each] for each in reply["prompt_logprobs"]] == [None, ["2"], ["1"], ["5"], ["0"]]
    assert reply["prompt_logprobs"][1]["2"]["rank"] is None


def test_without_prompt_logprobs_a_reply_has_none(send):
    reply = send().json()
    assert "prompt_logprobs" not in reply
    assert "prompt_logprobs" not in reply["choices"][0]
