"""Structured output of the bundled model, by the openai package and pydantic."""

from __future__ import annotations

import json
import re
from typing import Any, Literal

import openai
import pytest
from openai.lib.streaming.chat import ContentDoneEvent
from pydantic import BaseModel, ConfigDict, Field

MODEL = "greenroom-demo"
QUESTION: Any = [{"role": "user", "content": "Who wrote the play? Answer in JSON."}]


class Edition(BaseModel):
    """One of them."""

    model_config = ConfigDict(extra="forbid")

    size: Literal["folio", "quarto"]
    is_lost: bool | None


class Author(BaseModel):
    """An answer as it is asked for; every field is bounded, so that even a small model comes to an end."""

    model_config = ConfigDict(extra="forbid")

    name: str = Field(max_length=20)
    century: int = Field(ge=1, le=21)
    kind: Literal["tragedy", "comedy"]
    editions: list[Edition] = Field(max_length=3)


def test_a_pydantic_model_is_parsed(client: openai.OpenAI) -> None:
    parsed = client.chat.completions.parse(
        model=MODEL, messages=QUESTION, response_format=Author, n=4, seed=1, max_tokens=1000, temperature=1
    )
    for choice in parsed.choices:
        assert isinstance(choice.message.parsed, Author)
        assert choice.finish_reason == "stop"


class Stage(BaseModel):
    """A part of the next."""

    city: str = Field(max_length=12)
    seats: int | None


class Play(BaseModel):
    """A model as people write it, without a word on additional properties."""

    title: str = Field(max_length=20)
    first: Stage
    others: list[Stage] = Field(max_length=2)


def test_a_plain_pydantic_model_comes_to_an_end_with_its_own_keys_only(client: openai.OpenAI) -> None:
    schema = Play.model_json_schema()  # parse() would close its objects itself
    response_format: Any = {"type": "json_schema", "json_schema": {"name": "play", "schema": schema}}
    answer = client.chat.completions.create(
        model=MODEL, messages=QUESTION, response_format=response_format, n=12, seed=1, max_tokens=400, temperature=1
    )
    for choice in answer.choices:
        assert choice.finish_reason == "stop"
        pairs = json.loads(choice.message.content or "", object_pairs_hook=lambda pairs: [key for key, _ in pairs])
        assert pairs == ["title", "first", "others"]


def test_a_stream_is_parsed_as_it_comes(client: openai.OpenAI) -> None:
    with client.chat.completions.stream(
        model=MODEL, messages=QUESTION, response_format=Author, max_tokens=1000, temperature=1, seed=2
    ) as stream:
        events = list(stream)
    done = next(event for event in events if isinstance(event, ContentDoneEvent))
    assert isinstance(done.parsed, Author)
    assert stream.get_final_completion().choices[0].finish_reason == "stop"


def test_a_json_object_ends(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model=MODEL, messages=QUESTION, response_format={"type": "json_object"}, max_tokens=1000, temperature=0
    )
    assert answer.choices[0].finish_reason == "stop"
    assert isinstance(json.loads(answer.choices[0].message.content or ""), dict)


def test_completions_follow_schemas_too(client: openai.OpenAI) -> None:
    schema = {"enum": ["the green room", "the stage"]}
    response_format = {"type": "json_schema", "json_schema": {"name": "place", "schema": schema, "strict": True}}
    answer = client.completions.create(
        model=MODEL, prompt="They wait in", max_tokens=20, extra_body={"response_format": response_format}
    )
    assert json.loads(answer.choices[0].text) in schema["enum"]
    assert answer.choices[0].finish_reason == "stop"


def test_a_bad_schema_is_a_bad_request(client: openai.OpenAI) -> None:
    response_format: Any = {"type": "json_schema", "json_schema": {"name": "it", "schema": {"type": "strange"}}}
    with pytest.raises(openai.BadRequestError, match="Invalid type: strange") as error:
        client.chat.completions.create(model=MODEL, messages=QUESTION, response_format=response_format)
    assert error.value.param == "response_format"


def complete(client: openai.OpenAI, **fields: Any) -> str:
    answer = client.completions.create(
        model=MODEL, prompt="They wait in the", max_tokens=60, temperature=1, seed=3, extra_body=fields
    )
    return answer.choices[0].text


@pytest.mark.parametrize(
    ("fields", "pattern"),
    [
        ({"guided_regex": "[A-Z][a-z]{2,6}-[0-9]{2}"}, "[A-Z][a-z]{2,6}-[0-9]{2}"),
        ({"guided_choice": ["the green room", "the stage"]}, "the (green room|stage)"),
        ({"structured_outputs": {"choice": ["red", "green"]}}, "red|green"),
        ({"grammar": 'root ::= "<" word{2} ">"\nword ::= " " [a-z]{1,5}'}, "<( [a-z]{1,5}){2}>"),
        ({"json_schema": {"enum": ["a", "b"]}}, '"[ab]"'),
        ({"bad_words": ["e", "a"], "allowed_token_ids": list(range(3, 260)), "min_tokens": 20}, "[^ea]*"),
    ],
)
def test_the_text_follows_vllms_and_llama_cpps_constraints(
    client: openai.OpenAI, fields: dict[str, Any], pattern: str
) -> None:
    assert re.fullmatch(pattern, complete(client, **fields), re.DOTALL)


def test_a_token_that_the_model_does_not_have_is_a_bad_request(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="token id 4096") as error:
        complete(client, allowed_token_ids=[4096])
    assert error.value.param == "allowed_token_ids"


def test_masks_that_allow_nothing_are_named(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="no token may come next") as error:
        complete(client, allowed_token_ids=[3, 4], guided_choice=["zebra"])
    assert error.value.param == "allowed_token_ids"


def test_a_grammar_that_is_none_is_a_bad_request(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="guided_grammar") as error:
        complete(client, guided_grammar="start: missing")
    assert error.value.param == "guided_grammar"
