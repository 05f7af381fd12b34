"""Retries of requests: which failures are worth another try, and how long to wait for it."""

from __future__ import annotations

import random
import re
import time
from collections.abc import Callable, Mapping
from email.utils import parsedate_to_datetime

NUM_TRIES = 6
FIRST_WAIT_SECONDS = 0.25  # doubled after each failure
MAX_WAIT_SECONDS = 60.0
RATE_LIMIT_RESET = re.compile(r";\s*t=([0-9]+)")  # of the header RateLimit: seconds until requests are admitted again
RETRIED = frozenset({408, 425, 429, 500, 502, 503, 504})


def wait_before_retry(
    failures: int,
    headers: Mapping[str, str],
    draw: Callable[[], float] = random.random,  # noqa: S311  (spreads clients; guessing it gains nothing)
    now: float | None = None,
) -> float:
    """Return the seconds to wait: what ``Retry-After`` asks for, or else a random time that grows.

    Args:
        failures: of this request so far, at least 1.
        headers: of the last answer; empty if there was none.
        draw: returns a number from 0 to 1.
        now: Unix time; None for that of the system.
    """
    asked = headers.get("retry-after") or headers.get("ratelimit-reset") or ""
    if not asked and (reset := RATE_LIMIT_RESET.search(headers.get("ratelimit", ""))):
        asked = reset[1]
    if asked.strip().isdigit() and asked.isascii():
        return min(float(asked), MAX_WAIT_SECONDS)
    if asked:
        try:
            left = parsedate_to_datetime(asked).timestamp() - (time.time() if now is None else now)
            return min(max(0.0, left), MAX_WAIT_SECONDS)
        except (ValueError, OverflowError):
            pass  # it is no date: as without the header
    return float(min(MAX_WAIT_SECONDS, FIRST_WAIT_SECONDS * 2.0 ** (failures - 1)) * (0.5 + draw() / 2))
