"""A strict JSON reader in Python that makes only short calls, so that other threads run while it reads a large body.

Other decoders hold the interpreter's lock from the first byte to the last, and accept duplicate keys, numbers beyond
the range of floats, and ``NaN``.
"""

import json
import re
from json.decoder import scanstring  # type: ignore[attr-defined]
from typing import Any

MAX_DEPTH = 128
MAX_VALUES = 100_000  # without token ids; each value takes much more memory than its characters
MAX_TOKEN_IDS = 1 << 20  # successive numbers in lists
MAX_DIGITS = 1000
PIECE = 1 << 17  # characters that one call reads

_SPACE = re.compile(rf"[ \t\n\r]{{0,{PIECE}}}")
_NUMBER = re.compile(rf"-?(?:0|[1-9][0-9]{{0,{MAX_DIGITS}}})((?:\.[0-9]{{1,{MAX_DIGITS}}})?(?:[eE][-+]?[0-9]{{1,9}})?)")
_TOKENS = re.compile(r"(?:(?:0|[1-9][0-9]{0,9}),[ \t\n\r]{0,20}){1,8192}")  # a run of token ids
_PAIR = r"\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}"
_CHARACTERS = re.compile(rf'(?:[^"\\]|{_PAIR}|\\u[0-9a-fA-F]{{4}}|\\[^u]){{1,{PIECE}}}')  # never ends inside an escape
_WORDS = {"t": ("true", True), "f": ("false", False), "n": ("null", None)}


class JSONError(ValueError):
    """The text is not valid JSON; the message names the problem and its position."""


class FieldError(JSONError):
    """A value is JSON but not accepted; ``name`` is the outermost key above it."""

    def __init__(self, message: str):
        super().__init__(message)
        self.name: str | None = None


def read_json(data: bytes | bytearray) -> Any:
    """Parse UTF-8 text.

    Raises:
        JSONError: the text is not valid JSON, has duplicate keys or too many values, or is nested too deeply.

    """
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        raise JSONError(f"it is not UTF-8 at byte {error.start}") from error
    reader = _Reader(text)
    value = reader.value(0)
    reader.skip_space()
    if reader.place < len(text):
        raise reader.error("there is more text after the value")
    return value


class _Reader:
    def __init__(self, text: str):
        self.text, self.place = text, 0
        self._num_values = self._num_token_ids = 0

    def error(self, what: str) -> JSONError:
        return JSONError(f"{what} at character {self.place}")

    def skip_space(self) -> None:
        while self.text[self.place : self.place + 1] in {" ", "\t", "\n", "\r"}:
            space = _SPACE.match(self.text, self.place)
            self.place = self.place if space is None else space.end()

    def value(self, depth: int) -> Any:
        self.skip_space()
        self._num_values += 1
        if self._num_values > MAX_VALUES:
            raise FieldError(f"must not hold more than {MAX_VALUES} values")
        if depth > MAX_DEPTH:
            raise FieldError(f"must not be nested deeper than {MAX_DEPTH} levels")
        first = self.text[self.place : self.place + 1]
        if first == '"':
            return self._string()
        if first == "{":
            return self._object(depth)
        if first == "[":
            return self._array(depth)
        if first in _WORDS:
            return self._word(*_WORDS[first])
        return self._number()

    def _word(self, word: str, value: object) -> object:
        if not self.text.startswith(word, self.place):
            raise self.error("a value is expected")
        self.place += len(word)
        return value

    def _number(self) -> int | float:
        match = _NUMBER.match(self.text, self.place)
        if match is None:
            if self.text.startswith(("NaN", "Infinity", "-Infinity"), self.place):
                raise FieldError("must be a finite number")
            raise self.error("a value is expected")
        if self.text[match.end() : match.end() + 1].isdecimal():
            raise FieldError(f"must not have a leading zero or more than {MAX_DIGITS} digits")
        number = float(match[0]) if match[1] else int(match[0])
        if number in {float("inf"), float("-inf")}:
            raise FieldError("must be a finite number")
        self.place = match.end()
        return number

    def _array(self, depth: int) -> list[Any]:
        self.place += 1
        values: list[Any] = []
        if self._ends("]"):
            return values
        while True:
            while (tokens := _TOKENS.match(self.text, self.place)) is not None:
                run = tokens[0].rstrip(", \t\n\r").split(",")
                self._num_token_ids += len(run)
                if self._num_token_ids > MAX_TOKEN_IDS:
                    raise FieldError(f"must not hold more than {MAX_TOKEN_IDS} numbers in lists")
                values += map(int, run)
                self.place = tokens.end()
            values.append(self.value(depth + 1))
            if self._ends("]"):
                return values
            self._expect(",")
            self.skip_space()

    def _object(self, depth: int) -> dict[str, Any]:
        self.place += 1
        values: dict[str, Any] = {}
        if self._ends("}"):
            return values
        while True:
            self.skip_space()
            if not self.text.startswith('"', self.place):
                raise self.error("a name in double quotes is expected")
            name = self._string()
            if name in values:
                raise self.error(f"the name {json.dumps(name[:60])} comes twice in an object")
            self._expect(":")
            try:
                values[name] = self.value(depth + 1)
            except FieldError as error:
                error.name = name
                raise
            if self._ends("}"):
                return values
            self._expect(",")

    def _ends(self, bracket: str) -> bool:
        self.skip_space()
        if not self.text.startswith(bracket, self.place):
            return False
        self.place += 1
        return True

    def _expect(self, sign: str) -> None:
        self.skip_space()
        if not self.text.startswith(sign, self.place):
            raise self.error(f"'{sign}' is expected")
        self.place += 1

    def _string(self) -> str:
        begin = self.place + 1
        end = self.text.find('"', begin)
        is_short = 0 <= end < begin + PIECE and self.text[end - 1] != "\\"
        if is_short or (end > 0 and self.text.find("\\", begin, end) < 0):
            return self._scan(self.text, begin)
        pieces = []
        self.place = begin
        while (characters := _CHARACTERS.match(self.text, self.place)) is not None:
            pieces.append(self._scan(characters[0] + '"', 0, self.place))
            self.place = characters.end()
        pieces.append(self._scan(self.text, self.place))  # the closing quote, or the error
        return "".join(pieces)

    def _scan(self, text: str, begin: int, offset: int = 0) -> str:
        value: str
        try:
            value, end = scanstring(text, begin, True)
        except json.JSONDecodeError as error:
            self.place = error.pos + offset
            raise self.error(error.msg.removesuffix(" at").lower()) from error
        self.place = end
        return value
