"""Tool calls and Anthropic's structured output with the bundled model, by the real packages."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, Literal

import anthropic
import openai
import pytest
from pydantic import BaseModel

from tests.e2e.processes import Server

MODEL = "greenroom-demo"
PARAMETERS = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 20}, "unit": {"enum": ["celsius", "fahrenheit"]}},
    "required": ["city", "unit"],
}
FUNCTION = {"name": "get_weather", "description": "The weather of a city.", "parameters": PARAMETERS}
ASKED: Any = {
    "model": MODEL,
    "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Is it warm in Oslo?"}],
    "tools": [{"type": "function", "function": FUNCTION}],
    "parallel_tool_calls": False,
}
NAMED: Any = {"type": "function", "function": {"name": "get_weather"}}


def arguments_of(message: Any) -> Any:
    (call,) = message.tool_calls
    assert call.function.name == "get_weather"
    return json.loads(call.function.arguments)


@pytest.mark.parametrize("choice", ["required", NAMED], ids=["required", "named"])
def test_a_forced_call_has_arguments_of_the_schema(client: openai.OpenAI, choice: Any) -> None:
    answer = client.chat.completions.create(**ASKED, tool_choice=choice, seed=1, temperature=1)
    arguments = arguments_of(answer.choices[0].message)
    assert list(arguments) == ["city", "unit"]
    assert arguments["unit"] in ("celsius", "fahrenheit")


@pytest.mark.parametrize(("question", "city"), [("Is it warm in Oslo?", "Oslo"), ("Will it rain in Rome?", "Rome")])
def test_the_model_calls_a_tool_by_itself(client: openai.OpenAI, question: str, city: str) -> None:
    asked = ASKED | {"messages": [{"role": "user", "content": question}]}
    answer = client.chat.completions.create(**asked, tool_choice="auto", temperature=0)
    assert arguments_of(answer.choices[0].message)["city"] == city


def test_a_conversation_with_the_call_and_its_result_goes_on(client: openai.OpenAI) -> None:
    first = client.chat.completions.create(**ASKED, tool_choice="required", seed=2).choices[0].message
    result = {"role": "tool", "tool_call_id": (first.tool_calls or [])[0].id, "content": "It has 3 degrees."}
    messages = [*ASKED["messages"], first.model_dump(exclude_none=True), result]
    second = client.chat.completions.create(**ASKED | {"messages": messages}, max_tokens=8, seed=2)
    assert second.usage is not None
    assert second.usage.completion_tokens > 0


class Weather(BaseModel):
    """Only words of a list, because the package leaves out the bounds of strings and numbers."""

    city: Literal["Oslo", "Bergen"]
    is_warm: bool


@pytest.fixture(scope="module")
def claude(server: Server) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=server.url, api_key="none", max_retries=0) as client:
        yield client


def test_anthropic_is_given_the_tool_that_it_asks_for(claude: anthropic.Anthropic) -> None:
    message = claude.messages.create(
        model=MODEL,
        max_tokens=400,
        messages=[{"role": "user", "content": "Is it warm in Oslo?"}],
        tools=[{"name": "get_weather", "input_schema": PARAMETERS}],
        tool_choice={"type": "tool", "name": "get_weather", "disable_parallel_tool_use": True},
    )
    (block,) = message.content
    assert block.type == "tool_use"
    assert list(block.input) == ["city", "unit"]


def test_anthropics_structured_output_is_parsed(claude: anthropic.Anthropic) -> None:
    message = claude.messages.parse(
        model=MODEL,
        max_tokens=400,
        messages=[{"role": "user", "content": "Is it warm in Oslo?"}],
        output_format=Weather,
    )
    assert isinstance(message.parsed_output, Weather)
