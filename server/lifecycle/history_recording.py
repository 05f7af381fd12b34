"""Records the history of a server's totals while it serves."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import asdict

from server.administration.history import INTERVAL_SECONDS, History
from server.api.core.service.service import Service
from server.engine.interface import JsonObject

log = logging.getLogger(__name__)


async def record_history(service: Service, totals: Callable[[], JsonObject]) -> None:
    """Add a point to the history of a service at every interval, until it drains.

    Args:
        totals: returns those of its experts and engine; called off the event loop.
    """
    history = History(lambda: totals() | {"responses": asdict(service.responses)})
    service.history = history.lines
    try:
        while not service.state.has_ended:
            await asyncio.to_thread(history.record)
            await asyncio.sleep(INTERVAL_SECONDS)
    except Exception:
        log.exception("the history of GET /v1/history is recorded no longer")
