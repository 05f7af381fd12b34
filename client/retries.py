"""When to ask again, and how long to wait before."""

from __future__ import annotations

import random
from collections.abc import Generator
from dataclasses import dataclass
from typing import Any

import httpx

from client.errors import (
    APIConnectionError,
    APIStatusError,
    RateLimitError,
    ServerUnavailableError,
    status_error,
    transport_error,
)

# What can't have been answered in part, and what took no time of the server's.
SAFE_TO_REPEAT = (
    httpx.ConnectError,
    httpx.ConnectTimeout,
    httpx.PoolTimeout,
    httpx.ReadError,
    httpx.WriteError,
    httpx.RemoteProtocolError,
)
BUSY = (RateLimitError, ServerUnavailableError)


@dataclass(frozen=True)
class Retries:
    """Pauses that double, each shortened by up to a half at random, so that clients do not come back together.

    A server that says ``Retry-After`` gets its way, unless it asks for more than ``max_retry_after_seconds``: then the
    caller may decide.
    """

    max_retries: int = 2
    first_seconds: float = 0.25
    max_seconds: float = 8.0
    max_retry_after_seconds: float = 60.0

    def pause(self, num_retries: int, error: APIConnectionError | APIStatusError) -> float | None:
        """Seconds to wait after the error of an attempt that so many retries came before; None is never again."""
        if num_retries >= self.max_retries:
            return None
        asked = error.retry_after if isinstance(error, APIStatusError) else None
        if asked is not None:
            return asked if asked <= self.max_retry_after_seconds else None
        longest = min(self.max_seconds, self.first_seconds * 2.0**num_retries)
        return longest * random.uniform(0.5, 1)  # noqa: S311  nothing secret

    def exchange(
        self, request: httpx.Request, answers: frozenset[int]
    ) -> Generator[httpx.Request | float, Any, httpx.Response]:
        """Yields what to do, the request to send or seconds to sleep; returns the response.

        For a request it is sent the response, whose body has been read unless it is a success, or thrown httpx's error.

        Args:
            answers: statuses beside success that are no errors.

        Raises:
            APIConnectionError: no server answered.
            APIStatusError: the server refused.
        """
        num_retries = 0
        while True:
            error: APIConnectionError | APIStatusError
            cause: httpx.HTTPError | None = None
            try:
                response: httpx.Response = yield request
            except httpx.HTTPError as failure:
                error, cause = transport_error(failure), failure
                may_repeat = isinstance(failure, SAFE_TO_REPEAT)
            else:
                if response.is_success or response.status_code in answers:
                    return response
                error = status_error(response)
                may_repeat = response.headers.get("x-should-retry") != "false" and isinstance(error, BUSY)
            pause = self.pause(num_retries, error) if may_repeat else None
            if pause is None:
                raise error from cause
            yield pause
            num_retries += 1
