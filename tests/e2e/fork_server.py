"""A process that has torch and the server's modules imported, and forks a `greenroom` command at each request.

It runs no operation of torch and has one thread, so the state of the children is that of a process which has just
imported the same. ``tests/e2e/forked_process.py`` starts it, says what it imports (``all`` or ``libraries``), and sends
requests.
"""

from __future__ import annotations

import gc
import io
import json
import os
import selectors
import signal
import socket
import sys
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn

LARGEST = 1 << 20  # bytes of a request
NUM_FILES = 4  # the connection that reports on the child, and its standard streams

# What a server of the bundled model imports once it runs.
MODULES = ("server.lifecycle.serving", "torch.utils._device", "transformers.models.qwen3_moe.modeling_qwen3_moe")

# Libraries that read none of the variables with which commands differ. fastapi imports parts of OpenTelemetry,
# which do.
LIBRARIES = (
    "PIL.Image",
    "gguf",
    "httptools",
    "httpx",
    "jinja2",
    "llguidance",
    "prometheus_client",
    "prompt_toolkit",
    "psutil",
    "pydantic",
    "rich.console",
    "safetensors.torch",
    "starlette.applications",
    "tokenizers",
    "uvicorn",
    "uvloop",
)


def import_all() -> None:
    """Import what commands import, in the order in which `greenroom serve` does."""
    from server.cli.main import SUBCOMMANDS  # noqa: PLC0415  sys.path is set by now
    from server.lifecycle.torch_setup import set_up_torch  # noqa: PLC0415

    for subcommand in SUBCOMMANDS:
        import_module(subcommand.module)
    set_up_torch(None)
    for name in MODULES:
        import_module(name)


def import_libraries_alone() -> None:
    """Import torch as `greenroom serve` does, then ``LIBRARIES``, and nothing that reads variables of the hub."""
    from server.lifecycle.lighter_imports import import_torch  # noqa: PLC0415
    from server.lifecycle.torch_setup import ENVIRONMENT  # noqa: PLC0415

    os.environ.update(ENVIRONMENT)
    import_torch()
    for name in LIBRARIES:
        import_module(name)


IMPORTS = {"all": import_all, "libraries": import_libraries_alone}


@dataclass
class Child:
    pid: int
    report: socket.socket


class ForkServer:
    """Forks children and reports their ends until the connection for requests is closed; then it kills what is left."""

    def __init__(self, requests: socket.socket):
        self._requests = requests
        self._children: dict[int, Child] = {}  # by the file descriptor of the process
        self._selector = selectors.DefaultSelector()
        self._selector.register(requests, selectors.EVENT_READ)

    def wait_for_command(self) -> dict[str, Any]:
        """Serve requests. Returns in each child, with its request; does not return in the parent."""
        while True:
            for key, _ in self._selector.select():
                if key.fd in self._children:
                    self._report(key.fd)
                elif (request := self._accept()) is not None:
                    return request

    def _accept(self) -> dict[str, Any] | None:
        """Read a request and fork; return the request in the child, and None in the parent."""
        text, files, _, _ = socket.recv_fds(self._requests, LARGEST, NUM_FILES)
        if not text:
            self._end()
        num_threads = sum(1 for _ in Path("/proc/self/task").iterdir())
        assert num_threads == 1, f"forking would stop {num_threads - 1} threads"
        pid = os.fork()
        if pid == 0:
            self._leave()
            for number, file in enumerate(files[1:]):
                os.dup2(file, number)
            os.closerange(3, max(files) + 1)
            return dict(json.loads(text))
        for file in files[1:]:
            os.close(file)
        report = socket.socket(fileno=files[0])
        descriptor = os.pidfd_open(pid)
        self._children[descriptor] = Child(pid, report)
        self._selector.register(descriptor, selectors.EVENT_READ)
        _send(report, pid)
        return None

    def _report(self, descriptor: int) -> None:
        """Send the status of a child that has ended, as ``os.waitpid`` returns it."""
        child = self._children.pop(descriptor)
        self._selector.unregister(descriptor)
        os.close(descriptor)
        _, status = os.waitpid(child.pid, 0)
        _send(child.report, status)
        child.report.close()

    def _leave(self) -> None:
        """Close in a child what is the fork server's."""
        self._selector.close()
        self._requests.close()
        for descriptor, child in self._children.items():
            os.close(descriptor)
            child.report.close()

    def _end(self) -> NoReturn:
        for child in self._children.values():
            os.kill(child.pid, signal.SIGKILL)
        for child in self._children.values():
            os.waitpid(child.pid, 0)
        sys.exit(0)


def _send(report: socket.socket, number: int) -> None:
    with suppress(BrokenPipeError):  # nobody wants to know
        report.sendall(b"%d\n" % number)


def become(request: dict[str, Any]) -> None:
    """Make this child what a new process with the arguments, environment and folder of a request is."""
    os.setpgid(0, request["process_group"])
    os.umask(request["umask"])
    os.chdir(request["folder"])
    os.environ.clear()
    os.environ.update(request["environment"])
    sys.argv[:] = request["command"]
    sys.path[0] = str(Path(sys.argv[0]).parent)
    sys.stdin = sys.__stdin__ = open(0, errors=sys.stdin.errors, closefd=False)  # noqa: SIM115
    sys.stdout = sys.__stdout__ = _output(1, sys.stdout)
    sys.stderr = sys.__stderr__ = _output(2, sys.stderr)


def _output(number: int, before: Any) -> io.TextIOWrapper:
    """Open a standard stream as Python does at its start, with the settings of the fork server's."""
    file: Any = open(number, "wb", 0 if before.write_through else -1, closefd=False)  # noqa: SIM115
    return io.TextIOWrapper(
        file,
        before.encoding,
        before.errors,
        newline="\n",
        line_buffering=file.isatty() or number == 2,
        write_through=before.write_through,
    )


if __name__ == "__main__":
    connection = socket.socket(fileno=int(sys.argv[1]))
    sys.path[0] = sys.argv[2]
    IMPORTS[sys.argv[3]]()
    gc.collect()
    gc.freeze()  # collections in the children would copy all pages
    become(ForkServer(connection).wait_for_command())
    from server.cli.main import main

    sys.exit(main())  # type: ignore[func-returns-value]  # as the console script does
