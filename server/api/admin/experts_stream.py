"""``/v1/experts/stream``: the experts as they move, for as many listeners as there may be."""

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

from anyio import to_thread
from fastapi.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from server.api.disconnect import unless_client_leaves
from server.api.errors import ClientDisconnectedError, RateLimitError
from server.api.openai.replies import encode_json
from server.api.openai.streaming import HEADERS
from server.api.service import Service
from server.engine.request import ExpertAdministration, JsonObject

MAX_LISTENERS = 32
LOOK_SECONDS = 0.25  # between two looks whether the server goes on


class ExpertStream(StreamingResponse):
    """A snapshot, then an update every interval.

    Nothing is kept for a listener but the sample that it was sent last. So one that reads slowly gets fewer updates,
    each with all that has happened since the one before.

    Raises:
        RateLimitError: there are as many listeners as there may be.
    """

    def __init__(self, service: Service, experts: ExpertAdministration, interval_seconds: float) -> None:
        self._service, self._experts, self._interval_seconds = service, experts, interval_seconds
        if service.expert_feed.num_listeners >= MAX_LISTENERS:
            raise RateLimitError(f"{MAX_LISTENERS} clients read this stream: close one of them first.")
        self._events = self._follow()
        super().__init__(self._events, headers=HEADERS, media_type="text/event-stream")

    async def __call__(self, _scope: Scope, receive: Receive, send: Send) -> None:
        request = asyncio.current_task()
        assert request is not None
        self._service.endless.add(request)
        self._service.expert_feed.num_listeners += 1
        try:
            await unless_client_leaves(receive, self.stream_response(send))
        except (ClientDisconnectedError, OSError):
            return
        finally:
            self._service.expert_feed.num_listeners -= 1
            await self._events.aclose()

    async def _follow(self) -> AsyncGenerator[bytes, None]:
        feed, experts = self._service.expert_feed, self._experts
        sent = await feed.sample(experts)
        yield await to_thread.run_sync(lambda: event("snapshot", experts.snapshot(sent)))
        while await self._goes_on():
            before, sent = sent, await feed.sample(experts)
            yield await to_thread.run_sync(event_of_update, experts, before, sent)

    async def _goes_on(self) -> bool:
        """Wait until the next update is due; False if the server ends before."""
        clock = asyncio.get_running_loop().time
        due = clock() + self._interval_seconds
        while self._service.is_ready and (left := due - clock()) > 0:  # noqa: ASYNC110  no event says that it ends
            await asyncio.sleep(min(left, LOOK_SECONDS))
        return self._service.is_ready


def event_of_update(experts: ExpertAdministration, before: Any, sample: Any) -> bytes:
    return event("update", experts.update(before, sample))


def event(name: str, data: JsonObject) -> bytes:
    return f"event: {name}\ndata: {encode_json(data)}\n\n".encode()
