"""Frontend: the service of an ingress, whose model the replicas run."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from typing import Any, Protocol
from uuid import uuid4

from fastapi import FastAPI

from server.api.core.requests.auto_request import learn_examples
from server.api.core.requests.loaded_model import LoadedModel
from server.api.core.service.service import Service
from server.cluster.administration import (
    Administration,
    Callers,
    RemoteAdapterLoader,
    RemoteAdapters,
    RemoteExperts,
    RemoteVariants,
)
from server.cluster.changed_files import ChangedFiles
from server.cluster.measured_costs import mean_costs
from server.cluster.remote_directory import RemoteDirectory, served_by_all
from server.cluster.remote_engine import RemoteEngine
from server.cluster.shared_fleet import SharedFleet
from server.cluster.submitter import Submitter
from server.cluster.wire import ModelFacts, ReplicaReport, ServedWeights
from server.engine.interface import ExpertHealth, RequestMemory
from server.engine.text.codec import Codec
from server.lifecycle.access_policy_setup import add_policies
from server.lifecycle.history_recording import record_history
from server.lifecycle.reload_hooks import CHANGED_FILE, ReloadHooks
from server.lifecycle.service_setup import add_key_files, make_service
from server.lifecycle.tracing_setup import open_tracing
from server.settings import ServeSettings

REPORT_SECONDS = 2.0  # between two reports of all replicas
REPORTS_PER_SECOND = 50.0  # at most; more replicas are asked less often
FILES_SECONDS = 5.0  # between two looks at the files of keys and policies
GONE_SECONDS = 10.0  # without an answer of any replica, after which the server is not ready

log = logging.getLogger(__name__)


class Replicas(Submitter, Callers, Protocol):
    """All that an ingress asks of the replicas."""

    async def ask(self, method: str, *arguments: Any) -> Any: ...

    async def ask_all(self, method: str, *arguments: Any, seconds: float = ...) -> list[Any]: ...


class Frontend:
    """The service of one ingress. Call ``connect`` before it answers.

    Args:
        address: where the server listens.

    Raises:
        SettingsError: a setting can't be used.
    """

    def __init__(self, settings: ServeSettings, address: str, replicas: Replicas, fleet: SharedFleet):
        self._settings, self._replicas, self._fleet = settings, replicas, fleet
        self._sender = uuid4().hex
        self._tracing = open_tracing(settings)
        self.service: Service = make_service(settings, address)
        self.service.tracer = self._tracing
        self._hooks = ReloadHooks()
        files = (settings.api_key_file, settings.admin_api_key_file, settings.policy_file)
        self._files = ChangedFiles(files)
        add_key_files(self._hooks, self.service, settings)
        self._policies = add_policies(settings, self.service, self._hooks)
        self._reports: list[ReplicaReport] = []
        self._newest = ServedWeights()
        self._heard_at = time.monotonic()
        self._tasks: list[asyncio.Task[None]] = []
        self._telling: set[asyncio.Future[Any]] = set()

    async def connect(self) -> None:
        """Wait for a replica, and let the service answer with its model.

        Raises:
            SettingsError: the model can't run as a policy demands.
        """
        facts: ModelFacts = await self._replicas.ask("facts")
        service, loop = self.service, asyncio.get_running_loop()
        refresh = partial(_run_blocking, loop, self._refresh)
        administration = Administration(self._replicas, refresh)
        self._directory = directory = RemoteDirectory(
            facts.name,
            loads_adapters=facts.loads_adapters,
            prepare=administration.prepare,
            note_routed=self._note_routed,
        )
        memory = RequestMemory()
        codec = await asyncio.to_thread(Codec.of, facts.codec, memory)
        await asyncio.to_thread(facts.codec.tokenizer.prepare)
        experts = RemoteExperts(administration, facts.name)
        service.model = LoadedModel(
            facts.name,
            RemoteEngine(
                facts,
                self._sender,
                self._replicas,
                self._fleet,
                reset_prefixes=partial(administration.ask_every, "engine", "reset_prefix_cache"),
            ),
            codec,
            defaults=facts.defaults,
            experts=experts,
            expert_health=self._health,
            keeps_stalls=self._tracing is not None,
            card=replace(
                facts.card,
                host_bytes=lambda: sum(report.host_bytes for report in self._reports),
                device_bytes=lambda: sum(report.device_bytes for report in self._reports),
            ),
            adapters=RemoteAdapters(administration) if facts.loads_adapters else None,
            adapters_on_request=RemoteAdapterLoader(administration) if facts.loads_adapters_on_request else None,
            directory=directory,
            variants=RemoteVariants(administration),
            memory=memory,
        )
        service.metrics = administration.metrics
        await self._refresh()
        if self._policies is not None:
            await asyncio.to_thread(self._policies.use_model, directory.prepare)
        self._tasks = [
            asyncio.create_task(self._follow()),
            asyncio.create_task(self._watch_files()),
            asyncio.create_task(record_history(service, experts.totals)),
        ]
        if self._settings.serves_adapters:
            service.model.profiles.in_background(learn_examples(service.model))

    @asynccontextmanager
    async def lifespan(self, _: FastAPI) -> AsyncGenerator[None]:
        """Close at the end of the application."""
        try:
            yield
        finally:
            await self._close()

    async def _close(self) -> None:
        self.service.is_draining = True
        for task in self._tasks:
            task.cancel()
        if self.service.response_store is not None:
            await asyncio.to_thread(self.service.response_store.close)
        if self._tracing is not None:
            await asyncio.to_thread(self._tracing.close)

    async def _follow(self) -> None:
        """Ask all replicas for a report again and again, which also tells them that this ingress lives."""
        while True:
            await asyncio.sleep(max(REPORT_SECONDS, len(self._reports) / REPORTS_PER_SECOND))
            try:
                await self._refresh()
            except Exception:
                log.exception("the replicas' reports can't be had; asking again")

    async def _watch_files(self) -> None:
        """Read the files of keys and policies again when they have changed."""
        while True:
            await asyncio.sleep(FILES_SECONDS)
            if await asyncio.to_thread(self._files.are_changed):
                await self._hooks.run(CHANGED_FILE)

    async def _refresh(self) -> None:
        answers = await self._replicas.ask_all("report", self._sender, seconds=GONE_SECONDS)
        reports = [answer for answer in answers if isinstance(answer, ReplicaReport)]
        if not reports:
            return
        self._reports, self._heard_at = reports, time.monotonic()
        for report in reports:
            self._fleet.update(report.replica, report.state)
        self._fleet.use_costs(mean_costs([report.costs for report in reports]))
        served = [report.weights for report in reports]
        self._directory.mirror(served_by_all(served))
        self._newest = max([self._newest, *served], key=lambda weights: weights.changed_at)
        if any(weights.changed_at < self._newest.changed_at for weights in served):
            await self._replicas.ask_all("adopt", self._newest)  # one that started meanwhile, or all after an update

    def _health(self) -> ExpertHealth:
        """Return the best health of a replica, as requests go to one that can answer them."""
        if time.monotonic() - self._heard_at > GONE_SECONDS:
            return "files_changed"  # not ready, and a restart of this process would not help
        healths = {report.health for report in self._reports if report.is_alive}
        return next((health for health in _BEST_FIRST if health in healths), "failing")

    def _note_routed(self, name: str | None) -> None:
        telling = asyncio.ensure_future(self._replicas.ask("call", "directory", "note_routed", name))
        self._telling.add(telling)  # the loop itself does not keep it
        telling.add_done_callback(self._telling.discard)


_BEST_FIRST: tuple[ExpertHealth, ...] = ("ok", "files_changed", "failing")


def _run_blocking(loop: asyncio.AbstractEventLoop, work: Callable[[], Any]) -> None:
    asyncio.run_coroutine_threadsafe(work(), loop).result()
