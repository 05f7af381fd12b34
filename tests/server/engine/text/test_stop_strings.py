"""Text is sent without any part of a stop string."""

from __future__ import annotations

import random

import pytest

from server.engine.text.detokenizer import WindowDetokenizer
from server.engine.text.stop_strings import TextAssembler
from tests.server.engine.fakes import decode

TEXT = "naïve café — 東京 🎭🎟️ fin"


def pieces(text: str, stop: tuple[str, ...] = (), min_tokens: int = 0) -> tuple[list[str], TextAssembler]:
    """Return the text sent after each byte of a text, and the assembler."""
    assembler = TextAssembler(WindowDetokenizer(decode, (), b"prompt "), stop)
    out = []
    for number, byte in enumerate(text.encode(), start=1):
        out.append(assembler.push(byte, may_stop=number > min_tokens))
        if assembler.is_stopped:
            break
    return [*out, assembler.flush()], assembler


def test_incomplete_characters_are_never_sent() -> None:
    sent, assembler = pieces(TEXT)
    assert "".join(sent) == TEXT
    assert not any("\ufffd" in piece for piece in sent)
    assert assembler.num_characters == len(TEXT)


@pytest.mark.parametrize(
    ("text", "stop", "expected"),
    [
        ("one two three", ("two",), "one "),
        ("one two three", ("three", "two"), "one "),
        ("one twofold", ("two three",), "one twofold"),
        ("aaab", ("aab",), "a"),
        ("ends with tw", ("two",), "ends with tw"),
        ("日本語", ("本",), "日"),
    ],
)
def test_stop_strings(text: str, stop: tuple[str, ...], expected: str) -> None:
    sent, assembler = pieces(text, stop)
    assert "".join(sent) == expected
    assert assembler.is_stopped == (expected != text)
    assert assembler.stopped_by in (stop if assembler.is_stopped else (None,))


def test_the_stop_string_that_ended_a_text_is_reported() -> None:
    """It is the one completed first, and of two that end together the longer one."""
    for stop, expected in ((("three", "two"), "two"), (("wo", "two"), "two"), (("four",), None)):
        _, assembler = pieces("one two three", stop)
        assert assembler.stopped_by == expected


@pytest.mark.parametrize(
    ("min_tokens", "expected"),
    [(3, "xx"), (4, "xxabx"), (5, "xxabx"), (6, "xxabx"), (7, "xxabxabz"), (9, "xxabxabz")],
)
def test_a_stop_string_completed_before_min_tokens_is_text(min_tokens: int, expected: str) -> None:
    """The first is completed by token 4, the second by token 7; either may begin before ``min_tokens``."""
    sent, _ = pieces("xxabxabz", ("ab", "abxq"), min_tokens)
    assert "".join(sent) == expected


def test_the_stop_string_completed_first_ends_the_text_for_any_tokenisation() -> None:
    assembler = TextAssembler(WindowDetokenizer(lambda ids: "xaby" * len(ids), (), ()), ("xaby", "ab"))
    assert assembler.push(0) == "x"


def test_random_texts_and_stops_agree_with_a_plain_search() -> None:
    rng = random.Random(0)
    for _ in range(300):
        text = "".join(rng.choice("abé") for _ in range(30))
        stop = tuple("".join(rng.choice("abé") for _ in range(rng.randint(1, 6))) for _ in range(2))
        ends = [text.encode().find(s.encode()) + len(s.encode()) for s in stop if s in text]
        sent, _ = pieces(text, stop)
        # The stop string that is complete first ends the text, before its own first character.
        end = min(ends, default=None)
        seen = text if end is None else text.encode()[:end].decode()
        starts = [seen.find(s) for s in stop if s in seen]
        assert "".join(sent) == (seen[: min(starts)] if starts else text)
