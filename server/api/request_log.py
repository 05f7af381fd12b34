"""One line of the log for each request that asks for work, when it has ended, whatever dialect it spoke."""

import asyncio
import logging
import time
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.api.errors import APIError, ClientDisconnectedError, InternalError, api_error
from server.api.openai.generation import Generation
from server.api.service import Service
from server.api.validation import quote
from server.engine.request import TextCodec

log = logging.getLogger(__name__)


class RequestLogMiddleware:
    """Tells of every POST; what is read, probed and scraped would drown them.

    What became of it stands in the request's state: ``generation``, if one was accepted, and ``error``, if it was
    answered with one.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "POST":
            await self.app(scope, receive, send)
            return
        started, status = time.monotonic(), None

        async def send_and_note(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self.app(scope, receive, send_and_note)
        except Exception:
            status = InternalError.status_code  # which is answered further out
            scope["state"]["error"] = InternalError("")
            raise
        finally:
            generation: Generation | None = scope["state"].get("generation")
            fields = {
                "request_id": scope["state"]["request_id"],
                "route": _route(scope),
                "status": status,
                "seconds": round(time.monotonic() - started, 6),
                **({} if generation is None else generation_fields(generation)),
                "error": _kind(scope["state"].get("error"), generation),
            }
            service: Service = scope["app"].state.service
            if service.logs_prompts and generation is not None and service.model is not None:
                fields["prompts"] = await asyncio.to_thread(_prompts, generation, service.model.codec)
            log.info("request", extra={"fields": {name: value for name, value in fields.items() if value is not None}})


def generation_fields(generation: Generation) -> dict[str, Any]:
    """Numbers of a generation that has ended; None is what never came to be."""
    waits = [stream.queue_seconds for stream in generation.streams if stream.queue_seconds is not None]
    firsts = [stream.first_token_seconds for stream in generation.streams if stream.first_token_seconds is not None]
    return {
        "id": generation.id,
        "model": generation.model,
        "choices": len(generation.streams),
        "prompt_tokens": generation.num_prompt_tokens,
        "completion_tokens": sum(generation.num_generated),
        "queue_seconds": round(max(waits), 6) if waits else None,
        "first_token_seconds": round(min(firsts), 6) if firsts else None,
        "expert_misses": generation.expert_usage.num_misses,
        "expert_bytes_read": generation.expert_usage.bytes_read,
        "expert_stall_seconds": round(generation.expert_usage.stall_seconds, 6),
        "finish_reasons": [reason and reason.value for reason in generation.finish_reasons],
    }


def _route(scope: Scope) -> str:
    route = scope.get("route")
    return quote(scope["path"])[1:-1] if route is None else str(route.path)


def _kind(error: APIError | None, generation: Generation | None) -> str | None:
    """What went wrong, as OpenAI's errors name it."""
    if error is None and generation is not None:
        if generation.error is not None:
            error = api_error(generation.error)
        elif None in generation.finish_reasons:
            error = ClientDisconnectedError("")
    return None if error is None else error.code or error.type


def _prompts(generation: Generation, codec: TextCodec) -> list[str]:
    """The prompts as the model reads them, each once."""
    return [codec.decode(prompt) for prompt in dict.fromkeys(each.request.prompt_ids for each in generation.streams)]
