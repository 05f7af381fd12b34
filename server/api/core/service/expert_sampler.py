"""Samples of the experts' state, shared by all listeners of ``/v1/experts/stream``."""

import asyncio
from typing import Any

from anyio import to_thread

from server.engine.interface import ExpertAdministration

LEAST_INTERVAL_SECONDS, MOST_INTERVAL_SECONDS = 0.1, 60.0


class ExpertSampler:
    """Takes samples; listeners that ask within the least interval get the same one."""

    def __init__(self) -> None:
        self.num_listeners = 0
        self._sample: asyncio.Future[Any] | None = None
        self._taken_at = 0.0  # by the event loop's clock

    async def sample(self, experts: ExpertAdministration) -> Any:
        """Return a sample no older than the least interval."""
        now = asyncio.get_running_loop().time()
        if self._sample is None or now - self._taken_at >= LEAST_INTERVAL_SECONDS:
            self._sample = asyncio.ensure_future(to_thread.run_sync(experts.sample))
            self._taken_at = now
        return await asyncio.shield(self._sample)
