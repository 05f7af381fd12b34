"""The line on standard output that says that the server is ready."""

from __future__ import annotations

import logging
import sys
import threading

from server.observability.log_writer import write_fully

log = logging.getLogger(__name__)


def write_ready_line(line: str) -> None:
    """Write the line in a thread. A standard output that is full, closed or not read does not concern the server."""

    def write() -> None:
        try:
            write_fully(sys.stdout.fileno(), f"{line}\n".encode())
        except (OSError, ValueError) as error:
            log.warning("cannot write the ready line to standard output: %s", error)

    threading.Thread(target=write, name="ready-line", daemon=True).start()
