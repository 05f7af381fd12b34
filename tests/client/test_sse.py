"""Server-sent events, split at any position."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from client.errors import InvalidReplyError
from client.sse import EventDecoder, ServerSentEvent

EOLS = st.sampled_from(["\n", "\r\n", "\r"])
LINES = st.text(st.characters(exclude_characters="\r\n", exclude_categories=["Cs"]), max_size=8)


def decode(*pieces: bytes, max_event_bytes: int = 1000) -> list[ServerSentEvent]:
    decoder = EventDecoder(max_event_bytes)
    return [event for piece in pieces for event in decoder.feed(piece)]


@pytest.mark.parametrize(
    ("stream", "events"),
    [
        ("data: one\n\n", [ServerSentEvent("one")]),
        ("data:one\r\n\r\n", [ServerSentEvent("one")]),
        ("data:  one\r\r", [ServerSentEvent(" one")]),
        ("data: one\ndata: two\n\n", [ServerSentEvent("one\ntwo")]),
        ("data\n\n", [ServerSentEvent("")]),
        ("event: update\nid: 7\nretry: 10\ndata: {}\n\n", [ServerSentEvent("{}", "update")]),
        (": comment\n\nevent: lost\n\ndata: one\n\n", [ServerSentEvent("one")]),
        ("\ufeffdata: one\n\n", [ServerSentEvent("one")]),
        ("data: a: b\n\n", [ServerSentEvent("a: b")]),
        ("data: no end\n", []),
        ("data: a\u2028b\x85c\n\n", [ServerSentEvent("a\u2028b\x85c")]),  # these are no line ends in this format
    ],
)
def test_events_are_decoded_as_the_standard_requires(stream: str, events: list[ServerSentEvent]) -> None:
    assert decode(stream.encode()) == events


@given(st.lists(st.tuples(LINES, st.lists(LINES, min_size=1, max_size=3)), max_size=5), EOLS, st.data())
def test_splits_change_nothing(events: list[tuple[str, list[str]]], eol: str, data: st.DataObject) -> None:
    """Even within a character, and between CR and LF."""
    stream = "".join(
        f"event: {name}{eol}" + "".join(f"data: {line}{eol}" for line in lines) + eol for name, lines in events
    ).encode()
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=10)))
    pieces = [stream[start:end] for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True)]
    assert decode(*pieces) == [ServerSentEvent("\n".join(lines), name or "message") for name, lines in events]


def test_invalid_utf8_is_replaced() -> None:
    assert decode(b"data: \xff\n\n") == [ServerSentEvent("\N{REPLACEMENT CHARACTER}")]


@pytest.mark.parametrize("stream", [b"data: " + b"x" * 100, b"data: x\n" * 100, b": " + b"x" * 100])
def test_unbounded_lines_and_events_are_refused(stream: bytes) -> None:
    pieces = (stream[place : place + 1] for place in range(len(stream)))
    with pytest.raises(InvalidReplyError, match="exceeds the limit of 50 bytes"):
        decode(*pieces, max_event_bytes=50)
