"""The tokens that repeat a key are the same as if each token were read."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.engine.sampling.json_keys import JsonKeys
from server.engine.sampling.key_tokens import KeyTokens

# Few keys and many spellings, so that random texts repeat keys often.
KEYS = ["a", "b", "ab", "é", "\n", "", ",", ":", "\U0001f600", "\ud83d", '"', "\\"]
SPELLINGS = [
    *(key.encode(errors="surrogatepass") for key in KEYS if key not in ('"', "\\", "\n")),
    *(json.dumps(key)[1:-1].encode() for key in KEYS),
    rb"\u0061",
    rb"\u00e9",
    rb"\ud83d",
    rb"\ude00",
    b"\xc3",
    b"\xa9",
    b"\\",
    b"\\u00",
    b"61",
    b"\x01",
]
PARTS = [*SPELLINGS, b'"', b'"', b'"', b'":', b": ", b'", "', b"{", b"}", b"[", b"]", b",", b"1", b"true", b" "]
TOKENS = st.lists(st.sampled_from(PARTS), min_size=1, max_size=7).map(b"".join)
MEMBERS = st.lists(
    st.tuples(st.sampled_from(SPELLINGS), st.sampled_from([b"1", b'"a"', b'{"a": 1}', b"[]"])), max_size=4
)
TEXTS = st.one_of(
    MEMBERS.map(lambda members: b"{" + b", ".join(b'"' + key + b'": ' + value for key, value in members)),
    st.lists(st.sampled_from(PARTS), max_size=12).map(b"".join),
)


def repeating(tokens, text, allowed=None):
    """Return the tokens that are found, and those that are found by reading each."""
    keys = JsonKeys()
    keys.push(text)
    mask = np.ones(len(tokens), np.bool_) if allowed is None else allowed
    plain = {n for n, token in enumerate(tokens) if keys.may_repeat and keys.repeats(token)}
    return {*KeyTokens(tokens).repeating(keys, mask).tolist()}, {n for n in plain if mask[n]}


@pytest.mark.slow
@given(st.lists(TOKENS, min_size=1, max_size=40), st.lists(TEXTS, min_size=1, max_size=3).map(b", ".join), TOKENS)
def test_they_are_those_that_reading_each_token_finds(tokens, text, more):
    for state in (text, text + b', "', text + more, text + b', "' + more, text + b', "a": "', text + b', "x": {"'):
        found, plain = repeating(tokens, state)
        assert found == plain


@pytest.mark.parametrize(
    ("text", "token"),
    [
        (b'{"a": 1, "', b'a"'),
        (b'{"a": 1, "', b'\\u0061": 2'),
        (b'{"\xc3\xa9": 1, "\xc3', b'\xa9":'),
        (b'{"\\ud83d\\ude00": 1, "\\ud83d', b'\\ude00"'),
        (b'{"a": 1, "\\', b'u0061"'),
        (b'{"a": 1, "b', b'":2,"b"'),
        (b'{"a": 1, "b', b'c":2,"bc"'),
        (b'{"a": 1, ', b'"a":'),
        (b'{"a": 1, ', b'"\\u0061":'),
        (b'{"\xc3\xa9b": 1, "\xc3', b'\xa9\\u0062"'),
        (b'{"a": 1', b',"a"'),
        (b'{"a": "x', b'","a"'),
        (b'{"a": {"b": "x', b'"},"a"'),
        (b'{"a": ', b'{"b":1,"b"'),
        (b'{"\\"": 1, "', b'\\""'),
    ],
)
def test_a_token_that_repeats_a_key_is_found(text, token):
    assert repeating([b"x", token], text) == ({1}, {1})


def test_only_allowed_tokens_are_found():
    tokens = [b'a"', b'a":', b'b"']
    assert repeating(tokens, b'{"a": 1, "', np.array([False, True, True])) == ({1}, {1})
