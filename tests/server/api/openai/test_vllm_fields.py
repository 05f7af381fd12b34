"""Fields of vLLM's requests that change a prompt, a choice of tokens, or a reply; and those that are refused."""

import asyncio
import json

import pytest

from server.api.openai.chunk_encoder import ChoiceBuilder
from server.api.openai.prompt_tokens import bad_word_ids


@pytest.fixture(params=["complete", "chat"])
def send(request):
    return request.getfixturevalue(request.param)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fields", "param", "message"),
    [
        ({"suffix": "x"}, "suffix", "inserts no text"),
        ({"best_of": 3, "n": 2}, "best_of", "must equal 'n'"),
        ({"chat_template": "x"}, "chat_template", "takes no templates from requests"),
        ({"return_token_ids": 1}, "return_token_ids", "should be a valid boolean"),
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


@pytest.mark.parametrize("field", [{"chat_template": "x"}, {"return_token_ids": True}])
@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/messages", {"messages": [{"role": "user", "content": "a"}], "max_tokens": 4}),
        ("/v1/responses", {"input": "a"}),
    ],
)
def test_other_dialects_refuse_them_too(post, path, body, field):
    assert post(path, {**body, **field}).status_code == 400


def test_ollama_refuses_token_ids(post):
    body = {"model": "org/tiny", "prompt": "a", "raw": True, "options": {"return_token_ids": True}}
    response = post("/api/generate", body)
    assert (response.status_code, "'options.return_token_ids' can be used only" in response.text) == (400, True)


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


CHOICE_TOKENS = [100, 101, 102, 103, 104]  # of the fake engine; the third has no text


def chunks_of(response):
    events = response.text.removesuffix("data: [DONE]\n\n").split("\n\n")
    return [json.loads(event.removeprefix("data: ")) for event in events if event]


def test_tokens_of_a_complete_reply_are_added_without_a_thread_for_each(complete, monkeypatch):
    loops, add = [], ChoiceBuilder.add

    def watched(builder, event):
        loops.append(asyncio._get_running_loop())
        add(builder, event)

    monkeypatch.setattr(ChoiceBuilder, "add", watched)
    complete(return_token_ids=True)
    assert loops
    assert None not in loops


def test_choices_of_completions_have_their_tokens_and_those_of_their_prompts(complete):
    choices = complete(return_token_ids=True, prompt=[[4, 4], [7, 8]], n=2).json()["choices"]
    assert [each["prompt_token_ids"] for each in choices] == [[4, 4], [4, 4], [7, 8], [7, 8]]
    assert [each["token_ids"] for each in choices] == [CHOICE_TOKENS] * 4


def test_a_chat_has_the_tokens_of_its_prompt_beside_its_choices(chat):
    reply = chat(return_token_ids=True, n=2).json()
    assert reply["prompt_token_ids"] == [4, 2, 1, 5, 0]
    assert [each["token_ids"] for each in reply["choices"]] == [CHOICE_TOKENS] * 2


def test_chunks_of_a_completion_have_their_tokens_and_the_first_those_of_the_prompt(complete):
    first, *others = (chunk["choices"][0] for chunk in chunks_of(complete(return_token_ids=True, stream=True)))
    assert (first["text"], first["prompt_token_ids"], first["token_ids"]) == ("", [4, 4, 1, 4], [])
    assert [each["token_ids"] for each in others] == [[token] for token in CHOICE_TOKENS]
    assert not any("prompt_token_ids" in each for each in others)


def test_chunks_of_a_chat_have_their_tokens_and_the_first_those_of_the_prompt(chat):
    first, *others = chunks_of(chat(return_token_ids=True, stream=True))
    assert first["prompt_token_ids"] == [4, 2, 1, 5, 0]
    assert first["choices"][0]["delta"]["role"] == "assistant"
    assert not any("prompt_token_ids" in each for each in others)
    ids = [chunk["choices"][0]["token_ids"] for chunk in others]
    assert [each for each in ids if each] == [[token] for token in CHOICE_TOKENS]
    assert others[-1]["choices"][0]["finish_reason"] == "stop"


@pytest.mark.parametrize("stream", [False, True])
def test_an_echo_without_an_answer_has_the_tokens_of_its_prompt_only(complete, stream):
    response = complete(return_token_ids=True, echo=True, max_tokens=0, stream=stream)
    choices = [reply["choices"][0] for reply in (chunks_of(response) if stream else [response.json()])]
    assert choices[0]["prompt_token_ids"] == [4, 4, 1, 4]
    assert [each["token_ids"] for each in choices] == [[]] * len(choices)


def test_without_return_token_ids_a_reply_has_none(send):
    assert "token_ids" not in send().text
