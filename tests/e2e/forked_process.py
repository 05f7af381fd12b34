"""Starts `greenroom` commands by forking a process that has their modules imported, which takes a tenth of the time."""

from __future__ import annotations

import atexit
import json
import os
import select
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

PROGRAM = Path(__file__).with_name("fork_server.py")

ENVIRONMENT = dict(os.environ)  # while the fork server imports

# The commands read these when they run, or never: the tests import more of torch, and Ray, which set some. Any other
# may be read while modules are imported.
OF_BUCKETS = ("AWS_ACCESS_", "AWS_ALLOW_", "AWS_ENDPOINT_", "AWS_REGION", "AWS_SECRET_")
READ_LATE = ("FORCE_COLOR", "GREENROOM_", "OLLAMA_", "PYTEST_", "RAY_", "TORCHINDUCTOR_", "XDG_", *OF_BUCKETS)
# Modules of the server read these, or import what does: commands with them have only libraries imported that do not.
READ_AFTER_TORCH = ("AWS_", "HF_", "OTEL_")


class ForkedProcess(subprocess.Popen[str]):
    """A process that the fork server has forked, with the interface of one that was started by ``exec``.

    It is a child of the fork server, which waits for it and sends its status.
    """

    _report: socket.socket

    def _execute_child(self, *given: Any, **named: Any) -> None:
        """Ask the fork server for a child. The arguments are those that ``Popen`` passes by their order."""
        del named
        command, environment, pipes = given[0], given[6], given[10:16]
        stdin, own_in, own_out, stdout, own_error, stderr = pipes
        del own_in, own_out, own_error
        files = [own if file == -1 else file for own, file in enumerate((stdin, stdout, stderr))]
        self._report, its_end = socket.socketpair()
        with its_end:
            request = {
                "command": list(command),
                "environment": dict(environment),
                "folder": str(Path.cwd()),
                "umask": _umask(),
                "process_group": os.getpgrp(),
            }
            has_all = _differs_by(READ_LATE, environment)
            server = _fork_server("all" if has_all else "libraries")
            socket.send_fds(server.requests, [json.dumps(request).encode()], [its_end.fileno(), *files])
        self.pid = self._read_number()
        self._child_created = True
        self._close_pipe_fds(*pipes)

    def _read_number(self) -> int:
        line = b""
        while not line.endswith(b"\n"):
            part = self._report.recv(1)
            assert part, "the fork server has ended"
            line += part
        return int(line)

    def _try_wait(self, wait_flags: int) -> tuple[int, int]:
        if wait_flags & os.WNOHANG and not select.select([self._report], [], [], 0)[0]:
            return 0, 0
        status = self._read_number()
        self._report.close()
        return self.pid, status

    def _internal_poll(self, _deadstate: int | None = None) -> int | None:
        if self.returncode is None and self._waitpid_lock.acquire(blocking=False):
            try:
                pid, status = self._try_wait(os.WNOHANG)
                if pid:
                    self._handle_exitstatus(status)
            finally:
                self._waitpid_lock.release()
        return self.returncode


def can_fork(arguments: Sequence[str], environment: Mapping[str, str]) -> bool:
    """Return True if a command may be forked: nothing differs that matters while torch is imported."""
    return _differs_by(READ_LATE + READ_AFTER_TORCH, environment) and not any(map(_takes_images, arguments))


def _differs_by(prefixes: tuple[str, ...], environment: Mapping[str, str]) -> bool:
    """Return True if only variables with some prefixes differ from what the fork server had."""
    names = {name for name, _ in environment.items() ^ ENVIRONMENT.items()}
    return all(name.startswith(prefixes) for name in names)


def _takes_images(argument: str) -> bool:
    """Return True for the folder of a model that takes images, for which torchvision is imported, or may take some."""
    config = Path(argument, "config.json")
    try:
        return config.is_file() and "vision_config" in config.read_text("utf-8", "ignore")
    except OSError:  # it can't be read
        return True


def _umask() -> int:
    umask = os.umask(0o077)
    os.umask(umask)
    return umask


class _ForkServer:
    """A fork server of this process; it ends with it.

    Args:
        imports: what it imports, by its name there.
    """

    def __init__(self, imports: str):
        self.requests, its_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with its_end:
            self._process = subprocess.Popen(
                [sys.executable, PROGRAM, str(its_end.fileno()), str(PROGRAM.parents[2]), imports],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=[its_end.fileno()],
                process_group=0,  # Ctrl-C is for the commands
                env=ENVIRONMENT | {"OPENBLAS_NUM_THREADS": "1"},  # others start while NumPy is imported
            )

    def end(self) -> None:
        self.requests.close()
        self._process.wait()


@cache
def _fork_server(imports: str) -> _ForkServer:
    server = _ForkServer(imports)
    atexit.register(server.end)
    return server
