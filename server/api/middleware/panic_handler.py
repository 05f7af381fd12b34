"""Turns panics of libraries into exceptions, which are answered in the form of the route's dialect."""

from starlette.types import ASGIApp, Receive, Scope, Send

from server.panics import panics_as_errors


class PanicMiddleware:
    """Raises a ``PanicError`` where a handler, or a thread that it waits for, ended in a panic."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with panics_as_errors():
            await self.app(scope, receive, send)
