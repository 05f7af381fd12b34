"""Output of the chat on a terminal, and as plain text."""

from __future__ import annotations

import pytest

from client.chat.screen import Screen


@pytest.mark.parametrize(
    ("is_plain", "shown"),
    [(False, "\x1b[2;3mLet me\x1b[0m\x1b[2;3m think.\x1b[0m\x1b[2;3m\n\n\x1b[0mHello.\nnoted\n"), (True, "Hello.\n")],
)
def test_plain_output_omits_reasoning_and_notes(is_plain: bool, shown: str, capsys: pytest.CaptureFixture[str]) -> None:
    screen = Screen(is_plain=is_plain)
    for reasoning in ("Let me", " think."):
        screen.write_reasoning(reasoning)
        screen.write("")
    screen.write("Hello")
    screen.write_reasoning("")
    screen.write(".")
    screen.end_answer()
    screen.note("noted")
    assert capsys.readouterr().out == shown


def test_an_answer_that_ends_its_line_gets_no_extra_line(capsys: pytest.CaptureFixture[str]) -> None:
    screen = Screen(is_plain=True)
    screen.write("Hello.\n")
    screen.end_answer()
    screen.end_answer()
    assert capsys.readouterr().out == "Hello.\n"


def test_plain_output_is_not_wrapped(capsys: pytest.CaptureFixture[str]) -> None:
    screen = Screen(is_plain=True)
    screen.write("word " * 100)
    screen.end_answer()
    screen.show("name" * 50)
    screen.error("long " * 50)
    out, err = capsys.readouterr()
    assert out == "word " * 100 + "\n" + "name" * 50 + "\n"
    assert err == f"greenroom: {'long ' * 50}\n"
