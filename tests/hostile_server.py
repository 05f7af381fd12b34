"""A server on loopback that answers each request by a script, which may break every rule of HTTP."""

from __future__ import annotations

import gzip
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

MOST_BYTES = 64 << 20  # of one answer: a client that reads all of it has failed
BOMB = gzip.compress(bytes(16 << 20))  # 16 KB

Answer = Callable[["Hostile", bytes], Iterator[bytes]]


class Hostile:
    """Counts what it could send, and the connections."""

    def __init__(self, answer: Answer, host: str):
        self.answer = answer
        self.heads: list[bytes] = []  # of the requests
        self.num_bytes = 0  # that were sent
        self.is_ending = threading.Event()
        self._listener = socket.create_server((host, 0), backlog=64)
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8192)  # few bytes are on their way
        self.port = self._listener.getsockname()[1]
        self.url = f"http://{host}:{self.port}"
        self._threads = [threading.Thread(target=self._accept)]
        self._connections: list[socket.socket] = []

    def start(self) -> None:
        self._threads[0].start()

    def stop(self) -> None:
        self.is_ending.set()
        self._listener.shutdown(socket.SHUT_RDWR)
        self._threads[0].join()
        for connection in self._connections:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        for thread in self._threads[1:]:
            thread.join()
        self._listener.close()

    def pause(self, seconds: float) -> None:
        self.is_ending.wait(seconds)

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                self._connections.append(connection)
                thread = threading.Thread(target=self._serve, args=(connection,))
                self._threads.append(thread)
                thread.start()

    def _serve(self, connection: socket.socket) -> None:
        with connection, suppress(OSError):
            connection.settimeout(10)
            while head := self._read_head(connection):
                sent = 0
                for part in self.answer(self, head):
                    connection.sendall(part)
                    self.num_bytes += len(part)
                    sent += len(part)
                    if sent > MOST_BYTES or self.is_ending.is_set():
                        return

    def _read_head(self, connection: socket.socket) -> bytes:
        head = b""
        while b"\r\n\r\n" not in head:
            received = connection.recv(1 << 16)
            if not received:
                return b""
            head += received
        self.heads.append(head)
        return head


@contextmanager
def hostile_server(answer: Answer, host: str = "127.0.0.1") -> Iterator[Hostile]:
    server = Hostile(answer, host)
    server.start()
    try:
        yield server
    finally:
        server.stop()


def whole(status: str, body: bytes = b"", *headers: str) -> Answer:
    """Answer with a status, such as ``404 Not Found``, and a body."""
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", *headers, "", ""]

    def answer(*_: object) -> Iterator[bytes]:
        yield "\r\n".join(lines).encode("latin-1") + body

    return answer


def endless(status: str, *headers: str, part: bytes = bytes(1 << 14)) -> Answer:
    """Answer with a body that does not end."""

    def answer(*_: object) -> Iterator[bytes]:
        yield "\r\n".join([f"HTTP/1.1 {status}", *headers, "", ""]).encode()
        while True:
            yield part

    return answer


def dripping(begin: bytes, drop: bytes, seconds: float) -> Answer:
    """Answer with a beginning, and then with drops that come after some seconds each."""

    def answer(server: Hostile, _: bytes) -> Iterator[bytes]:
        yield begin
        while True:
            yield drop
            server.pause(seconds)

    return answer
