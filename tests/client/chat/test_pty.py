"""Chat in a terminal: key bindings and their effect on answers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.client.scripted import READY, ScriptedServer, chat_stream, model_list
from tests.client.terminal_session import TerminalSession, terminal_session
from tests.server.api.fakes import MODEL, WAIT_SECONDS, FakeServer

PROMPT = f"{MODEL} · /help"  # toolbar text, shown together with the prompt
CTRL_C, CTRL_D, ENTER, ALT_ENTER = "\x03", "\x04", "\r", "\x1b\r"


@pytest.fixture
def chat(url: str, tmp_path: Path) -> Iterator[TerminalSession]:
    with terminal_session("chat", "--url", url, environment={"XDG_STATE_HOME": str(tmp_path)}) as session:
        session.wait_for("/help lists commands")
        session.wait_for(PROMPT)
        yield session


def questions(fake: FakeServer) -> list[str]:
    return [messages[-1]["content"] for messages in fake.codec.conversations]


def test_ctrl_c_stops_the_answer_but_not_the_program(chat: TerminalSession, fake: FakeServer, tmp_path: Path) -> None:
    fake.engine.holds = True
    chat.type("Hi" + ENTER)
    chat.wait_for("Once upon a time")
    chat.type(CTRL_C)
    assert "stopped · about 4 tokens" in chat.wait_for(PROMPT)
    assert fake.engine.streams[0].cancelled.wait(WAIT_SECONDS)
    fake.engine.holds = False
    chat.type("Go on" + ENTER)
    assert "5 tokens · " in chat.wait_for(PROMPT)
    assert [message["content"] for message in fake.codec.conversations[-1]] == ["Hi", "Once upon a time", "Go on"]
    chat.type("dropped" + CTRL_C)
    chat.wait_for(PROMPT)
    chat.type("/model" + ENTER)
    assert f"* {MODEL}" in chat.wait_for(PROMPT)
    chat.type(CTRL_D)
    assert chat.wait_for_end() == 0
    history = tmp_path / "greenroom" / "chat_history"
    assert history.stat().st_mode & 0o777 == 0o600
    assert [line for line in history.read_text().splitlines() if line.startswith("+")] == ["+Hi", "+Go on", "+/model"]


def test_a_question_goes_to_the_model_of_tab_with_the_added_adapter(tmp_path: Path, scripted: ScriptedServer) -> None:
    scripted.replies = {
        "/ready": [READY],
        "/v1/models": [model_list("tiny", "tiny:law", "code", parent="tiny")],
        "/v1/chat/completions": [chat_stream("Yes.")],
    }
    with terminal_session("chat", "--url", scripted.url, environment={"XDG_STATE_HOME": str(tmp_path)}) as session:
        session.wait_for("tiny · /help")
        session.type("/model tiny:\t")
        session.wait_for("law")
        session.type(ENTER)
        session.wait_for("* tiny:law")
        session.type("/adapters add code 0.5" + ENTER)
        session.wait_for("* code 0.5")
        session.wait_for("tiny:law · +code 0.5 · /help")
        session.type("Hi" + ENTER)
        session.wait_for("Yes.")
        session.wait_for("/help")
        session.type(CTRL_D)
        assert session.wait_for_end() == 0
    sent = scripted.requests[-1][1]
    assert (sent["model"], sent["adapters"]) == ("tiny:law", [{"name": "code", "weight": 0.5}])


def test_questions_of_several_lines(chat: TerminalSession, fake: FakeServer) -> None:
    for keys in ("one" + ALT_ENTER + "two", "one\\" + ENTER + "two", "\x1b[200~one\r\ntwo\x1b[201~"):
        chat.type(keys + ENTER)
        chat.wait_for("5 tokens")
        chat.wait_for(PROMPT)
    assert questions(fake) == ["one\ntwo"] * 3
    chat.type("/quit" + ENTER)
    assert chat.wait_for_end() == 0
