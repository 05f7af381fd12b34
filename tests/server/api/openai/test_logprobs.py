"""Logprobs and echoed prompts, in OpenAI's forms. The fake engine writes tokens 100, 101 and so on."""

import pytest

from server.api.openai.logprobs import Echo
from tests.server.api.fakes import FakeCodec
from tests.server.api.openai.test_streaming import events_of

TEXTS = ["Once", " upon", "", " a", " time"]
PROMPT = "aaaa aaaa a aaaa"  # the fake codec writes it so


def chat_token(token, logprob):
    return {"token": token, "logprob": logprob, "bytes": list(token.encode())}


HALF = {"token": "\ufffd", "bytes": [0xE2, 0x82]}
CHAT_CONTENT = [
    chat_token(text, -number / 2) | {"top_logprobs": [chat_token(text, -number / 2), HALF | {"logprob": -number / 2}]}
    for number, text in enumerate(TEXTS, start=1)
]


def test_chat_lists_every_token_with_its_exact_bytes(chat):
    choice = chat(logprobs=True, top_logprobs=2).json()["choices"][0]
    assert choice["logprobs"] == {"content": CHAT_CONTENT, "refusal": None}


def test_chat_without_likeliest_tokens(chat):
    content = chat(logprobs=True).json()["choices"][0]["logprobs"]["content"]
    assert content == [token | {"top_logprobs": []} for token in CHAT_CONTENT]


def test_chat_chunks_list_also_tokens_whose_text_is_held_back(chat):
    choices = [chunk["choices"][0] for chunk in events_of(chat(stream=True, logprobs=True, top_logprobs=2))]
    assert [choice["delta"].get("content") for choice in choices] == ["", *TEXTS, None]
    assert choices[0]["logprobs"] is None
    assert [choice["logprobs"] for choice in choices[1:-1]] == [
        {"content": [token], "refusal": None} for token in CHAT_CONTENT
    ]
    assert (choices[-1]["logprobs"], choices[-1]["finish_reason"]) == (None, "stop")


COMPLETION = {
    "tokens": TEXTS,
    "token_logprobs": [-0.5, -1.0, -1.5, -2.0, -2.5],
    "top_logprobs": [
        {text: -number / 2, "bytes:\\xe2\\x82": -number / 2} for number, text in enumerate(TEXTS, start=1)
    ],
    "text_offset": [0, 4, 9, 9, 11],
}
ECHO = {
    "tokens": ["xxxx", "xxxx", "x", "xxxx"],
    "token_logprobs": [None, -1.0, -1.0, -1.0],
    "top_logprobs": [None, {"xxxx": -1.0}, {"x": -1.0}, {"xxxx": -1.0}],
    "text_offset": [0, 4, 9, 11],
}
BOTH = {name: ECHO[name] + COMPLETION[name] for name in ECHO} | {
    "text_offset": [0, 4, 9, 11, *(16 + offset for offset in COMPLETION["text_offset"])]
}


def test_completions_have_four_lists(complete):
    assert complete(logprobs=2).json()["choices"][0]["logprobs"] == COMPLETION


def test_a_completion_without_likeliest_tokens_lists_its_own(complete):
    logprobs = complete(logprobs=0).json()["choices"][0]["logprobs"]
    own = [{text: -number / 2} for number, text in enumerate(TEXTS, start=1)]
    assert logprobs == COMPLETION | {"top_logprobs": own}


def test_completion_chunks_add_up_to_the_complete_reply(complete):
    chunks = [chunk["choices"][0] for chunk in events_of(complete(stream=True, logprobs=2))]
    assert {name: [value for chunk in chunks for value in chunk["logprobs"][name]] for name in COMPLETION} == COMPLETION
    assert [chunk["text"] for chunk in chunks] == TEXTS


@pytest.mark.parametrize("n", [1, 2])
def test_an_echo_stands_before_each_choice(complete, n):
    choices = complete(prompt=["aa b", "ccc"], echo=True, n=n).json()["choices"]
    assert [choice["text"] for choice in choices] == ["aa bOnce upon a time"] * n + ["cccOnce upon a time"] * n


def test_a_model_that_answers_prompts_echoes_none(fake, complete):
    fake.engine.is_encoder_decoder = True
    answer = complete(echo=True)
    assert answer.status_code == 400
    assert answer.json()["error"]["message"].startswith("This model is an encoder-decoder, which answers prompts")
    assert complete().status_code == 200


def test_echoed_token_ids_are_written_out(complete):
    assert complete(prompt=[2, 1], echo=True).json()["choices"][0]["text"] == "xx xOnce upon a time"


def test_an_echo_with_logprobs_lists_the_prompt_too(complete):
    choice = complete(prompt=[4, 4, 1, 4], echo=True, logprobs=2).json()["choices"][0]
    assert choice["text"] == "xxxx xxxx x xxxxOnce upon a time"
    assert choice["logprobs"] == BOTH


def test_a_streamed_echo_comes_first_and_once(complete):
    chunks = [chunk["choices"][0] for chunk in events_of(complete(stream=True, prompt=PROMPT, echo=True))]
    assert [chunk["text"] for chunk in chunks] == [PROMPT, "Once", " upon", " a", " time"]


def test_a_streamed_echo_comes_with_its_logprobs(complete):
    chunks = [
        chunk["choices"][0] for chunk in events_of(complete(stream=True, prompt=[4, 4, 1, 4], echo=True, logprobs=2))
    ]
    assert "".join(chunk["text"] for chunk in chunks) == "xxxx xxxx x xxxxOnce upon a time"
    assert {name: [value for chunk in chunks for value in chunk["logprobs"][name]] for name in BOTH} == BOTH


@pytest.mark.parametrize("stream", [False, True])
def test_a_prompt_is_scored_without_a_completion(complete, stream):
    response = complete(prompt=[4, 4, 1, 4], echo=True, logprobs=2, max_tokens=0, stream=stream)
    choice = events_of(response)[0]["choices"][0] if stream else response.json()["choices"][0]
    assert (choice["text"], choice["finish_reason"]) == ("xxxx xxxx x xxxx", "length")
    assert choice["logprobs"] == ECHO


def test_special_tokens_before_a_text_are_no_part_of_its_echo():
    class Codec(FakeCodec):
        def pieces(self, token_ids):
            return ["<s>", "the", " door"]

    assert Echo.of("the door", [0, 1, 2], Codec()) == Echo("the door", [0, 1, 2], [0, 0, 3])
