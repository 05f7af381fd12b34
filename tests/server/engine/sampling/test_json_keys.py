"""Keys that a text would write twice."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.engine.sampling.json_keys import JsonKeys

VALUES = st.recursive(
    st.none() | st.booleans() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@pytest.mark.slow
@given(st.dictionaries(st.text(), VALUES, min_size=1), st.booleans(), st.sampled_from([None, 2]))
def test_only_the_key_that_is_there_already_repeats(value, is_ascii, indent):
    keys, text = JsonKeys(), json.dumps(value, ensure_ascii=is_ascii, indent=indent)
    assert not keys.push(text.removesuffix("}").encode())
    assert not keys.repeats(b', "' + json.dumps("".join(value) + "x")[1:].encode())
    assert keys.push(b", " + json.dumps(next(iter(value))).encode())


@pytest.mark.slow
@given(st.dictionaries(st.text(), VALUES), st.data())
def test_looking_ahead_changes_nothing(value, data):
    text = json.dumps(value).encode() * 2
    cut = data.draw(st.integers(0, len(text)))
    keys = JsonKeys()
    keys.push(text[:cut])
    keys.repeats(text[cut:])
    assert not keys.push(text[cut:])


@pytest.mark.parametrize(
    "text",
    [
        b'{"a": {"a": 1}, "b": [{"a": 1}, {"a": 2}], "c": "a", "d": ["a", "a"]}',
        b'{"a": 1} {"a": 1}',
        b'{"a" or "a": in prose, {"a": 1}',
        b'{"not closed\n{"a": 1, "b": 2}',
        b'{"a": 1]{"a": 2}',
        b'<tool_call>\n{"name": "f", "arguments": {"name": 1}}\n</tool_call>\n<tool_call>\n{"name": "f"}',
        b"}}]]{}[]",
    ],
)
def test_equal_keys_of_different_objects_do_not_repeat(text):
    assert not JsonKeys().push(text)


@pytest.mark.parametrize(
    "text",
    [
        rb'{"a": 1, "\u0061": 2}',
        b'{"a": {"b": 1}, "a": 2}',
        b'[{"x": 1}, {"b": 1, "b"',
        b'{a: 1} and then {"a": [], "a": 1}',
        '{"é": 1, "\\u00e9": 2}'.encode(),
    ],
)
def test_equal_keys_of_one_object_repeat(text):
    assert JsonKeys().push(text)


@given(st.binary())
def test_any_bytes_are_taken(data):
    JsonKeys().push(b'{"' + data)
