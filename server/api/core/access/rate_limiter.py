"""Limits of what one caller may send: requests that run at the same time, and requests in a period.

A caller is an API key or, if the server has no keys, an address.
"""

import math
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import IPv6Address, IPv6Network, ip_address

from fastapi import Request

from server.api.core.errors.api_errors import RateLimitError

MAX_CALLERS = 10_000  # callers that are remembered
ROUNDING = 1e-6
IPV6_PREFIX = 64  # bits; one customer usually owns all addresses with the same prefix

RATE_HEADERS = ("x-ratelimit-limit-requests", "x-ratelimit-remaining-requests", "x-ratelimit-reset-requests")


@dataclass(frozen=True)
class RateLimits:
    """Limits for each caller; None is no limit."""

    max_running: int | None = None
    max_requests: int | None = None  # in ``seconds``; a token bucket, which refills continuously
    seconds: float = 60.0

    def __bool__(self) -> bool:
        return self.max_running is not None or self.max_requests is not None


@dataclass
class _Caller:
    left: float  # tokens in the bucket, as of ``when``
    when: float
    num_running: int = 0


class RateLimiter:
    """Counts the requests of each caller. Use it in the event loop's thread only."""

    def __init__(self, limits: RateLimits = RateLimits(), clock: Callable[[], float] = time.monotonic):
        self.limits = limits
        self._clock = clock
        self._callers: OrderedDict[object, _Caller] = OrderedDict()  # in the order of their last requests

    def enter(self, name: object) -> dict[str, str]:
        """Count a request that begins, and return response headers with the caller's limit and what is left of it.

        Raises:
            RateLimitError: the caller has to wait.

        """
        limits, caller = self.limits, self._caller(name)
        if limits.max_running is not None and caller.num_running >= limits.max_running:
            raise RateLimitError(
                f"At most {limits.max_running} requests of one key or address may run at a time: wait for one to end."
            )
        if limits.max_requests is not None and caller.left < 1 - ROUNDING:
            wait = (1 - caller.left) * limits.seconds / limits.max_requests
            raise RateLimitError(
                f"One key or address may send {limits.max_requests} requests in {limits.seconds:g} seconds: "
                "try again later.",
                math.ceil(wait - ROUNDING),
                self._headers(caller),
            )
        caller.left -= 1
        caller.num_running += 1
        return self._headers(caller)

    def add(self, name: object, num_more: int, *, takes_less: bool = False) -> int:
        """Count more that runs for a request that has begun, such as further choices; return how many were counted.

        Args:
            takes_less: count what the limit leaves, instead of raising an error.

        Raises:
            RateLimitError: the caller has to wait.

        """
        most, caller = self.limits.max_running, self._caller(name)
        num_left = num_more if most is None else most - caller.num_running
        if num_left < num_more and not takes_less:
            raise RateLimitError(
                f"At most {most} requests of one key or address may run at a time, and each choice counts as one: "
                "wait for one to end."
            )
        count = max(0, min(num_more, num_left))
        caller.num_running += count
        return count

    def leave(self, name: object, count: int = 1) -> None:
        """Count the end of a request, and of what ``add`` has counted for it."""
        if (caller := self._callers.get(name)) is not None:
            caller.num_running -= count

    def _caller(self, name: object) -> _Caller:
        now, most = self._clock(), self.limits.max_requests or math.inf
        caller = self._callers.setdefault(name, _Caller(most, now))
        self._callers.move_to_end(name)
        if most < math.inf:
            caller.left = min(most, caller.left + (now - caller.when) * most / self.limits.seconds)
        caller.when = now
        if len(self._callers) > MAX_CALLERS:
            idle = next((each for each, found in self._callers.items() if not found.num_running), name)
            del self._callers[idle]
        return caller

    def _headers(self, caller: _Caller) -> dict[str, str]:
        most = self.limits.max_requests
        if most is None:
            return {}
        until_full = (most - caller.left) * self.limits.seconds / most
        values = (str(most), str(max(0, int(caller.left + ROUNDING))), f"{math.ceil(until_full - ROUNDING)}s")
        return dict(zip(RATE_HEADERS, values, strict=True))


def caller_address(request: Request) -> str:
    """Return the address of the client, or its network in the case of IPv6."""
    client = request.scope["client"]
    try:
        address = ip_address(client[0])
    except (ValueError, TypeError):
        return "unknown"
    if not isinstance(address, IPv6Address):
        return str(address)
    if address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    return str(IPv6Network((address, IPV6_PREFIX), strict=False))
