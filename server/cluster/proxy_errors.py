"""Errors of Serve's proxies in the form of the request's dialect, where an ingress is gone.

Serve's own are plain text, and it cuts a stream whose ingress has died. Serve calls ``middlewares`` in each proxy if
``RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH`` names it.
"""

from __future__ import annotations

import json

from starlette.datastructures import Headers
from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.api.anthropic.errors import error_body as anthropic_body
from server.api.core.errors.api_errors import APIError, RateLimitError, ServiceUnavailableError
from server.api.core.replies.json_lines import JSON_LINES, json_line
from server.api.core.replies.server_sent_events import EVENT_STREAM, sse
from server.api.middleware.request_id import REQUEST_ID_HEADER
from server.api.ollama.errors import error_body as ollama_body
from server.api.openai.chunk_encoder import DONE
from server.engine.interface import JsonObject

ANTHROPIC, OLLAMA, RESPONSES = "/v1/messages", "/api/", "/v1/responses"  # beginnings of paths; all others are OpenAI's
TOO_MANY = 429
OF_SERVE = frozenset({408, TOO_MANY, 500, 503})  # statuses of Serve's own errors
GONE = "the ingress that had this request is gone: send the request again"
UNAVAILABLE = "no ingress takes this request now: send it again later"


def middlewares() -> list[Middleware]:
    """Return what each proxy puts around Serve's application."""
    return [Middleware(ProxyErrors)]


class ProxyErrors:
    """Replaces Serve's errors, and ends a stream that was cut with an error event."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        reply = _Reply(scope, send)
        await self.app(scope, receive, reply.send)
        await reply.end()


class _Reply:
    def __init__(self, scope: Scope, send: Send):
        self._scope, self._send = scope, send
        self._has_begun = self._has_ended = False
        self._status = 0
        self._stream = ""  # the media type of a stream that can tell of an error
        self._num_events = 0

    async def send(self, message: Message) -> None:
        """Pass on a message, unless it belongs to an error of Serve's own."""
        if self._status:
            return
        if message["type"] == "http.response.start":
            media_type = Headers(raw=message["headers"]).get("content-type", "").partition(";")[0]
            if message["status"] in OF_SERVE and media_type == "text/plain":
                self._status = message["status"]
                return
            self._has_begun = True
            if self._scope["method"] == "POST" and media_type in {EVENT_STREAM, JSON_LINES}:
                self._stream = media_type
        elif message["type"] == "http.response.body":
            self._has_ended = not message.get("more_body", False)
            if self._stream == EVENT_STREAM:
                self._num_events += message.get("body", b"").count(b"\ndata: ")
        await self._send(message)

    async def end(self) -> None:
        """Send what is missing of a reply."""
        if not self._has_begun:
            await self._refuse()
        elif self._stream and not self._has_ended:
            error = ServiceUnavailableError(GONE)
            last = json_line(ollama_body(error)) if self._stream == JSON_LINES else self._last_event(error)
            await self._send({"type": "http.response.body", "body": last})

    async def _refuse(self) -> None:
        error: APIError
        if self._status == TOO_MANY:
            error = RateLimitError(UNAVAILABLE)
        else:
            error = ServiceUnavailableError(UNAVAILABLE if self._status else GONE)
        body = json.dumps(self._body(error)).encode()
        own = {"content-type": "application/json", "content-length": str(len(body))}
        headers = {**own, REQUEST_ID_HEADER: self._request_id, **error.headers}
        raw = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
        await self._send({"type": "http.response.start", "status": error.status_code, "headers": raw})
        await self._send({"type": "http.response.body", "body": body})

    @property
    def _request_id(self) -> str:
        return Headers(scope=self._scope).get(REQUEST_ID_HEADER, "")  # Serve has added it

    def _body(self, error: APIError) -> JsonObject:
        path = self._scope["path"]
        if path.startswith(ANTHROPIC):
            return anthropic_body(error, self._request_id)
        return ollama_body(error) if path.startswith(OLLAMA) else error.body

    def _last_event(self, error: APIError) -> bytes:
        path = self._scope["path"]
        if path.startswith(ANTHROPIC):
            return sse(self._body(error), "error")
        if path.startswith(RESPONSES):
            event = {"type": "error", "code": "server_error", "message": error.message, "param": None}
            return sse({**event, "sequence_number": self._num_events}, "error")
        return sse(error.body) + DONE
