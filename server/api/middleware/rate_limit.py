"""Rate limits: releases the requests that a guard has counted, and adds the rate limit headers."""

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send


class RateLimitMiddleware:
    """Releases a request when it has ended, however it ends, and tells the caller what is left of its limit."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        state = scope.setdefault("state", {})

        def release() -> None:
            if release_rate_limit := state.pop("release_rate_limit", None):
                release_rate_limit()

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(state.get("rate_headers", {}))
            elif not message.get("more_body", False):
                release()  # before the client knows that the response is complete, and sends its next request
            await send(message)

        try:
            await self.app(scope, receive, send_with_headers)
        finally:
            release()
