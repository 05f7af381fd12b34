"""Completion of commands and of their arguments, which the server knows."""

from __future__ import annotations

import pytest
from prompt_toolkit.completion import CompleteEvent
from prompt_toolkit.document import Document

from client import Client
from client.chat.command import arguments
from client.chat.commands import COMMANDS, ChatSession
from client.chat.completion import CommandCompleter
from client.chat.conversation import Conversation
from client.chat.screen import Screen
from tests.client.scripted import ScriptedReply, ScriptedServer, model_list


@pytest.mark.parametrize(
    ("text", "completed"),
    [
        ("/ad", ["/adapters"]),
        ("/model ", ["tiny", "tiny:law", "code", "auto"]),
        ("/model tiny:", ["tiny:law"]),
        ("/adapters ", ["add", "remove"]),
        ("/adapters add ", ["code"]),
        ("/adapters remove p", ["poems"]),
        ("/set min", ["min_p", "min_tokens"]),
        ("/set routing ", ["embedding", "arrow"]),
        ("Is it /model ", []),
    ],
)
def test_what_may_follow_is_completed(scripted: ScriptedServer, text: str, completed: list[str]) -> None:
    scripted.replies = {"/v1/models": [model_list("tiny", "tiny:law", "code", "auto", parent="tiny")]}
    assert completions(scripted.url, text) == completed


def test_a_server_that_fails_completes_nothing(scripted: ScriptedServer) -> None:
    scripted.replies = {"/v1/models": [ScriptedReply(b"{}", status=401)]}
    assert completions(scripted.url, "/model ") == []


def completions(url: str, text: str) -> list[str]:
    with Client(url) as client:
        chat = ChatSession(client, Conversation("tiny", adapters={"poems": 1.0}), Screen(is_plain=True))
        found = CommandCompleter(COMMANDS, arguments(chat)).get_completions(Document(text), CompleteEvent())
        return [completion.text for completion in found]
