"""Long JSON values that are encoded while they grow, since bytes take a small part of the memory of objects."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from server.api.core.json_text.encoding import encode_json, encode_long


class JsonList:
    """A list that keeps the encoding of its members instead of them."""

    def __init__(self, members: Iterable[Any] = ()) -> None:
        self._encoded = bytearray()
        self.extend(members)

    def append(self, member: Any) -> None:
        self.append_encoded(encode_json(member))

    def extend(self, members: Iterable[Any]) -> None:
        for member in members:
            self.append(member)

    def append_encoded(self, member: str) -> None:
        """Append a member that is JSON already."""
        if self._encoded:
            self._encoded += b","
        self._encoded += member.encode()

    def clear(self) -> None:
        self._encoded.clear()

    @property
    def nbytes(self) -> int:
        return len(self._encoded)

    @property
    def encoded(self) -> bytearray:
        """The members without the brackets around them."""
        return self._encoded


def encode_parts(value: Any) -> Iterator[bytes | bytearray]:
    """Yield the encoding of a value in parts. Objects, and lists of them, may have members that are a ``JsonList``."""
    if isinstance(value, JsonList):
        yield b"["
        yield value.encoded
        yield b"]"
    elif isinstance(value, Mapping):
        for number, (name, member) in enumerate(value.items()):
            yield f"{',' if number else '{'}{encode_json(name)}:".encode()
            yield from encode_parts(member)
        yield b"}" if value else b"{}"
    elif isinstance(value, list) and value and isinstance(value[0], Mapping):
        for number, member in enumerate(value):
            yield b"," if number else b"["
            yield from encode_parts(member)
        yield b"]"
    else:
        yield encode_long(value).encode()
