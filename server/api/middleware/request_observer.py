"""Reports finished requests: a line of the access log, the spans of a trace, and counts of errors."""

import asyncio
import time

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.api.core.errors.api_errors import InternalError
from server.api.core.errors.validation import quote
from server.api.core.replies.json_lines import JSON_LINES
from server.api.core.replies.server_sent_events import EVENT_STREAM
from server.api.core.requests.generation import Generation
from server.api.core.service.service import Service
from server.api.middleware.access_log import log_request
from server.api.middleware.finished_request import FinishedRequest
from server.api.middleware.request_spans import request_span
from server.engine.interface import TextCodec


class RequestObserverMiddleware:
    """Reports every POST when it has ended; GETs, such as probes and scrapes, are not reported.

    Routes leave two things in the request's state: ``work`` if the engine accepted some, and ``error`` if the response
    is one.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "POST":
            await self.app(scope, receive, send)
            return
        started_at, status, is_stream = time.monotonic(), None, False

        async def send_and_observe(message: Message) -> None:
            nonlocal status, is_stream
            if message["type"] == "http.response.start":
                status = message["status"]
                is_stream = (
                    Headers(raw=message["headers"]).get("content-type", "").startswith((EVENT_STREAM, JSON_LINES))
                )
            await send(message)

        try:
            await self.app(scope, receive, send_and_observe)
        except Exception:
            status = InternalError.status_code  # Starlette's outermost middleware sends this response
            scope["state"]["error"] = InternalError("")
            raise
        finally:
            state = scope["state"]
            finished = FinishedRequest(
                state["request_id"],
                scope["method"],
                scope["route"].path if "route" in scope else None,
                path=quote(scope["path"])[1:-1],
                started_at=started_at,
                ended_at=time.monotonic(),
                status=status,
                is_stream=is_stream,
                work=state.get("work"),
                response_error=state.get("error"),
            )
            await _report(finished, scope["app"].state.service, Headers(scope=scope))


async def _report(finished: FinishedRequest, service: Service, headers: Headers) -> None:
    service.responses.note(finished.final_status)
    trace_id = None
    if service.tracer is not None:
        trace_id = service.tracer.record(request_span(finished), headers)
    prompts = None
    if service.logs_prompts and isinstance(finished.work, Generation) and service.model is not None:
        prompts = await asyncio.to_thread(_prompts, finished.work, service.model.codec)
    log_request(finished, trace_id, prompts)


def _prompts(generation: Generation, codec: TextCodec) -> list[str]:
    """Decode the prompts as the model read them, each once."""
    return [codec.decode(prompt) for prompt in dict.fromkeys(each.request.prompt_ids for each in generation.streams)]
