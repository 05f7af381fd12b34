"""How much of something all requests together may take."""

from dataclasses import dataclass
from types import TracebackType
from typing import Self

from server.api.errors import ServiceUnavailableError


@dataclass
class Room:
    """What is left of it; in the event loop's thread."""

    num_free: int
    refusal: str  # what a request is told for which there is none

    def part(self) -> "Part":
        """Room for one request, which gives it back in the end."""
        return Part(self)


@dataclass
class Part:
    """What one request takes, until it leaves the context or gives it back."""

    room: Room
    num_taken: int = 0

    def take(self, count: int) -> None:
        """Make room for more of it.

        Raises:
            ServiceUnavailableError: there is none now.

        """
        if count > self.room.num_free:
            raise ServiceUnavailableError(self.room.refusal)
        self.room.num_free -= count
        self.num_taken += count

    def give_back(self) -> None:
        """All of it; it may be called again."""
        self.room.num_free += self.num_taken
        self.num_taken = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.give_back()
