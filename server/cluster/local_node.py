"""A Ray node on this machine alone, whose helper processes may take their time to start."""

from __future__ import annotations

import logging
import os
import random
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from threading import Event, Thread
from typing import Any

OBJECT_STORE_BYTES = 200 << 20  # requests and tokens are small, and go from process to process without it
# Else each item of a stream passes more threads of a process. Neither the ingress nor a replica blocks its event loop.
SERVE_VARIABLES = {
    "RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": "0",
    "RAY_SERVE_RUN_ROUTER_IN_SEPARATE_LOOP": "0",
    "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": "server.cluster.proxy_errors:middlewares",
}
NICENESS = {"RAY_worker_niceness": "0"}  # 15 by default, so that any other process of this machine would go before
# A busy machine takes longer than Ray expects.
PATIENCE = {
    "RAY_agent_register_timeout_ms": "120000",
    "RAY_gcs_server_port_wait_time_s": "120",
    "RAY_raylet_start_wait_time_s": "120",
}
# A node with this address listens there alone. Without the variable, `ray.init` looks for it at an outer address.
LOOPBACK, LOOPBACK_VARIABLES = "127.0.0.1", {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
LOGS = "session_latest/logs"  # under Ray's folder
VITAL = frozenset({"raylet", "gcs_server"})  # processes without which Ray does nothing more
LOOK_SECONDS = 1.0  # between two looks whether they run
# Those that Linux gives to outgoing connections, from 32768 on, might be taken before Ray's slow agents get there.
PORTS = range(20000, 30000)


class ClusterError(Exception):
    """The cluster can't be started; the message says why."""


@contextmanager
def local_node(num_cpus: int, on_loss: Callable[[ClusterError], None] = lambda _: None) -> Iterator[None]:
    """Start Ray with so many logical cores, connect this process to it, and stop it at the end.

    The ports of its agents are chosen here: if they chose them, Ray would end itself when an agent has not told its
    port after 15 seconds, which can't be changed.

    Args:
        num_cpus: logical ones.
        on_loss: called in a thread when Ray has ended by itself, as calls of it may then wait for ever.

    Raises:
        ClusterError: it can't be started.
    """
    set_variables()
    import ray  # noqa: PLC0415  of the extra
    from ray._common.utils import get_default_ray_temp_dir  # noqa: PLC0415
    from ray._private.authentication.authentication_token_setup import ensure_token_if_auth_enabled  # noqa: PLC0415
    from ray._private.node import Node  # noqa: PLC0415  `ray.init` takes no ports
    from ray._private.parameter import RayParams  # noqa: PLC0415
    from ray._raylet import (  # type: ignore[attr-defined]  # noqa: PLC0415  its stub lacks both
        DASHBOARD_AGENT_LISTEN_PORT_NAME,
        persist_port,
    )

    metrics, exports, environments, listens = _free_ports(4)

    class PatientNode(Node):  # type: ignore[misc]  # Ray has no types
        def start_raylet(self, *arguments: Any, **named: Any) -> None:
            # It takes the other ports from its command, and would wait for the agent to write this one.
            persist_port(self.get_session_dir_path(), self.node_id, DASHBOARD_AGENT_LISTEN_PORT_NAME, listens)
            super().start_raylet(*arguments, **named)

    folder = private_folder(Path(get_default_ray_temp_dir()).parent) / "ray"
    parameters = RayParams(
        node_ip_address=LOOPBACK,
        temp_dir=str(folder),
        num_cpus=num_cpus,
        object_store_memory=OBJECT_STORE_BYTES,
        include_dashboard=False,
        no_monitor=True,  # of the autoscaler: there is one node
        metrics_agent_port=metrics,
        metrics_export_port=exports,
        runtime_env_agent_port=environments,
        dashboard_agent_listen_port=listens,
    )
    logs, is_over = str(folder / LOGS), Event()
    try:
        with private_token():
            ensure_token_if_auth_enabled(create_token_if_missing=True)
        node = PatientNode(parameters, head=True)  # one that fails is stopped at the end of this process
        Thread(target=watch, args=(node, logs, is_over, on_loss), daemon=True).start()
        ray.init(address=node.gcs_address, _node_ip_address=LOOPBACK, namespace="serve", logging_level=logging.WARNING)
    except Exception as error:  # Ray raises plain ones
        is_over.set()
        raise ClusterError(f"Ray can't be started: {error} Its logs are in {logs}") from error
    try:
        yield
    finally:
        is_over.set()
        ray.shutdown()
        node.kill_all_processes(check_alive=False, allow_graceful=True)


def set_variables() -> None:
    """Set what Ray reads when it is imported, as far as the user has not."""
    # Whoever reaches Ray's ports may run code, so each call needs a token, which Ray makes in ~/.ray if there is none.
    os.environ.setdefault("RAY_AUTH_MODE", "token")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    for name, value in (PATIENCE | NICENESS | SERVE_VARIABLES | LOOPBACK_VARIABLES).items():
        os.environ.setdefault(name, value)


def private_folder(parent: Path) -> Path:
    """Return a folder of this user alone: Ray lets anyone write to its own, in which its sockets and logs are.

    Raises:
        ClusterError: it belongs to another.
    """
    folder = parent / f"greenroom-{os.getuid()}"
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        is_ours = folder.lstat().st_uid == os.getuid() and not folder.is_symlink()
        if is_ours:
            folder.chmod(0o700)
    except OSError as error:
        raise ClusterError(
            f"{folder}, for the files of Ray: {error.strerror}; set RAY_TMPDIR to another place"
        ) from error
    if not is_ours:
        raise ClusterError(f"{folder}, for the files of Ray, belongs to another user; set RAY_TMPDIR to another place")
    return folder


@contextmanager
def private_token() -> Iterator[None]:
    """Let what Ray writes be for this user alone, and the token that it has written before."""
    before = os.umask(0o077)
    try:
        yield
    finally:
        os.umask(before)
    token = Path.home() / ".ray" / "auth_token"  # where Ray looks unless a variable names another file
    with suppress(FileNotFoundError):
        token.chmod(0o600)


def watch(node: Any, logs: str, is_over: Event, on_loss: Callable[[ClusterError], None]) -> None:
    """Wait until a vital process of a node has ended, and then end the others and report it.

    Args:
        logs: folder of Ray's logs.
        is_over: set when the node is stopped on purpose.
        on_loss: takes the report.
    """
    while not is_over.wait(LOOK_SECONDS):
        ended = sorted(VITAL.intersection(name for name, _ in node.dead_processes()))
        if ended and not is_over.is_set():
            node.kill_all_processes(check_alive=False)
            on_loss(ClusterError(f"Ray has ended, as its {ended[0]} did; start again. Its logs are in {logs}"))
            return


def _free_ports(number: int) -> list[int]:
    with ExitStack() as stack:
        ports: list[int] = []
        for port in random.sample(PORTS, len(PORTS)):
            with suppress(OSError):
                stack.enter_context(socket.create_server(("", port)))
                ports.append(port)
            if len(ports) == number:
                return ports
    raise ClusterError(f"no {number} ports from {PORTS.start} to {PORTS.stop - 1} are free")
