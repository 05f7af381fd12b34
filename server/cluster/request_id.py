"""Leaves the id of a request to Serve, which adds it to each response, too."""

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.api.middleware.request_id import REQUEST_ID_HEADER


class OneRequestId:
    """Removes the response's ``X-Request-Id``; Serve has given the application the same one as a header."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_without_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                del MutableHeaders(scope=message)[REQUEST_ID_HEADER]
            await send(message)

        await self.app(scope, receive, send_without_id)
