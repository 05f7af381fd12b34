"""Structured output of the bundled model, by the openai package and pydantic."""

from __future__ import annotations

import json
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
    """What is asked for; every field is bounded, so that even a small model comes to an end."""

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
