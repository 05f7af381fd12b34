"""Keys of the JSON objects in a text, to keep a model from writing one twice. Torch-free."""

from __future__ import annotations

import json
import re
from enum import IntEnum, auto

SPACE = b" \t\r\n"
SCALAR = frozenset(b"+-.0123456789abcdefghijklmnopqrstuvwxyzE")  # bytes of numbers, true, false and null
FIRST_OF_TEXT = 0x20
HIGH_SURROGATE = re.compile(rb"\xed[\xa0-\xaf][\x80-\xbf]\Z")  # a second one makes it another character


class Place(IntEnum):
    """Position in JSON."""

    OUTSIDE = auto()  # outside of any object
    FIRST_KEY = auto()
    NEXT_KEY = auto()
    KEY = auto()
    COLON = auto()
    FIRST_ITEM = auto()
    VALUE = auto()
    STRING = auto()
    SCALAR = auto()
    AFTER_VALUE = auto()


def decode_key(text: bytes) -> bytes | None:
    """Return a key as UTF-8, in which equal keys are equal; None if the text between its quotes is not JSON."""
    try:
        key: str = json.loads(b'"' + text + b'"')
    except ValueError:
        return None
    return key.encode(errors="surrogatepass")


class JsonKeys:
    """Follows a text, which may hold anything besides JSON; what is not JSON after all is ignored."""

    def __init__(self) -> None:
        self._place = Place.OUTSIDE
        self._open: list[frozenset[bytes] | None] = []  # keys of each open object, or None for an array
        self._key = b""  # the part read so far, without quotes
        self._is_escaped = False

    @property
    def may_repeat(self) -> bool:
        """True if there is a key that the next key may repeat."""
        return bool(self.own_keys) if self.is_in_key else any(self._open)

    @property
    def is_in_key(self) -> bool:
        return self._place == Place.KEY

    @property
    def own_keys(self) -> frozenset[bytes]:
        """The keys of the innermost object, decoded."""
        return (self._open[-1] if self._open else None) or frozenset()

    @property
    def all_keys(self) -> list[bytes]:
        """The keys of all open objects, decoded."""
        return [key for keys in self._open for key in keys or ()]

    @property
    def begun(self) -> bytes | None:
        """The part of the key that was read, decoded; None within an escape sequence, or if the rest may change it."""
        if not self.is_in_key:
            return b""
        if b"\\" not in self._key:
            return self._key
        key = None if self._is_escaped else decode_key(self._key)
        return None if key is None or HIGH_SURROGATE.search(key) else key

    def repeats(self, text: bytes) -> bool:
        """Return whether the text, if it comes next, would complete a key that its object has already."""
        ahead = JsonKeys()
        ahead._place, ahead._open = self._place, list(self._open)
        ahead._key, ahead._is_escaped = self._key, self._is_escaped
        return ahead.push(text)

    def push(self, text: bytes) -> bool:
        """Add text; return whether it completes a key that its object has already."""
        return sum(map(self._add, text)) > 0

    def _add(self, byte: int) -> bool:
        if self._place in (Place.KEY, Place.STRING):
            return self._add_to_string(byte)
        if self._place == Place.SCALAR and byte not in SCALAR:
            self._place = Place.AFTER_VALUE
        if byte in SPACE or self._place == Place.SCALAR:
            return False
        if not self._follow(byte):
            self._open.clear()
            self._place = Place.OUTSIDE
            if byte == ord("{"):
                self._begin_object()
        return False

    def _add_to_string(self, byte: int) -> bool:
        if byte < FIRST_OF_TEXT:
            self._open.clear()
            self._place = Place.OUTSIDE
        elif byte == ord('"') and not self._is_escaped:
            return self._end_string()
        else:
            self._is_escaped = byte == ord("\\") and not self._is_escaped
            if self._place == Place.KEY:
                self._key += bytes([byte])
        return False

    def _end_string(self) -> bool:
        if self._place == Place.STRING:
            self._place = Place.AFTER_VALUE
            return False
        self._place = Place.COLON
        key = decode_key(self._key)
        if key is None:
            return False
        keys = self._open[-1] or frozenset()
        self._open[-1] = keys | {key}
        return key in keys

    def _follow(self, byte: int) -> bool:
        """Advance by a byte that is not in a string or a scalar; return False if it is not JSON there."""
        match self._place, chr(byte):
            case ((Place.FIRST_KEY | Place.NEXT_KEY), '"'):
                self._place, self._key, self._is_escaped = Place.KEY, b"", False
            case Place.COLON, ":":
                self._place = Place.VALUE
            case ((Place.VALUE | Place.FIRST_ITEM), '"'):
                self._place, self._is_escaped = Place.STRING, False
            case ((Place.VALUE | Place.FIRST_ITEM), "{"):
                self._begin_object()
            case ((Place.VALUE | Place.FIRST_ITEM), "["):
                self._open.append(None)
                self._place = Place.FIRST_ITEM
            case Place.AFTER_VALUE, ",":
                self._place = Place.VALUE if self._open[-1] is None else Place.NEXT_KEY
            case ((Place.FIRST_KEY | Place.AFTER_VALUE), "}") | ((Place.FIRST_ITEM | Place.AFTER_VALUE), "]"):
                if (self._open.pop() is None) != (byte == ord("]")):
                    return False
                self._place = Place.AFTER_VALUE if self._open else Place.OUTSIDE
            case ((Place.VALUE | Place.FIRST_ITEM), _) if byte in SCALAR:
                self._place = Place.SCALAR
            case _:
                return False
        return True

    def _begin_object(self) -> None:
        self._open.append(frozenset())
        self._place = Place.FIRST_KEY
