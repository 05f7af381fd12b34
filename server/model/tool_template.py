"""What a chat template makes of tools and of calls, found out by rendering it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from typing import Any, Literal, get_args

from .errors import ModelError

Messages = Sequence[dict[str, Any]]
Tools = Sequence[dict[str, Any]]

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
    """How a template wants the messages that call tools.

    Args:
        ids: of calls: ``any``, ``nine`` letters and digits (Mistral), or with the tool's name in them (Kimi).
        are_arguments_text: JSON as it was written, instead of the object that it stands for.
        is_content_none: beside calls, or the calls are not shown.

    """

    ids: Ids = "any"
    are_arguments_text: bool = False
    is_content_none: bool = False


IDS: tuple[Ids, ...] = get_args(Ids)
FORMS = [CallForm(*each) for each in product(IDS, (False, True), (False, True))]


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
        """The first form in which calls are shown, without a trace of Python's own quotes."""
        return next((form for form in FORMS if self._shows_calls(form)), FORMS[0])

    def adapt(self, messages: Messages) -> list[dict[str, Any]]:
        """The messages in the form that the template takes; they come with arguments as JSON."""
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
    """Messages in the form that a template wants."""
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
