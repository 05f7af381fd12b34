"""Detects how a chat template shows tools and expects tool calls and system messages, by rendering probes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from typing import Any, Literal, get_args

from server.model.errors import ModelError
from server.model.text.later_system import has_later_system, later_system_as_user

Messages = Sequence[dict[str, Any]]
Tools = Sequence[dict[str, Any]]

LATER = "greenroom_later"
TOOL, CALLED, ARGUMENT, VALUE = "greenroom_probe", "greenroom_called", "greenroom_argument", "greenroom_value"
USER = {"role": "user", "content": "Hello"}
TOOLS: Tools = [
    {
        "type": "function",
        "function": {
            "name": TOOL,
            "description": "A probe.",
            "parameters": {
                "type": "object",
                "properties": {"probed": {"type": "string", "description": "Any."}},
                "required": ["probed"],
            },
        },
    }
]


Ids = Literal["any", "nine", "named"]


@dataclass(frozen=True)
class CallForm:
    """The form in which a template expects messages that call tools.

    Args:
        ids: ids of calls: ``any``, ``nine`` letters and digits (Mistral), or ``named`` after the tool (Kimi).
        are_arguments_text: arguments are JSON text instead of an object.
        is_content_none: content must be None in messages with calls, or the calls are not shown.
    """

    ids: Ids = "any"
    are_arguments_text: bool = False
    is_content_none: bool = False


IDS: tuple[Ids, ...] = get_args(Ids)
FORMATTERS = [CallForm(*each) for each in product(IDS, (False, True), (False, True))]


class ToolTemplate:
    """The tool format of a chat template; each property is detected once, at its first use.

    Args:
        render: renders messages and tools to text; raises a ``ModelError`` if the template refuses them.
    """

    def __init__(self, render: Callable[[Messages, Tools], str]):
        self._render = render

    @cached_property
    def shows_tools(self) -> bool:
        """True if the template shows tools to the model."""
        system = {"role": "system", "content": "Be brief."}
        return any(TOOL in (self._rendered(messages) or "") for messages in ([USER], [system, USER]))

    @cached_property
    def call_form(self) -> CallForm:
        """The first form in which the template shows calls, without Python's quotes around names."""
        return next((form for form in FORMATTERS if self._shows_calls(form)), FORMATTERS[0])

    @cached_property
    def shows_later_system(self) -> bool:
        """True if the template shows a system message that follows others."""
        return LATER in (self._rendered([USER, {"role": "system", "content": LATER}]) or "")

    def adapt(self, messages: Messages) -> list[dict[str, Any]]:
        """Convert messages, whose arguments are JSON text, to the form that the template expects."""
        if has_later_system(messages) and not self.shows_later_system:
            messages = later_system_as_user(messages)
        if not any(message.get("tool_calls") for message in messages):
            return list(messages)
        return in_form(messages, self.call_form)

    def _shows_calls(self, form: CallForm) -> bool:
        call_id = "call_0123456789abcdef01234567"
        call = {
            "id": call_id,
            "type": "function",
            "function": {"name": CALLED, "arguments": json.dumps({ARGUMENT: VALUE})},
        }
        asks = {"role": "assistant", "content": "", "tool_calls": [call]}
        answers = {"role": "tool", "tool_call_id": call_id, "name": TOOL, "content": "42"}
        text = self._rendered(in_form([USER, asks, answers], form)) or ""
        return CALLED in text and VALUE in text and f"'{ARGUMENT}'" not in text

    def _rendered(self, messages: Messages) -> str | None:
        try:
            return self._render(messages, TOOLS)
        except ModelError:
            return None


def in_form(messages: Messages, form: CallForm) -> list[dict[str, Any]]:
    """Convert messages to the form that a template expects."""
    ids: dict[str, str] = {}
    adapted = []
    for message in messages:
        if calls := message.get("tool_calls"):
            for call in calls:
                ids[call["id"]] = _id_in_form(call, len(ids), form)
            calls = [_call_in_form(call, ids, form) for call in calls]
            content = None if form.is_content_none else message["content"]
            adapted.append(message | {"tool_calls": calls, "content": content})
        elif message["role"] == "tool":
            adapted.append(message | {"tool_call_id": ids.get(message["tool_call_id"], message["tool_call_id"])})
        else:
            adapted.append(message)
    return adapted


def _id_in_form(call: dict[str, Any], number: int, form: CallForm) -> str:
    call_id: str = call["id"]
    if form.ids == "named" and not call_id.startswith("functions."):
        return f"functions.{call['function']['name']}:{number}"
    if form.ids == "nine" and not (len(call_id) == 9 and call_id.isalnum()):  # noqa: PLR2004
        return hashlib.sha256(call_id.encode()).hexdigest()[:9]
    return call_id


def _call_in_form(call: dict[str, Any], ids: dict[str, str], form: CallForm) -> dict[str, Any]:
    function = call["function"]
    if not form.are_arguments_text:
        function = function | {"arguments": json.loads(function["arguments"])}
    return call | {"id": ids[call["id"]], "function": function}
