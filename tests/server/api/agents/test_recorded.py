"""Recorded requests of Codex CLI and Claude Code: the first of a conversation, and one after calls of tools.

They come from runs of both programs against this server. Long texts are shortened, most tools are left out, and ids are
zeros.
"""

import json
from pathlib import Path
from typing import Any

import pytest

from server.setting_values import parse_alias
from tests.chat_formats import FAMILIES
from tests.server.api.fakes import MODEL
from tests.server.api.named_events import events_of


@pytest.fixture
def replay(fake, ask):
    """Send a recorded request to a model that writes a call."""
    fake.codec.chat_traits = FAMILIES["hermes"].traits
    fake.engine.max_model_len = 1 << 17
    fake.service.aliases = [parse_alias(f"{pattern}={MODEL}") for pattern in ("gpt-*", "claude-*")]

    def send(name: str, number: int, call: dict[str, Any]):
        fake.engine.texts = tuple(f"<tool_call>\n{json.dumps(call)}\n</tool_call>")
        recorded = json.loads(Path(__file__).with_name(f"{name}.json").read_text("utf-8"))
        headers = recorded.get("headers", {})
        return ask("POST", recorded["path"], json=recorded["bodies"][number], headers=headers)

    return send


def called_names(fake):
    """Return the names of the calls in the last conversation."""
    messages = fake.codec.conversations[-1]
    return [call["function"]["name"] for message in messages for call in message.get("tool_calls", ())]


SPAWN = {"name": "multi_agent_v1__spawn_agent", "arguments": {"message": "Say hi"}}


def test_codex_is_told_that_it_gets_no_web_search(replay):
    response = replay("codex", 0, SPAWN)
    assert response.status_code == 200, response.text
    assert response.headers["x-greenroom-ignored-tools"] == "web_search"


def test_codex_gets_a_call_under_the_name_that_it_gave(replay):
    (call,) = events_of(replay("codex", 0, SPAWN))[-1]["response"]["output"]
    assert (call["name"], call["namespace"]) == ("spawn_agent", "multi_agent_v1")
    assert json.loads(call["arguments"]) == {"message": "Say hi"}


def test_codex_continues_after_calls(fake, replay):
    response = replay("codex", 1, SPAWN)
    assert response.status_code == 200, response.text
    assert called_names(fake) == ["exec_command", "multi_agent_v1__spawn_agent"]


BASH = {"name": "Bash", "arguments": {"command": "ls"}}


def test_claude_code_gets_a_call(replay):
    response = replay("claude_code", 0, BASH)
    assert response.status_code == 200, response.text
    (start,) = [each for each in events_of(response) if each["type"] == "content_block_start"]
    assert (start["content_block"]["type"], start["content_block"]["name"]) == ("tool_use", "Bash")


def test_claude_code_continues_after_a_call(fake, replay):
    response = replay("claude_code", 1, BASH)
    assert response.status_code == 200, response.text
    assert called_names(fake) == ["Bash"]
