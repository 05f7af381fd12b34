"""JSON that ends too early."""

import json

import pytest

from server.api.core.json_text.cut_json import parse_cut

WHOLE = {"city": 'Pa"r\\is\n', "days": [1, -2.5, {"on": True, "off": None}], "é": "\U0001f600"}


@pytest.mark.parametrize("ensure_ascii", [False, True])
def test_every_beginning_of_an_object_is_an_object(ensure_ascii):
    text = json.dumps(WHOLE, ensure_ascii=ensure_ascii)
    for length in range(1, len(text)):
        value, is_cut = parse_cut(text[:length])
        assert is_cut
        assert list(value) == list(WHOLE)[: len(value)]
        json.dumps(value, ensure_ascii=False).encode()
    assert parse_cut(text) == (WHOLE, False)


def test_open_strings_lists_and_objects_end_with_the_text():
    assert parse_cut('{"a": [1, {"b": "Par') == ({"a": [1, {"b": "Par"}]}, True)


@pytest.mark.parametrize("text", ["{city: 1", "{'a", '{"a" 1', '{"a": 1} b', '{"a": 1}}', "Paris"])
def test_text_that_begins_no_value_is_refused(text):
    with pytest.raises(json.JSONDecodeError):
        parse_cut(text)
