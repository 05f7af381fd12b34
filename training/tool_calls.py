"""Measures tool calls over the server, on held-out chats with tools.

The server is the real one, started for the measurement: its chat template, its grammar of forced calls and its parser
are part of what is measured.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import jsonschema

from training.errors import DemoError
from training.serving import serving

DOMAIN = "tools"
CHATS = 60  # asked with each choice
MAX_TOKENS = 150
TOOLS = re.compile(r"(.*?)(?:\n\n)?# Tools\n\n<tools>\n(.*)\n</tools>", re.DOTALL)
MESSAGE = re.compile(r"<\|im_start\|>(\w+)\n(.*?)<\|im_end\|>", re.DOTALL)
CALL = re.compile(r"<tool_call>\n(.*?)\n</tool_call>", re.DOTALL)

Json = dict[str, Any]


@dataclass(frozen=True)
class Question:
    """The beginning of a chat with tools, and the calls of the turn that follows it."""

    messages: list[Json]
    tools: list[Json]
    calls: list[Json]  # name and arguments; none if the turn is text


@dataclass(frozen=True)
class Outcome:
    """The calls of an answer, compared with the question's."""

    called: bool
    valid: bool  # every call names a listed tool, with arguments of its schema
    right_tools: bool
    right_arguments: bool


def read_question(chat: str) -> Question | None:
    """Read a chat up to its first turn with calls, or to its first answer if it has none; None without an answer."""
    (_, system), *turns = MESSAGE.findall(chat) or [("", "")]
    found = TOOLS.match(system)
    if found is None:
        return None
    tools = [json.loads(line) for line in found[2].splitlines()]
    messages = [{"role": "system", "content": found[1]}] if found[1] else []
    answers = [index for index, (role, _) in enumerate(turns) if role == "assistant"]
    calling = [index for index in answers if CALL.search(turns[index][1])]
    if not answers:
        return None
    last = (calling or answers)[0]
    messages += [{"role": role, "content": content} for role, content in turns[:last]]
    return Question(messages, tools, [json.loads(call) for call in CALL.findall(turns[last][1])])


def judge(question: Question, message: Json) -> Outcome:
    """Compare an answer of the server with the calls of the chat."""
    calls = [call["function"] for call in message.get("tool_calls") or []]
    schemas = {tool["function"]["name"]: tool["function"]["parameters"] for tool in question.tools}
    read = [(call["name"], _object(call["arguments"])) for call in calls]
    expected = [(call["name"], call["arguments"]) for call in question.calls]
    return Outcome(
        called=bool(read),
        valid=bool(read) and all(_is_valid(schemas.get(name), arguments) for name, arguments in read),
        right_tools=[name for name, _ in read] == [name for name, _ in expected],
        right_arguments=read == expected,
    )


def _object(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return None


def _is_valid(schema: Json | None, arguments: Any) -> bool:
    return schema is not None and jsonschema.Draft202012Validator(schema).is_valid(arguments)


def ask(client: httpx.Client, model: str, question: Question, choice: str, seed: int) -> Outcome:
    """Ask the server a question, with the sampling that the checkpoint recommends."""
    body = {
        "model": model,
        "messages": question.messages,
        "tools": question.tools,
        "tool_choice": choice,
        "max_tokens": MAX_TOKENS,
        "seed": seed,
    }
    response = client.post("/v1/chat/completions", json=body)
    if response.is_error:
        raise DemoError(f"the server refuses a chat with tools: {response.text}")
    return judge(question, response.json()["choices"][0]["message"])


def measure_calls(model: Path, chats: Sequence[str]) -> Json:
    """Return how many answers to held-out chats call tools, validly and rightly, by tool choice."""
    questions = [question for question in map(read_question, chats) if question is not None]
    with_calls = [question for question in questions if question.calls][:CHATS]
    without = [question for question in questions if not question.calls][:CHATS]
    cases = {
        "auto, a call is right": ("auto", with_calls),
        "required": ("required", with_calls),
        "auto, no call is right": ("auto", without),
    }
    with serving(model) as (client, name):
        return {
            title: _count([ask(client, name, question, choice, seed) for seed, question in enumerate(asked)])
            for title, (choice, asked) in cases.items()
        }


def _count(outcomes: Sequence[Outcome]) -> Json:
    return {
        "asked": len(outcomes),
        "called": sum(outcome.called for outcome in outcomes),
        "valid": sum(outcome.valid for outcome in outcomes),
        "right_tools": sum(outcome.right_tools for outcome in outcomes),
        "right_arguments": sum(outcome.right_arguments for outcome in outcomes),
    }
