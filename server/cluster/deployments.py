"""The two deployments: replicas of the engine, and the ingress that serves the HTTP API over them."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from functools import partial
from typing import TYPE_CHECKING, Any

from ray import serve

from server.cluster.count_keeper import leave
from server.cluster.options import check_proxy, settings_of
from server.cluster.shared_fleet import shared_fleet
from server.observability.logging import FORMATTERS, set_up_logging

if TYPE_CHECKING:
    from fastapi import FastAPI
    from ray.serve.handle import DeploymentHandle

    from server.cluster.wire import (
        Answer,
        Batch,
        Holdings,
        ModelFacts,
        Outcome,
        ReplicaReport,
        ServedWeights,
        SharedCall,
        Submission,
        WeightChange,
    )

ENGINE, INGRESS = "engine", "ingress"  # names of the deployments
NEIGHBOUR_SECONDS = 30.0  # in which another replica must tell what it holds

log = logging.getLogger(__name__)


class EngineReplica:
    """A replica of the engine: loads the model in its own process, with memory and threads of its own.

    Args:
        model: as on the command line.
        settings: those of ``greenroom serve``, as in its TOML file.
    """

    async def __init__(self, model: str | None, settings: Mapping[str, Any]):  # type: ignore[misc]  # Serve awaits it
        self._settings = settings_of(settings)
        set_up_logging(self._settings.log_level, FORMATTERS[self._settings.log_format])
        os.environ["OMP_NUM_THREADS"] = str(self._settings.threads)  # Ray has set it to 1
        from server.lifecycle.torch_setup import set_up_torch  # noqa: PLC0415

        set_up_torch(model)  # before anything imports torch
        from server.cluster.replica import Replica  # noqa: PLC0415
        from server.loading.bundled_weights import chosen_model, with_bundled_adapters  # noqa: PLC0415
        from server.loading.load import load_server  # noqa: PLC0415

        model = chosen_model(model, self._settings)
        loaded = await asyncio.to_thread(load_server, model, with_bundled_adapters(model, self._settings))
        self._replica = Replica(loaded, serve.get_replica_context().replica_id.unique_id)
        await self._take_over()

    async def generate(self, submission: Submission) -> AsyncGenerator[Answer, None]:
        async with aclosing(self._replica.generate(submission)) as answers:
            async for answer in answers:
                yield answer

    async def share(self, call: SharedCall) -> AsyncGenerator[list[Batch], None]:
        async with aclosing(self._replica.share(call)) as items:
            async for batches in items:
                yield batches

    async def facts(self) -> ModelFacts:
        return self._replica.facts()

    async def call(self, part: str, method: str, *arguments: Any) -> Outcome:
        return await self._replica.call(part, method, *arguments)

    async def render_metrics(self) -> Outcome:
        return await self._replica.render_metrics()

    async def change_weights(self, change: WeightChange) -> Outcome:
        return await self._replica.change_weights(change)

    async def confirm_change(self, change: WeightChange) -> Outcome:
        return self._replica.confirm_change(change)

    async def adopt(self, weights: ServedWeights) -> Outcome:
        return await self._replica.adopt(weights)

    async def undo_change(self, change: str) -> Outcome:
        return await self._replica.undo_change(change)

    async def report(self, sender: str) -> ReplicaReport:
        return await self._replica.report(sender)

    async def holdings(self) -> Holdings:
        return await self._replica.holdings()

    def record_routing_stats(self) -> dict[str, Any]:
        return self._replica.statistics()

    def record_autoscaling_stats(self) -> dict[str, float]:
        return self._replica.autoscaling_statistics()

    def check_health(self) -> None:
        self._replica.check_health()

    async def __del__(self) -> None:
        replica = getattr(self, "_replica", None)
        if replica is not None:
            await replica.close(partial(leave, serve.get_replica_context().app_name, replica.name))

    async def _take_over(self) -> None:
        """Take over the weights and the hottest experts of a replica that runs, if there is one."""
        context = serve.get_replica_context()
        application = serve.status().applications.get(context.app_name)
        engine = None if application is None else application.deployments.get(ENGINE)
        if engine is None or not engine.replica_states.get("RUNNING"):
            return
        handle: DeploymentHandle[Any] = serve.get_deployment_handle(ENGINE, context.app_name)
        try:
            async with asyncio.timeout(NEIGHBOUR_SECONDS):
                holdings = await handle.holdings.remote()
            await self._replica.take_over(holdings)
        except Exception:
            log.exception("this replica begins without what others hold")


@serve.ingress()
class Ingress:
    """The HTTP API over the replicas of the engine.

    Args:
        engine: the deployment of the replicas.
        settings: those of ``greenroom serve``, as in its TOML file.
        address: where Serve's proxies listen.
    """

    async def __init__(self, engine: DeploymentHandle[Any], settings: Mapping[str, Any], address: str):  # type: ignore[misc]
        from server.lifecycle.torch_setup import set_up_torch  # noqa: PLC0415

        set_up_torch(None)
        from server.cluster.frontend import Frontend  # noqa: PLC0415
        from server.cluster.serve_replicas import ServeReplicas  # noqa: PLC0415

        values = settings_of(settings)
        set_up_logging(values.log_level, FORMATTERS[values.log_format])
        check_proxy(values)
        application = serve.get_replica_context().app_name
        replicas = ServeReplicas(engine, application, asyncio.get_running_loop())
        fleet = shared_fleet(application)
        self._frontend = Frontend(values, address, replicas, fleet)
        await self._frontend.connect()

    def __serve_build_asgi_app__(self) -> FastAPI:
        from server.cluster.request_id import OneRequestId  # noqa: PLC0415
        from server.lifecycle.application import application_of  # noqa: PLC0415

        application = application_of(self._frontend.service, self._frontend.lifespan)
        application.add_middleware(OneRequestId)  # the outermost
        return application
