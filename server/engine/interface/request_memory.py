"""The memory that requests make the server hold: bodies, prompts, logprobs, replies, vectors and images."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable, Generator
from contextlib import closing, suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from server.byte_sizes import format_bytes
from server.engine.interface.errors import EngineUnavailableError, RequestRefusedError
from server.heap import shared_trimmer

DEFAULT_LIMIT_BYTES = 256 << 20  # while the memory is not planned yet
WAIT_SECONDS = 10.0  # longest wait of a request for memory that others hold
POLL_SECONDS = 0.02
ROOM_SECONDS = 0.25  # time between two attempts to make room
LARGE_BYTES = 1 << 20  # less than this may stay in the heap


class RequestMemoryError(EngineUnavailableError):
    """Other requests hold the memory for requests; try again later."""


class RequestMemory:
    """The memory that all requests hold together, within one limit. Thread-safe.

    Args:
        limit: returns the most bytes that requests may hold together.
        make_room: makes room for so many bytes in all, as far as it can now, and returns the bytes that there is room
            for; it may block. By default there is room for the limit.
        wait_seconds: longest wait of a request.
    """

    def __init__(
        self,
        limit: Callable[[], int] = lambda: DEFAULT_LIMIT_BYTES,
        make_room: Callable[[int], int] | None = None,
        wait_seconds: float = WAIT_SECONDS,
    ):
        self._limit, self._make_room = limit, make_room or (lambda _: limit())
        self.wait_seconds = wait_seconds
        self._moving = threading.Lock()  # held while room is made, as ``_room`` must be what was granted last
        self._lock = threading.Lock()  # guards all below; taken after ``_moving``
        self._held = self._used = 0
        self._kept = 0  # bytes that requests used and returned, which the heap may keep until it is trimmed
        self._num_trims = 0  # of the heap, when bytes were returned last
        self._waiting: deque[object] = deque()  # first come, first served
        self._dropped: deque[tuple[int, int]] = deque()  # bytes taken and used, to be returned
        self._caches: list[Callable[[int], None]] = []  # each is asked to drop so many bytes, by any thread
        self._room = self._make_room(0)

    @property
    def held_bytes(self) -> int:
        """Bytes that requests use, or were promised."""
        self._return_dropped()
        return self._held

    @property
    def unused_bytes(self) -> int:
        """Bytes that requests were promised and do not use yet."""
        return max(0, self._held - self._used)

    @property
    def limit_bytes(self) -> int:
        """The most bytes that requests may hold together."""
        return self._limit()

    def reserve(self) -> Reservation:
        """Return an empty reservation for one request."""
        return Reservation(self)

    def follow(self, more_bytes: int = 0) -> None:
        """Make room for what is held and ``more_bytes``, or give up room that is not needed any more. May block."""
        with self._moving:
            wanted = -1
            while self.held_bytes > wanted:  # again if others took more than that while room was made
                kept = self._kept_bytes() if more_bytes else 0
                wanted = self._held + more_bytes + kept
                room = self._make_room(wanted)
                with self._lock:
                    self._room = room
        if kept and room < wanted:
            shared_trimmer().now()
        elif self._kept_bytes(least=LARGE_BYTES if self._held else 1):
            shared_trimmer().soon()

    def add_cache(self, drop: Callable[[int], None]) -> None:
        """Let a cache give what it holds to requests that wait.

        Args:
            drop: drops about so many bytes, now or soon; any thread calls it.
        """
        self._caches.append(drop)

    def try_take(self, nbytes: int, *, beside_kept: bool = False) -> bool:
        """Take bytes if there is room for them now.

        Args:
            beside_kept: only if there is also room for what the heap keeps of earlier requests.
        """
        self._return_dropped()
        with self._lock:
            kept = self._kept_bytes() if beside_kept else 0
            if self._held + kept + nbytes > self._room:
                return False
            self._held += nbytes
            return True

    def take_if_first(self, nbytes: int) -> bool:
        """Take bytes if no other request waits, and there is room for them beside what the heap keeps."""
        return not self._waiting and self.try_take(nbytes, beside_kept=True)

    def attempts(self, nbytes: int) -> Generator[bool]:
        """Try to take bytes, behind all that have waited for longer, until they are taken.

        Yields:
            True if room is to be made before the next attempt, False if it may just be awaited.

        Raises:
            RequestMemoryError: they did not become free in time.
        """
        ticket, ends_at, room_at = object(), time.monotonic() + self.wait_seconds, 0.0
        self._waiting.append(ticket)
        try:
            while self._waiting[0] is not ticket or not self.try_take(nbytes, beside_kept=True):
                now = time.monotonic()
                if now >= ends_at and (room_at or not self._kept_bytes()):  # the heap is trimmed at least once
                    raise self.refusal(nbytes)
                makes_room = now >= room_at and self._waiting[0] is ticket
                if makes_room:
                    room_at = now + ROOM_SECONDS
                    for drop in self._caches:
                        drop(nbytes)
                yield makes_room
        finally:
            self._waiting.remove(ticket)

    def note_used(self, nbytes: int) -> None:
        """Count so many of the held bytes as in use."""
        with self._lock:
            self._used += nbytes

    def give_back(self, taken: int, used: int) -> None:
        """Return bytes that were taken, of which ``used`` were in use."""
        with self._lock:
            self._held -= taken
            self._used -= used
            self._kept = self._kept_bytes(least=0) + used
            self._num_trims = shared_trimmer().num_trims
            is_large = self._kept >= LARGE_BYTES
        if is_large:
            shared_trimmer().soon()

    def drop(self, taken: int, used: int) -> None:
        """Return bytes soon. Finalisers may call it, since it takes no lock that their thread may hold."""
        self._dropped.append((taken, used))

    def _return_dropped(self) -> None:
        with suppress(IndexError):  # when none is left; another thread may take them, too
            while True:
                self.give_back(*self._dropped.popleft())

    def _kept_bytes(self, least: int = LARGE_BYTES) -> int:
        """Return the bytes of earlier requests that the heap may keep; 0 if they are fewer than ``least``."""
        kept = 0 if shared_trimmer().num_trims > self._num_trims else self._kept
        return kept if kept >= least else 0

    def refusal(self, nbytes: int) -> RequestMemoryError:
        """Return the error of a request for which there is no room now."""
        return RequestMemoryError(
            f"the request needs {format_bytes(nbytes)} of memory, and other requests hold {format_bytes(self._held)} "
            f"of the {format_bytes(self.limit_bytes)} for requests: try again later"
        )


@dataclass
class Reservation:
    """The bytes that one request holds until it leaves the context, calls ``release``, or is dropped."""

    memory: RequestMemory
    taken: int = 0
    used: int = 0
    is_released: bool = False

    def check(self, nbytes: int, what: str, param: str | None = None) -> None:
        """Refuse bytes beside those that were taken if the server can never hold so many.

        Raises:
            RequestRefusedError: it can't; the message has both sizes.
        """
        limit = self.memory.limit_bytes
        if self.taken + nbytes > limit:
            raise RequestRefusedError(
                f"{what} may take {format_bytes(self.taken + nbytes)} of memory, but all requests together may hold "
                f"{format_bytes(limit)}: ask for less, or start the server with more --memory",
                param,
            )

    def drop(self) -> None:
        """Return all as ``release`` does, but soon; for finalisers."""
        if not self.is_released:
            self.is_released = True
            self.memory.drop(self.taken, self.used)
            self.taken = self.used = 0

    def take_now(self, nbytes: int) -> bool:
        """Take bytes that will be used later, if there is room for them and no other request waits."""
        if not self.memory.take_if_first(nbytes):
            return False
        self.taken += nbytes
        return True

    async def take(self, nbytes: int, what: str, param: str | None = None) -> None:
        """Take bytes that will be used later, and wait while others hold them.

        Args:
            what: beginning of a sentence that says what needs them.
            param: the field of the body to change.

        Raises:
            RequestRefusedError: the server can never hold so much.
            RequestMemoryError: others hold the memory, and do not return it soon.
        """
        self.check(nbytes, what, param)
        with closing(self.memory.attempts(nbytes)) as attempts:
            for makes_room in attempts:
                if makes_room:
                    await asyncio.to_thread(self.memory.follow, nbytes)
                else:
                    await asyncio.sleep(POLL_SECONDS)
        self.taken += nbytes

    def take_blocking(self, nbytes: int, what: str, param: str | None = None) -> None:
        """Take bytes as ``take`` does, but block the thread."""
        self.check(nbytes, what, param)
        with closing(self.memory.attempts(nbytes)) as attempts:
            for makes_room in attempts:
                if makes_room:
                    self.memory.follow(nbytes)
                else:
                    time.sleep(POLL_SECONDS)
        self.taken += nbytes

    async def use(self, nbytes: int, what: str, param: str | None = None) -> None:
        """Use bytes: first those that were taken, then more as ``take`` does."""
        missing = self.used + nbytes - self.taken
        if missing > 0 and not self.take_now(missing):
            await self.take(missing, what, param)
        self._note(nbytes)

    def use_now(self, nbytes: int) -> bool:
        """Use more bytes than were taken, if there is room for them now and all is not released yet."""
        if self.is_released or not self.memory.try_take(nbytes):
            return False
        self.taken += nbytes
        self._note(nbytes)
        return True

    def use_taken(self) -> None:
        """Use all that was taken."""
        self._note(self.taken - self.used)

    def split(self, nbytes: int) -> Reservation:
        """Return a reservation of its own for so many of the used bytes, or for all if they are fewer."""
        nbytes = min(nbytes, self.used)
        self.taken -= nbytes
        self.used -= nbytes
        return Reservation(self.memory, nbytes, nbytes)

    def give_back(self, nbytes: int) -> None:
        """Return bytes that were used; nothing after ``release``."""
        if self.is_released:
            return
        self.taken -= nbytes
        self.used -= nbytes
        self.memory.give_back(nbytes, nbytes)

    def release(self) -> None:
        """Return all; a second call does nothing."""
        taken, used = self.taken, self.used
        self.taken = self.used = 0
        self.is_released = True
        self.memory.give_back(taken, used)

    def _note(self, nbytes: int) -> None:
        self.used += nbytes
        self.memory.note_used(nbytes)

    def __del__(self) -> None:
        self.drop()  # such as that of a response which was never sent

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.release()
