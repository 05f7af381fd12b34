"""``/v1/experts/stream``: server-sent events for changes of residency and routing counts."""

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

from anyio import to_thread
from fastapi.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from server.api.core.errors.api_errors import ClientDisconnectedError, RateLimitError
from server.api.core.replies.server_sent_events import EVENT_STREAM, HEADERS, sse
from server.api.core.requests.disconnect import unless_client_leaves
from server.api.core.service.service import Service
from server.engine.interface import ExpertAdministration

MAX_LISTENERS = 32
POLL_SECONDS = 0.25  # between two checks that the server still runs


class ExpertStream(StreamingResponse):
    """Sends a snapshot, then an update at every interval.

    The server keeps only the last sample that it sent to a listener. A slow listener gets fewer updates, each with all
    changes since the one before.

    Raises:
        RateLimitError: there are ``MAX_LISTENERS`` already.
    """

    def __init__(self, service: Service, experts: ExpertAdministration, interval_seconds: float) -> None:
        self._service, self._experts, self._interval_seconds = service, experts, interval_seconds
        if service.expert_sampler.num_listeners >= MAX_LISTENERS:
            raise RateLimitError(f"{MAX_LISTENERS} clients read this stream already: close one of them first.")
        self._events = self._follow()
        super().__init__(self._events, headers=HEADERS, media_type=EVENT_STREAM)

    async def __call__(self, _scope: Scope, receive: Receive, send: Send) -> None:
        request = asyncio.current_task()
        assert request is not None
        self._service.endless.add(request)
        self._service.expert_sampler.num_listeners += 1
        try:
            await unless_client_leaves(receive, self.stream_response(send))
        except (ClientDisconnectedError, OSError):
            return
        finally:
            self._service.expert_sampler.num_listeners -= 1
            await self._events.aclose()

    async def _follow(self) -> AsyncGenerator[bytes, None]:
        sampler, experts = self._service.expert_sampler, self._experts
        sent = await sampler.sample(experts)
        yield await to_thread.run_sync(lambda: sse(experts.snapshot(sent), "snapshot"))
        while await self._wait_for_update():
            before, sent = sent, await sampler.sample(experts)
            yield await to_thread.run_sync(encode_update, experts, before, sent)

    async def _wait_for_update(self) -> bool:
        """Wait until the next update is due; return False if the server stops before that."""
        clock = asyncio.get_running_loop().time
        due = clock() + self._interval_seconds
        while not self._service.state.has_ended and (left := due - clock()) > 0:  # noqa: ASYNC110  there is no event for the server's end
            await asyncio.sleep(min(left, POLL_SECONDS))
        return not self._service.state.has_ended


def encode_update(experts: ExpertAdministration, before: Any, sample: Any) -> bytes:
    return sse(experts.update(before, sample), "update")
