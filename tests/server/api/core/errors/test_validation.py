"""Values in messages are short, printable and on one line."""

import pytest

from server.api.core.errors.validation import first_problem, quote


@pytest.mark.parametrize("value", ["a" * 10**6, "\n\ud800\x1b", 10**4000, [[[[1] * 99] * 99] * 99], {"a" * 99: [{}]}])
def test_quoted_values_are_printable_and_short(value):
    quoted = quote(value)
    assert len(quoted) < 200
    assert quoted.isprintable()
    quoted.encode()


def test_param_is_a_path_as_openais():
    error = {"type": "missing", "loc": ("body", "messages", 0, "content"), "msg": "", "input": {}}
    assert first_problem([error]) == ("'messages[0].content' is required.", "messages[0].content")


@pytest.mark.parametrize(
    ("kind", "message"),
    [("too_short", "'messages' must not be empty."), ("too_long", "'messages' must hold at most 128 items.")],
)
def test_lists_of_a_wrong_length_are_refused_in_one_sentence(kind, message):
    error = {"type": kind, "loc": ("body", "messages"), "msg": "", "input": [], "ctx": {"max_length": 128}}
    assert first_problem([error]) == (message, "messages")
