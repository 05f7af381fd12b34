"""A Ray cluster on this machine alone, which runs until a signal comes."""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from server.cluster.deploy_file import NAME
from server.cluster.options import ClusterOptions
from server.settings import SettingsError

OBJECT_STORE_BYTES = 200 << 20  # requests and tokens are small, and go from process to process without it
POLL_SECONDS = 0.5
MAX_STARTS = 3  # Ray gives its processes 30 seconds to start, which a busy machine may not keep
STARTED, FAILED = "RUNNING", frozenset({"DEPLOY_FAILED", "UNHEALTHY"})
# Else each item of a stream passes more threads of a process. Neither the ingress nor a replica blocks its event loop.
SERVE_VARIABLES = {"RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": "0", "RAY_SERVE_RUN_ROUTER_IN_SEPARATE_LOOP": "0"}

log = logging.getLogger(__name__)


class ClusterError(Exception):
    """The cluster can't be started; the message says why."""


@contextmanager
def running_cluster(content: Mapping[str, Any], options: ClusterOptions) -> Iterator[str]:
    """Start a cluster, deploy a file to it, and stop it at the end. Returns the line to print when it is ready.

    Raises:
        ClusterError: the application can't be deployed.
        SettingsError: the file is not one that Serve takes.
    """
    _set_variables()
    import ray  # noqa: PLC0415  of the extra
    from pydantic import ValidationError  # noqa: PLC0415
    from ray import serve  # noqa: PLC0415
    from ray.serve.context import _get_global_client  # noqa: PLC0415
    from ray.serve.schema import ServeDeploySchema  # noqa: PLC0415

    try:
        schema = ServeDeploySchema.model_validate(dict(content))
    except ValidationError as error:
        first = error.errors()[0]
        raise SettingsError(f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from error
    num_replicas = options.most_replicas + options.surging_replicas
    num_cpus = num_replicas * options.cpus + 2 * options.ingresses * options.ingress_cpus
    try:
        start_ray(max(os.cpu_count() or 1, int(num_cpus) + 1))  # logical ones: nothing else is to run here
        serve.start(http_options=schema.http_options.model_dump(), proxy_location=schema.proxy_location)
        # As `serve run FILE` does; Serve has no public function for it.
        _get_global_client().deploy_apps(schema)
        _wait_until_it_runs(serve)
        yield f"Greenroom ready: http://{schema.http_options.host}:{schema.http_options.port} ({NAME} on Ray Serve)"
    finally:
        if ray.is_initialized():
            serve.shutdown()
            ray.shutdown()


def wait_for_signal() -> None:
    """Block until SIGINT or SIGTERM comes."""
    asked = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: asked.set())
    asked.wait()


def start_ray(num_cpus: int) -> None:
    """Start Ray on this machine alone, with so many logical cores.

    Raises:
        ClusterError: it can't be started.
    """
    _set_variables()
    import ray  # noqa: PLC0415  of the extra

    for attempt in range(1, MAX_STARTS + 1):
        try:
            ray.init(
                address="local",
                num_cpus=num_cpus,
                object_store_memory=OBJECT_STORE_BYTES,
                include_dashboard=False,
                namespace="serve",
                logging_level=logging.WARNING,
            )
        except Exception as error:  # Ray raises plain ones
            ray.shutdown()
            if attempt == MAX_STARTS:
                raise ClusterError(f"Ray can't be started: {error}") from error
            log.warning("Ray can't be started, trying again: %s", error)
        else:
            return


def _set_variables() -> None:
    """Set what Ray reads when it is imported, as far as the user has not."""
    # Whoever reaches Ray's ports may run code, so each call needs a token, which Ray makes in ~/.ray if there is none.
    os.environ.setdefault("RAY_AUTH_MODE", "token")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_agent_register_timeout_ms", "120000")  # a busy machine takes longer than Ray expects
    for name, value in SERVE_VARIABLES.items():
        os.environ.setdefault(name, value)


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
