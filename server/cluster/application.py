"""Builds the application that Serve deploys: ``import_path: server.cluster.application:build``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ray import serve
from ray.serve import Application
from ray.serve.config import RequestRouterConfig

from server.cluster.deployments import ENGINE, INGRESS, EngineReplica, Ingress
from server.cluster.options import ClusterOptions

ROUTER = "server.cluster.router:HoldingsRouter"
ROUND_ROBIN = "ray.serve.experimental.round_robin_router:RoundRobinRouter"
STATS_SECONDS = 10.0
HEALTH_SECONDS, MAX_HEALTH_SECONDS = 2.0, 10.0  # between two checks, by which Serve notices that a replica has died
INGRESS_HEALTH_SECONDS = 0.5  # nothing is answered while the only one is gone
CHECKS_PER_SECOND = 50.0  # of all replicas


def build(arguments: Mapping[str, Any]) -> Application:
    """Build the application of ``args`` in Serve's file: see ``ClusterOptions``.

    Raises:
        SettingsError: an option or a setting can't be used.
    """
    options = ClusterOptions.checked(arguments)
    engine = serve.deployment(EngineReplica).options(
        name=ENGINE,
        max_ongoing_requests=options.max_ongoing_requests,
        max_queued_requests=options.max_queued_requests,
        max_surge_percent=options.surge_percent,
        graceful_shutdown_timeout_s=options.drain_seconds,
        graceful_shutdown_wait_loop_s=1.0,
        health_check_period_s=min(MAX_HEALTH_SECONDS, max(HEALTH_SECONDS, options.most_replicas / CHECKS_PER_SECOND)),
        health_check_timeout_s=30.0,
        ray_actor_options={"num_cpus": options.cpus, "num_gpus": options.gpus, "memory": options.memory_bytes},
        request_router_config=RequestRouterConfig(request_routing_stats_period_s=STATS_SECONDS, **_router(options)),
        **options.replicas_of_engine(),
    )
    ingress = serve.deployment(Ingress).options(
        name=INGRESS,
        num_replicas=options.ingresses,
        max_surge_percent=options.surge_percent,
        max_ongoing_requests=options.max_ongoing_requests * options.most_replicas,
        graceful_shutdown_timeout_s=options.drain_seconds,
        graceful_shutdown_wait_loop_s=1.0,
        health_check_period_s=INGRESS_HEALTH_SECONDS,
        ray_actor_options={"num_cpus": options.ingress_cpus},
    )
    model, settings = options.model, options.engine_settings()
    return ingress.bind(engine.bind(model, settings), options.settings, options.address)


def _router(options: ClusterOptions) -> dict[str, Any]:
    if options.routing == "two-choices":
        return {}  # Serve's own
    if options.routing == "round-robin":
        return {"request_router_class": ROUND_ROBIN}
    return {
        "request_router_class": ROUTER,
        "request_router_kwargs": {"by": options.routing, "ingresses": options.ingresses},
    }
