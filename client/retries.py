"""Retry policy: which failures are retried, and after how long."""

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

# Failures before any part of a reply arrived, and without server time spent on the request.
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
    """Exponential backoff with random jitter of up to half of each pause.

    A ``Retry-After`` header of the server overrides the pause. If it exceeds ``max_retry_after_seconds``, the error is
    raised instead.
    """

    max_retries: int = 2
    first_seconds: float = 0.25
    max_seconds: float = 8.0
    max_retry_after_seconds: float = 60.0

    def pause(self, num_retries: int, error: APIConnectionError | APIStatusError) -> float | None:
        """Return the seconds to wait before the next attempt, or None for no further attempt."""
        if num_retries >= self.max_retries:
            return None
        retry_after = error.retry_after if isinstance(error, APIStatusError) else None
        if retry_after is not None:
            return retry_after if retry_after <= self.max_retry_after_seconds else None
        longest = min(self.max_seconds, self.first_seconds * 2.0**num_retries)
        return longest * random.uniform(0.5, 1)  # noqa: S311  not for security

    def attempts(
        self, request: httpx.Request, accepted_statuses: frozenset[int]
    ) -> Generator[httpx.Request | float, Any, httpx.Response]:
        """Yield the next step, a request to send or seconds to sleep, and return the final response.

        After a request, the caller sends the response into the generator, with its body read unless it is a success, or
        throws httpx's error.

        Args:
            accepted_statuses: Statuses that are no errors, in addition to success.

        Raises:
            APIConnectionError: If no server responded.
            APIStatusError: If the server returned an error.
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
                if response.is_success or response.status_code in accepted_statuses:
                    return response
                error = status_error(response)
                may_repeat = response.headers.get("x-should-retry") != "false" and isinstance(error, BUSY)
            pause = self.pause(num_retries, error) if may_repeat else None
            if pause is None:
                raise error from cause
            yield pause
            num_retries += 1
