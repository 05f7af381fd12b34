"""How much one caller may ask for: requests at the same time, and in a second, a minute or an hour.

A caller is an API key or, where there are none, an address.
"""

import math
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import IPv6Address, IPv6Network, ip_address

from fastapi import Request
from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.api.errors import RateLimitError

MAX_CALLERS = 10_000  # that are remembered
ROUNDING = 1e-6
IPV6_PREFIX = 64  # bits of an address; who has one has them all

RATE_HEADERS = ("x-ratelimit-limit-requests", "x-ratelimit-remaining-requests", "x-ratelimit-reset-requests")


@dataclass(frozen=True)
class RateLimits:
    """Of each caller; None is no limit."""

    max_running: int | None = None
    max_requests: int | None = None  # within ``seconds``, at any moment: what was used comes back bit by bit
    seconds: float = 60.0

    def __bool__(self) -> bool:
        return self.max_running is not None or self.max_requests is not None


@dataclass
class _Caller:
    left: float  # requests that may still come, as of ``when``
    when: float
    num_running: int = 0


class Turnstile:
    """Counts the callers' requests; in the event loop's thread."""

    def __init__(self, limits: RateLimits = RateLimits(), clock: Callable[[], float] = time.monotonic):
        self.limits = limits
        self._clock = clock
        self._callers: OrderedDict[object, _Caller] = OrderedDict()  # whoever asked last is last

    def enter(self, name: object) -> dict[str, str]:
        """Count a request that begins; gives the headers that tell its caller what is left.

        Raises:
            RateLimitError: the caller has to wait.

        """
        limits, caller = self.limits, self._caller(name)
        if limits.max_running is not None and caller.num_running >= limits.max_running:
            raise RateLimitError(f"One key or address may have {limits.max_running} requests running.")
        if limits.max_requests is not None and caller.left < 1 - ROUNDING:
            wait = (1 - caller.left) * limits.seconds / limits.max_requests
            raise RateLimitError(
                f"One key or address may send {limits.max_requests} requests in {limits.seconds:g} seconds.",
                math.ceil(wait - ROUNDING),
                self._headers(caller),
            )
        caller.left -= 1
        caller.num_running += 1
        return self._headers(caller)

    def leave(self, name: object) -> None:
        """Count a request that has ended."""
        if (caller := self._callers.get(name)) is not None:
            caller.num_running -= 1

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


def pass_turnstile(request: Request, turnstile: Turnstile, key: bytes | None) -> None:
    """Count a request until it has ended.

    Args:
        key: that it came with, where one is needed.

    Raises:
        RateLimitError: its caller has to wait.

    """
    if turnstile.limits:
        name = key or caller_address(request)
        request.state.rate_headers = turnstile.enter(name)
        request.state.leave_turnstile = lambda: turnstile.leave(name)


def caller_address(request: Request) -> str:
    """The other end of the socket, or the network that is surely the same customer's."""
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


class TurnstileMiddleware:
    """Lets a request leave the turnstile when it has ended, however it ends, and tells its caller what is left."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        state = scope.setdefault("state", {})

        def leave() -> None:
            if leave_turnstile := state.pop("leave_turnstile", None):
                leave_turnstile()

        async def send_with_rates(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(state.get("rate_headers", {}))
            elif not message.get("more_body", False):
                leave()  # before the client knows that it is over, and asks for more
            await send(message)

        try:
            await self.app(scope, receive, send_with_rates)
        finally:
            leave()
