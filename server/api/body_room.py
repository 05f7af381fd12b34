"""How much all bodies together may take that are being read."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from server.api.errors import ServiceUnavailableError

MAX_BODIES_BYTES = 256 << 20


@dataclass
class BodyRoom:
    """What is left of it; in the event loop's thread."""

    num_free: int = MAX_BODIES_BYTES  # bytes

    @contextmanager
    def part(self) -> Iterator["BodyPart"]:
        """Room for one body, which is given back in the end."""
        part = BodyPart(self)
        try:
            yield part
        finally:
            self.num_free += part.num_bytes


@dataclass
class BodyPart:
    """What one body takes."""

    room: BodyRoom
    num_bytes: int = 0

    def take(self, num_bytes: int) -> None:
        """Make room for more of it.

        Raises:
            ServiceUnavailableError: there is none now.

        """
        if num_bytes > self.room.num_free:
            raise ServiceUnavailableError("The server is reading too many large bodies: try again later.")
        self.room.num_free -= num_bytes
        self.num_bytes += num_bytes
