"""What a chat template makes of tools and of calls, found out by rendering it."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from typing import Any

from .errors import ModelError

Messages = Sequence[dict[str, Any]]
Tools = Sequence[dict[str, Any]]

TOOL, ARGUMENT, VALUE = "greenroom_probe", "greenroom_argument", "greenroom_value"
USER = {"role": "user", "content": "Hello"}
TOOLS: Tools = [
    {
        "type": "function",
        "function": {
            "name": TOOL,
            "description": "A probe.",
            "parameters": {
                "type": "object",
                "properties": {ARGUMENT: {"type": "string", "description": "Any."}},
                "required": [ARGUMENT],
            },
        },
    }
]


@dataclass(frozen=True)
class CallForm:
    """How a template wants the messages that call tools."""

    are_arguments_text: bool = False  # JSON as it was written, instead of the object that it stands for
    is_content_none: bool = False  # beside calls, or the calls are not shown


class ToolTemplate:
    """A template's ways with tools; each is found out once, when it is first asked for.

    Args:
        render: messages and tools to the text of a conversation; a ``ModelError`` is the template's refusal.
    """

    def __init__(self, render: Callable[[Messages, Tools], str]):
        self._render = render

    @cached_property
    def shows_tools(self) -> bool:
        """Whether the model is told of tools at all."""
        system = {"role": "system", "content": "Be brief."}
        return any(TOOL in (self._rendered(messages) or "") for messages in ([USER], [system, USER]))

    @cached_property
    def call_form(self) -> CallForm:
        """The first form of which calls are shown, without a trace of Python's own quotes."""
        forms = [CallForm(*each) for each in product((False, True), repeat=2)]
        return next((form for form in forms if self._shows_calls(form)), forms[0])

    def adapt(self, messages: Messages) -> list[dict[str, Any]]:
        """The messages in the form that the template takes; they come with arguments as JSON."""
        if not any(message.get("tool_calls") for message in messages):
            return list(messages)
        return [_in_form(message, self.call_form) for message in messages]

    def _shows_calls(self, form: CallForm) -> bool:
        call = {
            "id": "probe0001",  # Mistral's have to be of nine letters and digits
            "type": "function",
            "function": {"name": TOOL, "arguments": json.dumps({ARGUMENT: VALUE})},
        }
        asks = {"role": "assistant", "content": "", "tool_calls": [call]}
        answers = {"role": "tool", "tool_call_id": "probe0001", "name": TOOL, "content": "42"}
        text = self._rendered([USER, _in_form(asks, form), answers]) or ""
        return VALUE in text and f"'{ARGUMENT}'" not in text

    def _rendered(self, messages: Messages) -> str | None:
        try:
            return self._render(messages, TOOLS)
        except ModelError:
            return None


def _in_form(message: dict[str, Any], form: CallForm) -> dict[str, Any]:
    calls = message.get("tool_calls")
    if not calls:
        return message
    if not form.are_arguments_text:
        calls = [_with_object(call) for call in calls]
    return message | {"tool_calls": calls, "content": None if form.is_content_none else message["content"]}


def _with_object(call: dict[str, Any]) -> dict[str, Any]:
    function = call["function"]
    return call | {"function": function | {"arguments": json.loads(function["arguments"])}}
