"""Tool calls and reasoning: parsed from a real engine, and sent back with tool results."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from client import Client
from tests.chat_formats import FAMILIES, HALL, PARIS, TOOLS
from tests.server.live.scripted import serving_family

HERMES = FAMILIES["hermes"]
QUESTION = {"role": "user", "content": "Rain? And light!"}


def test_tool_calls_are_parsed_and_their_results_continue_the_conversation(tmp_path: Path) -> None:
    options: Any = {"tools": TOOLS, "temperature": 0}
    replies = [HERMES.text, "<think></think>No rain."]
    with (
        serving_family(HERMES, replies, tmp_path) as served,
        Client(str(served.base_url).removesuffix("/v1/")) as client,
    ):
        reply = client.chat([QUESTION], **options)
        with client.stream_chat([QUESTION], **options) as stream:
            tokens = list(stream)
        results = [{"role": "tool", "tool_call_id": call.id, "content": "done"} for call in reply.tool_calls]
        second = client.chat([QUESTION, reply.message, *results], **options)
    assert [(call.name, call.arguments) for call in reply.tool_calls] == [PARIS, HALL]
    assert (reply.text, reply.reasoning, reply.finish_reason) == (HERMES.content, HERMES.reasoning, "tool_calls")
    streamed = stream.result
    assert [(call.name, call.arguments) for call in streamed.tool_calls] == [PARIS, HALL]
    assert (streamed.text, streamed.reasoning, streamed.finish_reason) == (reply.text, reply.reasoning, "tool_calls")
    assert sum(len(token.tool_calls) for token in tokens) > len(reply.tool_calls)  # calls arrive in several chunks
    assert (second.text, second.finish_reason) == ("No rain.", "stop")
