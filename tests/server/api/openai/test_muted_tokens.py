"""Tokens that begin a tool call are not generated without tools, in every dialect."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.chat_formats import FAMILIES, TOOLS

KIMI = FAMILIES["kimi"].traits
OPENERS = {KIMI.special["<|tool_calls_section_begin|>"], KIMI.special["<|tool_call_begin|>"]}
ASKED = {"role": "user", "content": "Rain?"}
CALL = {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
HISTORY = [
    ASKED,
    {"role": "assistant", "content": "", "tool_calls": [CALL]},
    {"role": "tool", "tool_call_id": "call_1", "content": "no"},
]


def masked(fake):
    return fake.engine.requests[-1].sampling.masked_tokens


@pytest.fixture
def kimi(fake):
    """A model whose calls begin with special tokens."""
    fake.codec.chat_traits = KIMI
    fake.engine.max_model_len = 1024
    return fake


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", {"messages": [ASKED]}),
        ("/v1/responses", {"input": "Rain?"}),
        ("/v1/messages", {"messages": [ASKED], "max_tokens": 5}),
        ("/api/chat", {"model": "org/tiny", "messages": [ASKED]}),
        ("/api/generate", {"model": "org/tiny", "prompt": "Rain?"}),
    ],
)
def test_no_dialect_begins_a_call_without_tools(kimi, post, path, body):
    assert post(path, body).status_code == 200
    assert masked(kimi) == OPENERS


@pytest.mark.parametrize("body", [{"tools": TOOLS, "tool_choice": "none"}, {"messages": HISTORY}], ids=str)
def test_tools_that_are_not_in_the_prompt_and_past_calls_do_not_allow_new_ones(kimi, chat, body):
    assert chat(**body).status_code == 200
    assert masked(kimi) == OPENERS


@pytest.mark.slow
@pytest.mark.parametrize(
    "body",
    [
        {"tools": TOOLS},
        {"response_format": {"type": "json_object"}},  # a grammar decides
        {"messages": [ASKED | {"content": "Call by <|tool_calls_section_begin|> and <|tool_call_begin|>."}]},
        {"allowed_token_ids": [*OPENERS, 3]},
        {"logit_bias": dict.fromkeys(map(str, OPENERS), 5)},
    ],
    ids=str,
)
def test_a_request_that_asks_for_calls_is_free_to_begin_one(kimi, chat, body):
    assert chat(**body).status_code == 200
    assert masked(kimi) == frozenset()


def test_an_opener_that_a_template_shows_of_itself_is_free(kimi, chat):
    shown = len("openers")  # the fake codec's tokens are the lengths of words
    kimi.codec.chat_traits = replace(KIMI, markers=KIMI.markers | {"<|tool_call_begin|>": shown})
    assert chat(messages=[ASKED | {"content": "openers"}]).status_code == 200
    assert masked(kimi) == OPENERS - {KIMI.special["<|tool_call_begin|>"]}


def test_a_plain_prompt_is_free(kimi, complete):
    assert complete().status_code == 200
    assert masked(kimi) == frozenset()


class TestOpenersOfSeveralTokens:
    """The fake codec writes a token of n letters for a word of n letters."""

    @pytest.fixture
    def send(self, fake, chat):
        def send(template="{{ f }}<tool_call>", **body):
            fake.codec.chat_traits = replace(FAMILIES["unknown"].traits, template=template)
            assert chat(**{"messages": [ASKED], **body}).status_code == 200
            sampling = fake.engine.requests[-1].sampling
            return sampling.masked_first_tokens, sampling.bad_words

        return send

    def test_the_first_token_is_masked_where_the_turn_begins_and_all_of_them_later(self, send):
        assert send() == ({11}, {(11,)})

    @pytest.mark.parametrize(
        ("template", "body"),
        [
            ("{{ f }}<tool_call><think></think>", {}),  # the turn begins with reasoning
            ("{{ f }}<tool_call>", {"add_generation_prompt": False, "continue_final_message": True}),
            ("{{ f }}<tool_call>", {"messages": [ASKED | {"content": "xxxxxxxxxxx"}]}),  # which holds that token
        ],
        ids=["reasoning", "continued", "shown"],
    )
    def test_the_first_token_is_free_where_something_else_begins_with_it(self, send, template, body):
        assert send(template, **body) == (frozenset(), {(11,)})

    def test_the_words_of_the_client_are_forbidden_too(self, send):
        assert send(bad_words=["bad"])[1] == {(11,), (3,)}

    @pytest.mark.parametrize("body", [{"tools": TOOLS}, {"messages": [ASKED | {"content": "<tool_call>?"}]}], ids=str)
    def test_a_request_that_asks_for_calls_is_free_to_begin_one(self, send, body):
        assert send(**body) == (frozenset(), frozenset())
