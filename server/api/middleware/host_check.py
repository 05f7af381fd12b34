"""Refuses requests whose ``Host`` or ``Origin`` the server does not accept."""

from fastapi.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from server.api.core.errors import APIError
from server.api.core.host_rules import HostRules


class HostMiddleware:
    """Applies the ``HostRules`` to every request, whatever its path."""

    def __init__(self, app: ASGIApp, rules: HostRules) -> None:
        self.app, self.rules = app, rules

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            hosts = [value for name, value in scope["headers"] if name == b"host"]
            origins = [value for name, value in scope["headers"] if name == b"origin"]
            try:
                self.rules.check(hosts, origins)
            except APIError as error:
                await JSONResponse(error.body, error.status_code, error.headers)(scope, receive, send)
                return
        await self.app(scope, receive, send)
