"""Word wrap of text in arbitrary chunks."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len

from client.chat.wrapping import WordWrap

TEXTS = st.text(st.sampled_from("ab cd  e\n漢字é.\t"), max_size=60)
ERASE = re.compile(r"\x1b\[(\d+)D\x1b\[K")


def seen(shown: str) -> str:
    """Return the text that a terminal shows."""
    text = ""
    for part in re.split(r"(?=\x1b\[\d)", shown):
        erased = ERASE.match(part)
        for _ in range(int(erased.group(1)) if erased else 0):
            assert text[-1] not in " \n"
            text = text[:-1]  # erased words have no wide characters
        text += ERASE.sub("", part)
    return text


def wrap(*pieces: str, width: int) -> str:
    wrapping = WordWrap()
    return seen("".join(wrapping.feed(piece, width) for piece in pieces))


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("one two three four", ["one two ", "three four"]),
        ("one two three\n  four", ["one two ", "three", "  four"]),
        ("exactly tens", ["exactly ", "tens"]),
        ("ten spaces          more", ["ten spaces", "more"]),
        ("abcdefghijklm no", ["abcdefghij", "klm no"]),
        ("漢字漢字漢字", ["漢字漢字漢", "字"]),
        ("\n\n\ta", ["", "", "    a"]),
    ],
)
def test_lines_end_between_words(text: str, lines: list[str]) -> None:
    assert wrap(text, width=11).split("\n") == lines


def test_a_word_is_shown_as_it_arrives() -> None:
    wrapping = WordWrap()
    assert wrapping.feed("I under", 11) == "I under"
    assert wrapping.feed("stand", 11) == "\x1b[5D\x1b[K\nunderstand"
    assert wrapping.feed(" me", 11) == "\nme"


@given(TEXTS, st.integers(3, 12), st.data())
def test_no_text_is_lost_lines_fit_and_splits_change_nothing(text: str, width: int, data: st.DataObject) -> None:
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=8)))
    pieces = [text[start:end] for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    shown = wrap(*pieces, width=width)
    assert shown == wrap(text, width=width)
    assert "".join(shown.split()) == "".join(text.split())
    assert all(cell_len(line) < width for line in shown.split("\n"))
