"""A Ray cluster on this machine alone, which runs until a signal comes."""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from server.cluster.deploy_file import NAME
from server.cluster.local_node import ClusterError, local_node, set_variables
from server.cluster.options import ClusterOptions
from server.lifecycle.listening_socket import listen
from server.settings import SettingsError

if TYPE_CHECKING:
    from ray.serve.schema import ServeDeploySchema

POLL_SECONDS = 0.5
STOP_SECONDS = 30.0  # longest time until Serve has ended, as `serve.shutdown` has it
SERVE_CONTROLLER = "SERVE_CONTROLLER_ACTOR"  # the name of its last actor
SERVE_LOG_LEVEL = "WARNING"  # unless a file has one: at INFO a proxy lists all routes, in 12,000 characters
STARTED, FAILED = "RUNNING", frozenset({"DEPLOY_FAILED", "UNHEALTHY"})

log = logging.getLogger(__name__)


@contextmanager
def running_cluster(
    content: Mapping[str, Any], options: ClusterOptions, on_loss: Callable[[ClusterError], None]
) -> Iterator[str]:
    """Start a cluster, deploy a file to it, and stop it at the end. Returns the line to print when it is ready.

    Args:
        content: of the file.
        options: of its application.
        on_loss: called in a thread when Ray has ended by itself.

    Raises:
        ClusterError: the application can't be deployed.
        SettingsError: the file is not one that Serve takes, or its address can't be used.
    """
    set_variables()
    from ray import serve  # noqa: PLC0415  of the extra
    from ray.serve.context import _get_global_client  # noqa: PLC0415

    schema = schema_of(content, options)
    http = schema.http_options
    with listen(http.host, http.port) as listener:  # Serve would tell of a used port late, and by a traceback
        http.port = listener.getsockname()[1]
    num_replicas = options.most_replicas + options.surging_replicas
    num_cpus = num_replicas * options.cpus + 2 * options.ingresses * options.ingress_cpus
    # Logical cores: nothing else is to run here.
    with local_node(max(os.cpu_count() or 1, int(num_cpus) + 1), on_loss):
        try:
            serve.start(
                http_options=http.model_dump(),
                proxy_location=schema.proxy_location,
                logging_config=schema.logging_config,
            )
            # As `serve run FILE` does; Serve has no public function for it.
            _get_global_client().deploy_apps(schema)
            _wait_until_it_runs(serve)
            yield f"Greenroom ready: http://{http.host}:{http.port} ({NAME} on Ray Serve)"
        finally:
            _stop_serve()


def schema_of(content: Mapping[str, Any], options: ClusterOptions) -> ServeDeploySchema:
    """Return a file as Serve takes it, without options that Serve would pass over, to listen everywhere instead.

    Raises:
        SettingsError: the file is not one that Serve takes, or says two things of where to listen.
    """
    from pydantic import ValidationError  # noqa: PLC0415
    from ray.serve.schema import HTTPOptionsSchema, LoggingConfig, ServeDeploySchema  # noqa: PLC0415

    try:
        schema = ServeDeploySchema.model_validate(dict(content))
    except ValidationError as error:
        first = error.errors()[0]
        raise SettingsError(f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from error
    known = [*ServeDeploySchema.model_fields, *(f"http_options.{name}" for name in HTTPOptionsSchema.model_fields)]
    for name in [*content, *(f"http_options.{name}" for name in content.get("http_options", {}))]:
        if name not in known:
            raise SettingsError(f"{name}: Serve has no such option")
    if "log_level" not in content.get("logging_config", {}):
        schema.logging_config = LoggingConfig(**{**content.get("logging_config", {}), "log_level": SERVE_LOG_LEVEL})
    host = schema.http_options.host
    if host != options.address:
        raise SettingsError(f"http_options.host is {host}, and args.address {options.address}; write the same in both")
    return schema


def signal_to_stop() -> threading.Event:
    """Return an event that SIGINT or SIGTERM sets from now on."""
    asked = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: asked.set())
    return asked


def _stop_serve() -> None:
    """Stop all applications, and wait until Serve has ended.

    ``serve.shutdown`` waits for a call that ends with its actor: Ray would tell of infinite retries.
    """
    import ray  # noqa: PLC0415  of the extra

    ends_at = time.monotonic() + STOP_SECONDS
    try:
        controller = ray.get_actor(SERVE_CONTROLLER, namespace="serve")
        ray.get(controller.graceful_shutdown.remote(wait=False), timeout=STOP_SECONDS)
        while time.monotonic() < ends_at:
            ray.get_actor(SERVE_CONTROLLER, namespace="serve")
            time.sleep(POLL_SECONDS)
    except (ValueError, ray.exceptions.RayActorError):
        return  # it has ended
    except ray.exceptions.GetTimeoutError:
        pass
    log.warning("Serve has not ended within %g seconds; its processes are killed", STOP_SECONDS)


def _wait_until_it_runs(serve: Any) -> None:
    while True:
        status = serve.status().applications.get(NAME)
        state = "" if status is None else str(status.status.value)
        if state == STARTED:
            return
        if state in FAILED:
            raise ClusterError(_reason(status))
        time.sleep(POLL_SECONDS)


def _reason(status: Any) -> str:
    """Return the last line of what Serve tells, which is the exception."""
    told = [status.message, *(each.message for each in status.deployments.values())]
    lines = [line.strip() for text in told for line in str(text).splitlines() if line.strip()]
    errors = [line for line in lines if "Error" in line]
    last = (errors or lines or ["the application could not be deployed"])[-1]
    return last.partition("Error: ")[2] or last
