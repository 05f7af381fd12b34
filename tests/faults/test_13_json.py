"""JSON: depth, NaN, duplicate names, lone surrogates, NUL, invalid UTF-8, no object, another content type."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.api.core.json_text.reader import MAX_DEPTH, PIECE, JSONError, read_json
from tests.server.live.conftest import FakeServer
from tests.server.live.requests import ask, error_of, post_bytes, status_of

PROMPT = b'"prompt": [97], "max_tokens": 1'


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"[" * 100_000 + b"]" * 100_000, "The body must not be nested deeper than 128 levels."),
        (
            b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
            "'a' must not be nested deeper than 128 levels.",
        ),
        (b'{"a":' * 100_000, "'a' must not be nested deeper than 128 levels."),
        (b'{"temperature": NaN, %s}' % PROMPT, "'temperature' must be a finite number."),
        (b'{"unknown": {"a": [-Infinity]}, %s}' % PROMPT, "'unknown' must be a finite number."),
        (b'{"unknown": 1e999, %s}' % PROMPT, "'unknown' must be a finite number."),
        (b'{"n": %s, %s}' % (b"9" * 1_000_000, PROMPT), "'n' must not have a leading zero or more than 1000 digits."),
        (
            b'{"max_tokens": 2, %s}' % PROMPT,
            'The body is not valid JSON: the name "max_tokens" comes twice in an object at character 46.',
        ),
        (
            b'{"user": "\\ud800", %s}' % PROMPT,
            "The body contains half a surrogate pair: send valid Unicode.",
        ),
        (
            b'{"stop": "\\udc00", %s}' % PROMPT,
            "'stop' must hold valid Unicode strings only, none of them empty.",
        ),
        (b'{"model": "\xff"}', "The body is not valid JSON: it is not UTF-8 at byte 11."),
        (b'{"model": "\xed\xa0\x80"}', "The body is not valid JSON: it is not UTF-8 at byte 11."),
        (b'{"model": "a\x00b"}', "The body is not valid JSON: invalid control character at character 12."),
        (b"\x00", "The body is not valid JSON: a value is expected at character 0."),
        (b"\xef\xbb\xbf{}", "The body is not valid JSON: a value is expected at character 0."),
        (b"{%s} {}" % PROMPT, "The body is not valid JSON: there is more text after the value at character 34."),
        (b"{'prompt': 1}", "The body is not valid JSON: a name in double quotes is expected at character 1."),
        (b"[]", "The body must be a JSON object, sent as application/json."),
        (b'"text"', "The body must be a JSON object, sent as application/json."),
        (b"1", "The body must be a JSON object, sent as application/json."),
        (b"null", "The body must be a JSON object, sent as application/json."),
        (b"", "The body must be a JSON object, sent as application/json."),
    ],
    ids=lambda value: value[:20] if isinstance(value, bytes) else "",
)
def test_a_body_that_can_not_be_used_says_what_is_wrong(shared_live: FakeServer, body: bytes, message: str) -> None:
    answer = ask(shared_live.port, post_bytes("/v1/completions", body))
    assert (status_of(answer), error_of(answer)["message"]) == (400, message)


def test_nul_in_a_model_name_is_escaped(shared_live: FakeServer) -> None:
    answer = ask(shared_live.port, post_bytes("/v1/completions", b'{"model": "a\\u0000b\\r\\nc", %s}' % PROMPT))
    assert status_of(answer) == 404
    assert r"'a\x00b\r\nc'" in error_of(answer)["message"]


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "application/jsonp", "", "json"])
def test_another_content_type_is_415(shared_live: FakeServer, kind: str) -> None:
    answer = ask(shared_live.port, post_bytes("/v1/completions", b"{%s}" % PROMPT, kind))
    assert (status_of(answer), f"'{kind}'" in error_of(answer)["message"]) == (415, True)


@pytest.mark.parametrize("kind", ["application/json", "application/json; charset=utf-8", "Application/JSON;x=y"])
def test_json_of_any_spelling_is_accepted(shared_live: FakeServer, kind: str) -> None:
    assert status_of(ask(shared_live.port, post_bytes("/v1/completions", b"{%s}" % PROMPT, kind))) == 200


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**30), 10**30)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


@pytest.mark.slow
@given(VALUES, st.booleans(), st.sampled_from([None, 3]))
def test_json_that_the_standard_library_writes_is_read(value: object, ascii_only: bool, indent: int | None) -> None:
    assert read_json(json.dumps(value, ensure_ascii=ascii_only, indent=indent).encode()) == value


@given(st.binary(max_size=40) | st.text(alphabet='[]{}",:0123eE+-.\\u tfn', max_size=40).map(str.encode))
def test_json_that_the_standard_library_refuses_is_refused(data: bytes) -> None:
    try:
        value = read_json(data)
    except JSONError:
        return
    assert value == json.loads(data)


@pytest.mark.slow
@pytest.mark.parametrize("unit", ["a", "\\n", '\\"', "\\\\", "\\u4e2d", "\\ud83d\\ude00", "é", "ab\\/", "\\ud800"])
@pytest.mark.parametrize("shift", ["", "x", "xy", "xyz"])
def test_long_strings_are_read_like_short_ones(unit: str, shift: str) -> None:
    """No part ends within an escape, or between the halves of a character."""
    text = f'["{shift}{unit * (2 * PIECE // len(unit) + 5)}", 1]'
    assert read_json(text.encode()) == json.loads(text)


def test_token_ids_are_read_run_by_run() -> None:
    text = json.dumps([*range(20_000), "x", -1, 1.5, 10**10, [], *range(9)])
    assert read_json(text.encode()) == json.loads(text)
    assert read_json(b"[1,2,\n 3 , 4]") == [1, 2, 3, 4]
    with pytest.raises(JSONError, match="a value is expected"):
        read_json(b"[1,2,]")


def test_depth_up_to_the_limit_is_read() -> None:
    assert read_json(b"[" * MAX_DEPTH + b"1" + b"]" * MAX_DEPTH)
