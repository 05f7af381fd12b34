"""When a request that asks for work has ended: a line of the log, and spans of a trace."""

import asyncio
import time

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.api.ended_request import EndedRequest
from server.api.errors import InternalError
from server.api.openai.generation import Generation
from server.api.request_log import log_request
from server.api.service import Service
from server.api.spans import request_span
from server.api.validation import quote
from server.engine.request import TextCodec


class EndingMiddleware:
    """Tells of every POST; what is read, probed and scraped would drown them.

    What became of it stands in the request's state: ``work``, if some was accepted, and ``error``, if it was answered
    with one.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "POST":
            await self.app(scope, receive, send)
            return
        started_at, status, is_stream = time.monotonic(), None, False

        async def send_and_note(message: Message) -> None:
            nonlocal status, is_stream
            if message["type"] == "http.response.start":
                status = message["status"]
                is_stream = Headers(raw=message["headers"]).get("content-type", "").startswith("text/event-stream")
            await send(message)

        try:
            await self.app(scope, receive, send_and_note)
        except Exception:
            status = InternalError.status_code  # which is answered further out
            scope["state"]["error"] = InternalError("")
            raise
        finally:
            state = scope["state"]
            ended = EndedRequest(
                state["request_id"],
                scope["method"],
                scope["route"].path if "route" in scope else None,
                quote(scope["path"])[1:-1],
                started_at,
                time.monotonic(),
                status,
                is_stream,
                state.get("work"),
                state.get("error"),
            )
            await _tell(ended, scope["app"].state.service, Headers(scope=scope))


async def _tell(ended: EndedRequest, service: Service, headers: Headers) -> None:
    trace_id = None
    if service.tracer is not None:
        trace_id = service.tracer.record(request_span(ended), headers)
    prompts = None
    if service.logs_prompts and isinstance(ended.work, Generation) and service.model is not None:
        prompts = await asyncio.to_thread(_prompts, ended.work, service.model.codec)
    log_request(ended, trace_id, prompts)


def _prompts(generation: Generation, codec: TextCodec) -> list[str]:
    """The prompts as the model reads them, each once."""
    return [codec.decode(prompt) for prompt in dict.fromkeys(each.request.prompt_ids for each in generation.streams)]
