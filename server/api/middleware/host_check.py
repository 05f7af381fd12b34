"""Refuses requests whose ``Host`` or ``Origin`` the server does not accept."""

from collections.abc import Callable

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from server.api.core.access.host_rules import HostRules
from server.api.core.errors.api_errors import APIError


class HostMiddleware:
    """Applies the ``HostRules`` to every request, whatever its path.

    Args:
        refusal: returns the response to a request that is refused.

    """

    def __init__(self, app: ASGIApp, rules: HostRules, refusal: Callable[[Request, APIError], Response]) -> None:
        self.app, self.rules, self.refusal = app, rules, refusal

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            hosts = [value for name, value in scope["headers"] if name == b"host"]
            origins = [value for name, value in scope["headers"] if name == b"origin"]
            try:
                self.rules.check(hosts, origins)
            except APIError as error:
                await self.refusal(Request(scope), error)(scope, receive, send)
                return
        await self.app(scope, receive, send)
