"""The listening socket, and the options that its connections inherit."""

from __future__ import annotations

import errno
import socket

from server.settings import SettingsError

SEND_TIMEOUT_SECONDS = 60.0  # a client must acknowledge sent data within this time


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens on an address.

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
        return f"stop the process that uses it (`ss -ltnp 'sport = :{port}'`), or choose another --port (0: any free)"
    if error.errno == errno.EACCES:
        return "ports below 1024 need root rights; choose another --port"
    return "choose another --host or --port"


def limit_sending(listener: socket.socket, seconds: float) -> None:
    """Let the kernel close connections whose client has not read sent data for some seconds.

    Their send buffers are full, so the server could not send an error.
    """
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(1000 * seconds))
