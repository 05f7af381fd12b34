"""The listening socket, and what its connections inherit."""

from __future__ import annotations

import errno
import socket

from server.settings import SettingsError

SEND_TIMEOUT_SECONDS = 60.0  # in which a client reads something, or its network confirms it


def listen(host: str, port: int) -> socket.socket:
    """A bound socket.

    Raises:
        SettingsError: the address can't be used.
    """
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        listener = socket.create_server((host, port), family=family, backlog=2048)
    except OSError as error:
        reason = str(error.strerror).partition(" (")[0]
        raise SettingsError(f"cannot listen on {host}:{port}: {reason}; {_advice(error, port)}") from error
    limit_sending(listener, SEND_TIMEOUT_SECONDS)
    return listener


def _advice(error: OSError, port: int) -> str:
    if error.errno == errno.EADDRINUSE:
        return f"stop what uses it (`ss -ltnp 'sport = :{port}'`), or choose another --port; 0 finds a free one"
    if error.errno == errno.EACCES:
        return "ports below 1024 are for root; choose another --port"
    return "choose another --host or --port"


def limit_sending(listener: socket.socket, seconds: float) -> None:
    """Let the kernel end connections whose client has read nothing for so long, though there was something to read.

    Their send buffers are full, so that the server could not even tell them why.
    """
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(1000 * seconds))
