"""CountKeeper: an actor of Ray that keeps what the replicas of an application have counted.

It belongs to no ingress and no deployment of Serve, so that it outlives an update of all of them. It ends by itself
when nobody has asked for a while; one that was lost gets what it knew from the next ingress that asks.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import ray
from ray.exceptions import RayError

from server.cluster.kept_counts import Counts, KeptCounts, MetricsPage
from server.engine.interface import EngineUnavailableError

NAMESPACE = "serve"
IDLE_SECONDS = 3600.0  # without a call, after which it ends
CALL_SECONDS = 10.0  # longest time of a call

log = logging.getLogger(__name__)


class CountKeeper:
    """The actor."""

    async def __init__(self) -> None:  # type: ignore[misc]  # Ray awaits it
        self._kept, self._me = KeptCounts(), ray.get_runtime_context().current_actor
        self._ending = self._end_later()

    async def exchange(self, counts: Counts) -> Counts:
        self._ending.cancel()
        self._ending = self._end_later()
        return self._kept.exchange(counts)

    def _end_later(self) -> asyncio.TimerHandle:
        return asyncio.get_running_loop().call_later(IDLE_SECONDS, ray.kill, self._me)


def exchange(application: str, counts: Counts) -> Counts:
    """Give counts to the keeper of an application, which is started if there is none, and return what it has beyond.

    It may block.

    Raises:
        EngineUnavailableError: it does not answer.
    """
    options: dict[str, Any] = {"name": _name(application), "namespace": NAMESPACE}
    actor = ray.remote(CountKeeper).options(**options, lifetime="detached", get_if_exists=True, num_cpus=0)
    try:
        kept: Counts = ray.get(actor.remote().exchange.remote(counts), timeout=CALL_SECONDS)
    except RayError as error:
        raise EngineUnavailableError(f"what replicas that are gone have counted can't be had: {error}") from error
    return kept


def leave(application: str, replica: str, page: MetricsPage) -> None:
    """Give the last page of a replica to the keeper, if anything has asked for metrics until now. It may block."""
    try:
        actor = ray.get_actor(_name(application), namespace=NAMESPACE)
        ray.get(actor.exchange.remote(Counts({replica: page})), timeout=CALL_SECONDS)
    except ValueError:
        return  # there is no such actor
    except RayError:
        log.warning("what this replica has counted since its last scrape is lost", exc_info=True)


def _name(application: str) -> str:
    return f"{application}: counts"
