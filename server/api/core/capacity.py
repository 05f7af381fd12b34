"""A limit on what all requests together may take of something, such as bytes of bodies."""

from dataclasses import dataclass
from types import TracebackType
from typing import Self

from server.api.core.errors import ServiceUnavailableError


@dataclass
class Capacity:
    """The amount that is free. Use it in the event loop's thread only.

    Args:
        refusal: message for a request that does not fit now.

    """

    num_free: int
    refusal: str

    def reserve(self) -> "Reservation":
        """Return an empty reservation for one request."""
        return Reservation(self)


@dataclass
class Reservation:
    """The amount that one request takes until it leaves the context or calls ``release``."""

    capacity: Capacity
    num_taken: int = 0

    def grow(self, count: int) -> None:
        """Take more.

        Raises:
            ServiceUnavailableError: there is not enough now.

        """
        if count > self.capacity.num_free:
            raise ServiceUnavailableError(self.capacity.refusal)
        self.capacity.num_free -= count
        self.num_taken += count

    def release(self) -> None:
        """Return all that was taken; a second call does nothing."""
        self.capacity.num_free += self.num_taken
        self.num_taken = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.release()
