"""Encoding of JSON responses, in short calls: the encoder holds the interpreter's lock."""

import json
from collections.abc import Callable
from typing import Any

MEMBERS_PER_CALL = 64  # members of a long list that one call encodes

encode_json = json.JSONEncoder(separators=(",", ":")).encode


def encode_long(value: Any) -> str:
    """Return what ``encode_json`` returns, but encode long lists in several calls, also within objects and lists."""
    if isinstance(value, dict):
        return f"{{{','.join(f'{encode_json(name)}:{encode_long(member)}' for name, member in value.items())}}}"
    if isinstance(value, list) and len(value) > MEMBERS_PER_CALL:
        starts = range(0, len(value), MEMBERS_PER_CALL)
        return f"[{','.join(encode_json(value[start : start + MEMBERS_PER_CALL])[1:-1] for start in starts)}]"
    if isinstance(value, list) and value and isinstance(value[0], dict):  # it may have long lists
        return f"[{','.join(map(encode_long, value))}]"
    return encode_json(value)


class TextTemplate:
    """JSON that is encoded once and differs from then on in one string only.

    Args:
        encode_with: encodes the JSON with a string in place of the one that differs.

    """

    _MARK = "\0text\0"

    def __init__(self, encode_with: Callable[[str], str]) -> None:
        self._before, mark, self._after = encode_with(self._MARK).rpartition(encode_json(self._MARK))
        assert mark

    def encode(self, text: str) -> str:
        """Return the JSON with this string."""
        return f"{self._before}{encode_json(text)}{self._after}"


def around_list(encoded: str, name: str) -> tuple[str, str]:
    """Return the JSON before and after the members of an empty list, which is a member of an encoded object."""
    before, empty, after = encoded.partition(f'"{name}":[]')  # no string in JSON can hold this
    return f"{before}{empty[:-1]}", f"]{after}"
